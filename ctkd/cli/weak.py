# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd weak``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ctkd.cli.common import json_option, print_json, print_table

EPILOG = """\b
Examples:
  ctkd weak runs/NAME
  ctkd weak runs/NAME --by radius --worst 50
  ctkd weak runs/FIRST runs/SECOND --split validation --worst 100 --out weak.npz
"""

ALONE = {
    "margin": {
        "prediction": "prediction",
        "certified margin": "value",
        "attack margin": "broken",
        "verdict": "verdict",
        "stage": "stage",
    },
    "radius": {"prediction": "prediction", "certified up to": "value", "broken at": "broken", "broken by": "stage"},
}
"""Columns of one run: title and key."""
SEVERAL = {"margin": {"margin": "value"}, "radius": {"radius": "value"}}
TEXTS = ("verdict", "stage")


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--by", default="margin", show_default=True, help="What is ranked: certified margin or radius.")
@click.option("--worst", type=int, help="How many samples; default: 20.")
@click.option("--eps", help="Radius of the margins, in pixel units; default: the runs'.")
@click.option(
    "--split", help="Part of the data: test, validation, train; default: the one in the runs' configurations."
)
@click.option("--rank", default="mean", show_default=True, help="Of several runs: the mean or the worst rank counts.")
@click.option("--correct", is_flag=True, help="Leave out samples that are misclassified without any perturbation.")
@click.option("--out", type=click.Path(path_type=Path), help="A data set to write, FILE.npz, with them for validation.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@click.option("--force", is_flag=True, help="Replace the file.")
@json_option
def command(
    runs: tuple[Path, ...],
    by: str,
    worst: int | None,
    eps: str | None,
    split: str | None,
    rank: str,
    correct: bool,
    out: Path | None,
    data_dir: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Rank the samples that runs certify least, and make a validation set of them.

    Margins are those of `ctkd certify`, radii those of `ctkd radii`. The file that --out names is a data set like the
    runs', with these samples for validation: `--dataset FILE.npz` reads it.
    """
    from ctkd.run import weak

    found = weak(
        runs,
        out,
        by=by,
        worst=worst,
        eps=eps,
        split=split,
        rank=rank,
        correct=correct,
        data_dir=data_dir,
        force=force,
    )
    print_json(found) if as_json else _table(found)
    for note in found["notes"]:
        click.echo(f"warning: {note}", err=True)


def _table(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    samples, runs, by = found["samples"], found["runs"], found["by"]
    measure = "radius" if by == "radius" else f"margin at eps {found['eps']:.4g}"
    title = f"The weakest {len(samples)} of {found['ranked']} {found['split']} samples by certified {measure}"
    table = Table()
    alone = len(runs) == 1
    columns = (ALONE if alone else SEVERAL)[by]
    table.add_column("sample", justify="right")
    table.add_column("label", justify="right")
    if not alone:
        table.add_column(f"{found['rank']} rank", justify="right")
    for k in range(1, len(runs) + 1):
        for name, key in columns.items():
            table.add_column(name if alone else f"{name} {k}", justify="left" if key in TEXTS else "right")
    for sample in samples:
        rank = [] if alone else [sample["rank"]]
        cells = [one[key] for one in sample["runs"] for key in columns.values()]
        table.add_row(*map(_cell, [sample["sample"], sample["label"], *rank, *cells]))
    click.echo(title)
    console = print_table(table)
    lines = [] if alone else [f"{k}: {run}" for k, run in enumerate(runs, start=1)]
    if found["out"] is not None:
        radius = "EPS" if found["eps"] is None else f"{found['eps']:.6g}"
        lines.append(f"data set: {found['out']}; ctkd train --dataset {shlex.quote(found['out'])} --eps {radius}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
