# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd train``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ctkd.cli.common import config_options, json_option, print_json, reporter, results_table, settings_of
from ctkd.distributed import launched
from ctkd.errors import BadInput

EPILOG = """\b
Examples:
  ctkd train --bound crown-ibp --teacher pgd
  ctkd train --dataset mnist --data-dir data --eps 0.1 --bound cc-ibp --set bound.alpha=0.3
  ctkd train --teacher file --set teacher.path=teacher.safetensors
  ctkd train --bound mtl-ibp --distill b-mtard --teacher pgd --teacher natural --set teacher.2.epochs=5
  ctkd train --model my_package.nets:factory --dataset my_images.npz --eps 4/255
  ctkd train --config my.toml --print-config
  ctkd train --recipe mnist-0.1-cc-ibp --data-dir data --seed 1
  ctkd train --resume runs/NAME
"""


@click.command(epilog=EPILOG)
@config_options
@click.option("--print-config", is_flag=True, help="Print the resolved configuration with sources, and stop.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/ plus a unique name.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run.")
@click.option("--no-certify", is_flag=True, help="Stop after training; certified figures are null.")
@click.option("--allow-import", is_flag=True, help="Let the configuration file name code to import and run.")
@json_option
def command(
    config: Path | None,
    print_config: bool,
    out: Path | None,
    resume: Path | None,
    no_certify: bool,
    allow_import: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a student with a teacher, certify it and export it.

    A bare call trains on scikit-learn's digits with everything at its default. Options of plugins are set with
    --set, sections named after the roles: data, model, bound, teacher, distill, attack, train, certify, export.
    """
    values = settings_of(flags)
    if resume is not None and (values or config or out or print_config):
        raise BadInput("--resume takes everything from the run's own configuration; leave out the other options")
    if print_config:
        from ctkd.config import dump, resolve

        resolved = resolve(values, config)
        print_json(resolved.tables()) if as_json else print(dump(resolved, sources=True))
        return
    from ctkd import run

    if resume is not None:
        folder, summary = run.resume(resume, certify=not no_certify, allow_import=allow_import, reporter=reporter())
    else:
        folder, summary = run.train(
            settings=values,
            config=config,
            out=out,
            certify=not no_certify,
            allow_import=allow_import,
            reporter=reporter(),
            command=shlex.join(["ctkd", *sys.argv[1:]]),
        )
    if launched()[0] != 0:  # one process speaks
        return
    if as_json:
        print_json({"run": str(folder.path), **summary})
        return
    results_table(summary)
    print(f"run folder: {folder.path}")
