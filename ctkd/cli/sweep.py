# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ctkd.cli.common import config_options, json_option, percent, print_json, print_table, reporter, settings_of
from ctkd.errors import BadInput

EPILOG = """\b
Examples:
  ctkd sweep --bound cc-ibp --over bound.alpha=0.05:0.95 --over train.l1=1e-7:1e-4:log --trials 30
  ctkd sweep --bound cc-ibp --over bound.alpha=0.1,0.3,0.5 --over distill.name=none,features
             --sampler grid --seeds 0 1 2 --out sweeps/alpha
  ctkd sweep --resume sweeps/alpha
"""


class Command(click.Command):
    """Takes several numbers after ``--seeds``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        for argument in args:
            after_seeds = len(joined) > 1 and joined[-2] == "--seeds"
            if after_seeds and not argument.startswith("--"):
                joined[-1] += f",{argument}"
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


@click.command(cls=Command, epilog=EPILOG)
@config_options
@click.option("--over", multiple=True, metavar="KEY=VALUES", help="Vary a key: low:high, low:high:log or a,b,c.")
@click.option("--trials", type=int, help="How many; default 20, or every cell of a grid. None is tried twice.")
@click.option("--seeds", metavar="S...", help="Train each trial with each of these seeds, and compare means.")
@click.option(
    "--objective",
    multiple=True,
    metavar="FIGURE",
    help="natural_accuracy, certified_accuracy, adversarial_accuracy, seconds; repeatable; default: the first two.",
)
@click.option("--sampler", help="How values are proposed: tpe, random, grid.  [default: tpe]")
@click.option("--sampler-seed", type=int, help="Seed of the proposals.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), help="The sweep's folder; default: sweeps/ plus the time.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="SWEEP", help="Go on with a sweep.")
@click.option("--allow-import", is_flag=True, help="Let the file or the sweep name code to import and run.")
@json_option
def command(
    config: Path | None,
    over: tuple[str, ...],
    trials: int | None,
    seeds: str | None,
    objective: tuple[str, ...],
    sampler: str | None,
    sampler_seed: int | None,
    out: Path | None,
    resume: Path | None,
    allow_import: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train many configurations and find the front of natural against certified accuracy.

    Every trial is trained, attacked and certified on the validation split, once for each seed; test images are never
    looked at. The sweep's folder keeps every run; a stopped sweep goes on with --resume, with more --trials, too.
    """
    from ctkd import run

    settings = settings_of(flags)
    if resume is not None:
        if settings or config or over or seeds or objective or sampler or sampler_seed is not None or out:
            raise BadInput(
                "--resume takes everything but --trials from the sweep's folder; leave out the other options"
            )
        path = resume
        found = run.resume_sweep(resume, trials=trials, allow_import=allow_import, reporter=reporter())
    else:
        path, found = run.sweep(
            over,
            settings=settings,
            config=config,
            trials=trials,
            seeds=_seeds(seeds),
            objectives=objective or run.FRONT,
            sampler=sampler or "tpe",
            sampler_seed=sampler_seed or 0,
            out=out,
            allow_import=allow_import,
            reporter=reporter(),
        )
    if as_json:
        print_json({"sweep": str(path), **found})
    else:
        _table(path, found)


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (text or "").replace(",", " ").split())
    except ValueError:
        raise BadInput(f"--seeds {text}: write whole numbers, such as --seeds 0 1 2") from None


def _table(path: Path, found: Mapping[str, Any]) -> None:
    from rich.table import Table

    names, front = found["objectives"], [trial for trial in found["trials"] if trial["front"]]
    seeds = f", means over seeds {', '.join(map(str, found['seeds']))}" if len(found["seeds"]) > 1 else ""
    title = "Front" if len(names) > 1 else "Best"
    table = Table(
        title=f"{title} of {len(found['trials'])} trials on the validation split{seeds}", title_justify="left"
    )
    table.add_column("trial", justify="right")
    for name in names:
        table.add_column(name.removesuffix("_accuracy"), justify="right")
    table.add_column("values")
    for trial in sorted(front, key=lambda trial: trial["mean"][names[0]]):
        values = "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial["values"].items())
        table.add_row(str(trial["number"]), *(_figure(trial, name) for name in names), values)
    console = print_table(table)
    first = front[0]["runs"][0]["run"]
    for line in (
        *([f"{len(found['failed'])} trials failed; {path / 'results.json'} says why"] if found["failed"] else []),
        f"plot: {path / 'front.png'}   every trial: {path / 'results.json'}",
        f"a trial's figure on the test split: ctkd certify {path / first} --set certify.split=test",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _figure(trial: Mapping[str, Any], name: str) -> str:
    show = percent if name.endswith("accuracy") else "{:.1f}".format
    spread = trial["spread"][name]
    return show(trial["mean"][name]) + (f" +- {show(spread)}" if spread is not None else "")
