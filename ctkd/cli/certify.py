# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd certify``."""

from __future__ import annotations

from pathlib import Path

import click

from ctkd.cli.common import json_option, parse_setting, print_json, reporter, results_table
from ctkd.distributed import launched

EPILOG = """\b
Examples:
  ctkd certify runs/NAME
  ctkd certify runs/NAME --eps 0.15 --samples 500
  ctkd certify runs/NAME --set certify.attack_steps=100
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--eps", help="Radius; default: the run's.")
@click.option("--samples", type=int, help="How many samples; default: all.")
@click.option("--start", type=int, help="First sample of the split.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@click.option("--set", "settings", multiple=True, metavar="certify.KEY=VALUE", help="Set any option; repeatable.")
@json_option
def command(
    run: Path,
    eps: str | None,
    samples: int | None,
    start: int | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Attack each sample, then certify what is left: IBP, CROWN-IBP, CROWN.

    Results are stored per sample in the run folder; the same command goes on where it was stopped.
    """
    from ctkd.run import certify

    values = dict(parse_setting(text) for text in settings)
    flags = {"certify.samples": samples, "certify.start": start}
    values |= {key: value for key, value in flags.items() if value is not None}
    summary = certify(run, eps=eps, data_dir=data_dir, settings=values, reporter=reporter())
    if launched()[0] == 0:  # one process speaks
        print_json(summary) if as_json else results_table(summary)
