# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd certify``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ctkd.cli.common import json_option, notes, parse_setting, percent, print_json, print_table, reporter, results_table
from ctkd.distributed import launched
from ctkd.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = """\b
Examples:
  ctkd certify runs/NAME
  ctkd certify runs/NAME --eps 0.15 --samples 500
  ctkd certify runs/NAME --eps 0.02,0.05,0.1
  ctkd certify runs/NAME --device cuda
  ctkd certify runs/NAME --set certify.attack_steps=100
  ctkd certify model.onnx --dataset mnist --eps 0.1
  ctkd certify model.onnx --spec property.vnnlib
"""


def certify_options(function: F) -> F:
    """Which samples, and how each is settled."""
    for option in (
        click.option(
            "--set", "settings", multiple=True, metavar="certify.KEY=VALUE", help="Set any option; repeatable."
        ),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files."),
        click.option("--device", help="Where to compute: cpu, cuda; default: as in training, if it is there."),
        click.option("--start", type=int, help="First sample of the split."),
        click.option("--samples", type=int, help="How many samples; default: all."),
    ):
        function = option(function)
    return function


def certify_settings(
    samples: int | None, start: int | None, settings: Sequence[str], device: str | None = None
) -> dict[str, Any]:
    """``certify.key`` -> value from those options."""
    flags = {"certify.samples": samples, "certify.start": start, "certify.device": device}
    values = dict(parse_setting(text) for text in settings)
    return values | {key: value for key, value in flags.items() if value is not None}


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--eps", multiple=True, help="Radius, or several with commas; repeatable; default: the run's.")
@certify_options
@click.option("--dataset", help="For an ONNX model: data set, such as mnist; also file.npz or a folder of images.")
@click.option("--spec", type=click.Path(path_type=Path), help="For an ONNX model: a VNN-LIB file instead of data.")
@click.option("--out", type=click.Path(path_type=Path), help="For an ONNX model: folder of the results.")
@json_option
def command(
    run: Path,
    eps: tuple[str, ...],
    dataset: str | None,
    spec: Path | None,
    out: Path | None,
    samples: int | None,
    start: int | None,
    device: str | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Attack each sample, then certify what is left: IBP, CROWN-IBP, CROWN.

    Results are stored per sample in the run folder; the same command goes on where it was stopped. Several radii are
    certified one after the other, each under its own settings. RUN may also be an ONNX model of yours.
    """
    from ctkd.run import certify_each

    radii = [part.strip() for text in eps for part in text.split(",")]
    if not all(radii):
        raise BadInput(f"--eps {' '.join(eps)}: a radius is missing beside a comma; write --eps 0.05,0.1")
    values = certify_settings(samples, start, settings, device)
    if run.suffix == ".onnx":
        from ctkd.cli.foreign import certify_foreign

        found = certify_foreign(run, radii, dataset, data_dir, spec, out, values, as_json=as_json)
    else:
        if run.is_file():
            raise BadInput(f"{run} is neither a run folder nor an ONNX model, MODEL.onnx")
        _for_models(dataset=dataset, spec=spec, out=out)
        found = certify_each(run, radii or [None], data_dir=data_dir, settings=values, reporter=reporter())
    if not found:
        return
    if launched()[0] != 0:  # one process speaks
        return
    if len(radii) <= 1:
        print_json(found[0]) if as_json else results_table(found[0])
    else:
        print_json(found) if as_json else _several(found)


def _for_models(**given: Any) -> None:
    wrong = [f"--{name} is for an ONNX model; a run has its own" for name, value in given.items() if value is not None]
    if wrong:
        raise BadInput(*wrong)


def _several(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    first = found[0]
    table = Table(title=f"Accuracy on {first['samples']} {first['split']} samples", title_justify="left")
    columns = ("eps", "natural", "adversarial", "certified", "undecided")
    for column in columns:
        table.add_column(column, justify="right")
    for one in found:
        shares = [one["natural_accuracy"], one["adversarial_accuracy"], one["certified_accuracy"]]
        undecided = one["counts"]["undecided"] / one["samples"]
        table.add_row(f"{one['eps']:.4g}", *map(percent, [*shares, undecided]))
    console = print_table(table)
    for one in found:
        for line in notes(one)[1 if one is not first else 0 :]:  # the attack is the same at all
            prefix = "" if line.startswith("attack: ") else f"eps {one['eps']:.4g}: "
            console.print(prefix + line, highlight=False, soft_wrap=True)
