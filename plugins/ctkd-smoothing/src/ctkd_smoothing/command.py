# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd smooth``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ctkd.errors import BadInput
from ctkd.options import parse_number
from ctkd_smoothing.options import SmoothOptions

EPILOG = """\b
Examples:
  ctkd smooth runs/NAME
  ctkd smooth runs/NAME --sigma 0.5 --draws 100000 --samples 500
  ctkd smooth runs/NAME --radii 0,0.5,1 --json
"""
QUIET = 30.0
"""Seconds between lines about progress."""


def _help(name: str) -> str:
    return " ".join((SmoothOptions.model_fields[name].description or "").split())


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sigma", help=_help("sigma"))
@click.option("--selection", type=int, help=_help("selection"))
@click.option("--draws", type=int, help=_help("draws"))
@click.option("--alpha", help=_help("alpha"))
@click.option("--seed", type=int, help=_help("seed"))
@click.option("--split", help=_help("split"))
@click.option("--start", type=int, help=_help("start"))
@click.option("--samples", type=int, help=_help("samples"))
@click.option("--radii", help=f"{_help('radii')} With commas.")
@click.option("--device", help=_help("device"))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else.")
def command(run: Path, data_dir: Path | None, as_json: bool, radii: str | None, **flags: Any) -> None:
    """Certify a student behind Gaussian noise, by sampling (randomised smoothing).

    Another threat model than that of `ctkd certify`: L2 radii, of the smoothed classifier, each of which holds with a
    stated probability. Results lie in smoothing.sqlite in the run folder, apart from the run's own; the same command
    goes on where it was stopped.
    """
    from ctkd_smoothing.evaluate import smooth

    values = {name: value for name, value in flags.items() if value is not None}
    if radii is not None:
        values["radii"] = _numbers(radii)
    found = smooth(run, values, data_dir=data_dir, progress=_Progress())
    print(json.dumps(found, indent=2)) if as_json else _table(found)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(parse_number(part)) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--radii {text}: {error}; separate them by commas, such as --radii 0,0.25,0.5") from None


class _Progress:
    """A line on standard error now and then."""

    def __init__(self) -> None:
        self.spoke = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.spoke > QUIET:
            self.spoke = time.monotonic()
            print(f"smoothing: {done} of {total} samples", file=sys.stderr, flush=True)


def _table(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    part = f"{found['samples']} {found['split']} samples"
    table = Table(title=f"Smoothed classifier, sigma {found['sigma']:.4g}, on {part}", title_justify="left")
    for column in ("L2 radius", "certified with probability", "implied L-infinity radius"):
        table.add_column(column, justify="right")
    for one in found["curve"]:
        accuracy = f"{100 * one['certified_at_l2_radius']:.2f} %"
        table.add_row(f"{one['l2_radius']:.4g}", accuracy, f"{one['implied_linf_radius']:.4g}")
    console = Console()
    console.print(table)
    for line in _notes(found):
        console.print(line, highlight=False, soft_wrap=True)


def _notes(found: Mapping[str, Any]) -> list[str]:
    return [
        f"threat model: {found['threat_model']}; not comparable with `ctkd certify`, which proves L-infinity radii",
        f"each certificate comes from {found['draws']} draws ({found['selection']} others chose the class) and is "
        f"wrong with probability at most {found['alpha']:g}, for each sample by itself",
        f"over the whole table: at most {found['expected_wrong_at_most']:.3g} of the certificates are expected to be "
        f"wrong, and all hold at once with probability at least {found['all_hold_with_probability']:.3g}",
        f"right and certified at some radius {100 * found['smoothed_accuracy']:.2f} %, abstained "
        f"{100 * found['abstained']:.2f} %, average L2 radius {found['average_l2_radius']:.4g} (0 where wrong)",
        f"the implied radius is the L2 radius over the root of {found['dimensions']}, the number of pixel values",
    ]
