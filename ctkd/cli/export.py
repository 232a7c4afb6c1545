# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd export``."""

from __future__ import annotations

from pathlib import Path

import click

from ctkd.cli.common import json_option, print_json

EPILOG = """\b
Examples:
  ctkd export runs/NAME benchmark --samples 20 --seed 1
  ctkd export runs/NAME benchmark --eps 2/255 --timeout 120
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--samples", type=int, default=10, show_default=True, help="Correctly classified images to export.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which images.")
@click.option("--eps", help="Radius; default: the run's.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds per instance.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@json_option
def command(
    run: Path,
    folder: Path,
    samples: int,
    seed: int,
    eps: str | None,
    timeout: float,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Write onnx/, vnnlib/ and instances.csv for external verifiers into FOLDER."""
    from ctkd.run import export

    report = export(run, folder, samples=samples, seed=seed, eps=eps, timeout=timeout, data_dir=data_dir)
    if as_json:
        print_json(report)
        return
    print(f"{report['instances']} instances of {report['model']} at eps {report['eps']:.4g} in {folder}")
