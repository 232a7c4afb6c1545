# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd report``."""

from __future__ import annotations

from pathlib import Path

import click

from ctkd.cli.common import json_option, print_json

EPILOG = """\b
Examples:
  ctkd report runs/NAME
  ctkd report runs/FIRST runs/SECOND --out comparison.html
  ctkd report runs/NAME --pictures 0
"""


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page; default: report.html in the run folder.")
@click.option("--pictures", type=int, default=8, show_default=True, help="How many of the weakest samples to show.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@click.option("--force", is_flag=True, help="Replace a file that is no report.")
@json_option
def command(
    runs: tuple[Path, ...], out: Path | None, pictures: int, data_dir: Path | None, force: bool, as_json: bool
) -> None:
    """Write one HTML page about a run, or comparing several: accuracies, radii, counterexamples, training.

    The page needs no network and no other file. What a run does not have yet, the page says.
    """
    from ctkd.run import report

    written = report(runs, out, pictures=pictures, data_dir=data_dir, force=force)
    if as_json:
        print_json(written)
        return
    for run, notes in written["notes"].items():
        for note in notes:
            click.echo(f"note: {run}: {note}", err=True)
    click.echo(f"report: {written['report']}")
