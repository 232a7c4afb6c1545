# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd check``."""

from __future__ import annotations

import click

from ctkd.cli.common import json_option, print_json

EPILOG = """\b
Examples:
  ctkd check cnn-small --input 1,28,28
  ctkd check my_package.nets:factory --input 3,32,32
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--input", "shape", default="1,28,28", show_default=True, help="Input shape without the batch.")
@click.option("--classes", type=int, default=10, show_default=True, help="Classes, for registered models.")
@json_option
def command(model: str, shape: str, classes: int, as_json: bool) -> None:
    """Say whether MODEL can be bounded and exported, layer by layer.

    MODEL is a registered name or pkg.mod:factory, a function of (input_shape, classes) or of nothing that returns an
    nn.Module.
    """
    from ctkd.run import check

    found = check(model, shape, classes)
    if as_json:
        print_json(found)
        return
    for layer in found["layers"]:
        print(f"{layer['path']:<24} {layer['op']:<10} {'x'.join(map(str, layer['shape']))}")
    print("every layer can be bounded")
    for problem in found["export_problems"]:
        print(f"not exportable: {problem}")
    if not found["export_problems"]:
        print("and exported")
