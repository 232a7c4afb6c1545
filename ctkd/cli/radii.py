# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd radii``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ctkd.cli.certify import certify_options, certify_settings
from ctkd.cli.common import json_option, percent, print_json, print_table, reporter
from ctkd.distributed import launched

ROWS = 12
"""Of the table that is printed; ``--json`` has every sample."""
EPILOG = """\b
Examples:
  ctkd radii runs/NAME
  ctkd radii runs/NAME --tolerance 1/255 --samples 500
  ctkd radii runs/NAME --json
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tolerance", help="Distance of the radii tried, in pixel units; default: a twentieth of the run's eps.")
@certify_options
@json_option
def command(
    run: Path,
    tolerance: str | None,
    samples: int | None,
    start: int | None,
    device: str | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find each sample's certified radius, and the radius at which an attack breaks it.

    Both are radii that were tried; a sample's true radius lies between them. Every trial is stored in the run folder;
    the same command goes on where it was stopped, and a finer tolerance goes on from a coarser one.
    """
    from ctkd.run import radii

    values = certify_settings(samples, start, settings, device)
    found = radii(run, tolerance=tolerance, data_dir=data_dir, settings=values, reporter=reporter())
    if launched()[0] == 0:  # one process speaks
        print_json(found) if as_json else _table(found)


def _table(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    part = f"{found['samples']} {found['split']} samples"
    table = Table(title=f"Accuracy by radius on {part}", title_justify="left")
    for column in ("eps", "adversarial", "certified"):
        table.add_column(column, justify="right")
    curve = found["curve"]
    chosen = sorted({round(k * (len(curve) - 1) / (ROWS - 1)) for k in range(ROWS)})
    for row in (curve[k] for k in chosen):
        accuracies = row["adversarial_accuracy"], row["certified_accuracy"]
        table.add_row(f"{row['eps']:.4g}", *map(percent, accuracies))
    console = print_table(table)
    none = sum(one["certified"] is None for one in found["radii"])
    for line in (
        f"average certified radius {found['average_certified_radius']:.4g} (0 for the {none} samples that have none)",
        f"tolerance {found['tolerance']:.4g}: no stage certified a radius that is this much larger",
    ):
        console.print(line, highlight=False, soft_wrap=True)
