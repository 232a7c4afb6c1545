# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd curves``."""

from __future__ import annotations

from pathlib import Path

import click

from ctkd.cli.common import json_option, print_json

EPILOG = """\b
Examples:
  ctkd curves runs/FIRST runs/SECOND --out curves.png
  ctkd curves runs/FIRST runs/SECOND --label IBP --label CC-IBP --out curves.svg
"""


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The picture: a .png, .svg or .pdf file.")
@click.option("--label", "labels", multiple=True, help="A run's name in the legend; once for each run, in their order.")
@click.option("--force", is_flag=True, help="Replace the file.")
@json_option
def command(runs: tuple[Path, ...], out: Path, labels: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Draw certified and adversarial accuracy of several runs over the radius, in one picture.

    It takes the results at several radii (`ctkd certify --eps 0.02,0.05,0.1`) and the radii of single samples
    (`ctkd radii`) that the run folders have.
    """
    from ctkd.run import curves

    drawn = curves(runs, out, labels=labels, force=force)
    print_json(drawn) if as_json else click.echo(f"curves: {drawn['curves']}")
