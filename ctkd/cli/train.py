# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd train``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ctkd.cli.common import json_option, parse_setting, print_json, reporter, results_table
from ctkd.errors import BadInput

EPILOG = """\b
Examples:
  ctkd train --bound crown-ibp --teacher pgd
  ctkd train --dataset mnist --data-dir data --eps 0.1 --bound cc-ibp --set bound.alpha=0.3
  ctkd train --teacher file --set teacher.path=teacher.safetensors
  ctkd train --bound mtl-ibp --distill b-mtard --teacher pgd --teacher natural --set teacher.2.epochs=5
  ctkd train --config my.toml --print-config
  ctkd train --resume runs/NAME
"""
FLAGS = {
    "eps": "train.eps",
    "dataset": "data.name",
    "data_dir": "data.dir",
    "model": "model.name",
    "bound": "bound.name",
    "distill": "distill.name",
    "epochs": "train.epochs",
    "seed": "train.seed",
    "device": "train.device",
    "threads": "train.threads",
}


@click.command(epilog=EPILOG)
@click.option("--bound", help="Bound method, such as crown-ibp (see `ctkd plugins`).")
@click.option("--teacher", multiple=True, help="Teacher source, such as pgd, file, none; repeatable.")
@click.option("--distill", help="Distillation objective, such as features, logits, none.")
@click.option("--dataset", help="Data set, such as digits or mnist.")
@click.option("--data-dir", help="Folder with the data set's files; nothing is downloaded then.")
@click.option("--model", help="Architecture, such as cnn-small.")
@click.option("--eps", help="L-infinity radius in pixel units, such as 0.1 or 2/255.")
@click.option("--epochs", type=int, help="Length of the student's training; its schedule scales with it.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--device", help="Where to train: cpu, cuda.")
@click.option("--threads", type=int, help="CPU threads.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Set any option; repeatable.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, one table per role; flags override it.")
@click.option("--print-config", is_flag=True, help="Print the resolved configuration with sources, and stop.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/ plus a unique name.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run.")
@click.option("--no-certify", is_flag=True, help="Stop after training; certified figures are null.")
@json_option
def command(
    settings: tuple[str, ...],
    config: Path | None,
    print_config: bool,
    out: Path | None,
    resume: Path | None,
    no_certify: bool,
    as_json: bool,
    teacher: tuple[str, ...],
    **flags: Any,
) -> None:
    """Train a student with a teacher, certify it and export it.

    A bare call trains on scikit-learn's digits with everything at its default. Options of plugins are set with
    --set, sections named after the roles: data, model, bound, teacher, distill, attack, train, certify, export.
    """
    values = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    values |= {"teacher.name" if i == 1 else f"teacher.{i}.name": name for i, name in enumerate(teacher, start=1)}
    values.update(parse_setting(text) for text in settings)
    if resume is not None and (values or config or out or print_config):
        raise BadInput("--resume takes everything from the run's own configuration; leave out the other options")
    if print_config:
        from ctkd.config import dump, resolve

        resolved = resolve(values, config)
        print_json(resolved.tables()) if as_json else print(dump(resolved, sources=True))
        return
    from ctkd import run

    if resume is not None:
        folder, summary = run.resume(resume, certify=not no_certify, reporter=reporter())
    else:
        folder, summary = run.train(
            settings=values,
            config=config,
            out=out,
            certify=not no_certify,
            reporter=reporter(),
            command=shlex.join(["ctkd", *sys.argv[1:]]),
        )
    if as_json:
        print_json({"run": str(folder.path), **summary})
        return
    results_table(summary)
    print(f"run folder: {folder.path}")
