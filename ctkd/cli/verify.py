# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd verify``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ctkd.cli.certify import certify_settings
from ctkd.cli.common import json_option, percent, print_json, print_table, reporter
from ctkd.errors import BadInput, RunFailed

EPILOG = """\b
Examples:
  ctkd verify runs/NAME --verifier marabou
  ctkd verify runs/NAME --verifier marabou,neuralsat --all --samples 100 --jobs 4
  ctkd verify benchmark --verifier marabou --timeout 30 --shard 2/5
  ctkd verify net.onnx --spec property.vnnlib --verifier marabou
  ctkd verify net.onnx --dataset mnist --eps 0.1 --verifier marabou
"""
VERDICTS = ("verified", "falsified", "unknown", "timeout", "error")


@click.command(epilog=EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--verifier",
    "verifiers",
    required=True,
    multiple=True,
    help="Tools, with commas; repeatable. NAME:LABEL: several of one plugin.",
)
@click.option("--spec", type=click.Path(path_type=Path), help="VNN-LIB file, where PATH is an ONNX file.")
@click.option("--dataset", help="In place of --spec: a data set, such as mnist; also file.npz or a folder of images.")
@click.option("--eps", help="Radius of the samples; default: the run's. An ONNX model has none.")
@click.option("--start", type=int, help="First sample of the split.")
@click.option("--samples", type=int, help="How many samples; default: all.")
@click.option("--all", "everything", is_flag=True, help="Also samples that ctkd certify has settled.")
@click.option("--timeout", type=float, help="Seconds per question; default: as in instances.csv, else 60.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Questions at a time.")
@click.option("--shard", default="1/1", show_default=True, metavar="PART/PARTS", help="Every PARTS-th instance only.")
@click.option("--retry", is_flag=True, help="Ask again where the stored answer is an error.")
@click.option("--forget", multiple=True, metavar="NAME", help="Delete a tool's stored answers first; repeatable.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Results file; default: the run's or model's, or beside PATH."
)
@click.option("--results", type=click.Path(path_type=Path), help="Folder that gets TOOL/results.csv (VNN-COMP).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@click.option("--set", "settings", multiple=True, metavar="NAME.KEY=VALUE", help="Option of a tool; repeatable.")
@json_option
def command(
    path: Path,
    verifiers: tuple[str, ...],
    spec: Path | None,
    start: int | None,
    samples: int | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Ask external verifiers about the open samples of a run or a model, a folder with instances.csv, or a property.

    Witnesses are replayed, and verdicts held against each other and against ctkd's own. Answers are stored one by
    one; the same command goes on where it was stopped.
    """
    from ctkd.verify.command import verify

    names = [name.strip() for text in verifiers for name in text.split(",")]
    if not all(names):
        raise BadInput(f"--verifier {' '.join(verifiers)}: a name is missing beside a comma")
    values = certify_settings(samples, start, settings)
    found = verify(path, names, specification=spec, settings=values, reporter=reporter(), **options)
    show(found, as_json=as_json)


def show(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Raises: BadInput for what could not be asked about; RunFailed where nothing was answered but by errors."""
    print_json(found) if as_json else _table(found)
    if found["unusable"]:
        raise BadInput(*(f"{name} was not asked about: {why}" for name, why in found["unusable"].items()))
    tools = found["verifiers"]
    counts = {verdict: sum(tool[verdict] for tool in tools.values()) for verdict in VERDICTS}
    if counts["error"] and counts["error"] == sum(counts.values()):
        reasons = sorted({reason for tool in tools.values() for reason in tool["errors"]})
        raise RunFailed(
            f"all answers of {', '.join(tools)} are errors ({', '.join(reasons)}); what they printed is in "
            f"{found['results']}, and --retry asks again"
        )


def _table(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"instances asked about: {found['instances']}, of {found['path']}", title_justify="left")
    table.add_column("")
    for column in (*VERDICTS, "seconds"):
        table.add_column(column, justify="right")
    for name, tool in found["verifiers"].items():
        table.add_row(name, *(str(tool[verdict]) for verdict in VERDICTS), f"{tool['seconds']:.1f}")
    console = print_table(table)
    for line in _notes(found):
        console.print(line, highlight=False, soft_wrap=True)


def _notes(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, tool in found["verifiers"].items():
        if tool["errors"]:
            errors = ", ".join(f"{reason} {count}" for reason, count in tool["errors"].items())
            lines.append(f"{name}: errors, which settle nothing: {errors}")
    several = found["settled_by_several"]
    agreement = f", {several} by more than one, which agree" if several else ""
    lines.append(
        f"verified {found['verified']}, falsified with a replayed witness {found['falsified']}{agreement}; "
        f"open {found['open']}"
    )
    if "robust_accuracy_interval" in found:
        low, high = found["robust_accuracy_interval"]
        sign = "is" if low == high else f"lies between {percent(low)} and"
        lines.append(
            f"with all that is stored, robust accuracy on {found['samples']} {found['split']} samples at eps "
            f"{found['eps']:.4g} {sign} {percent(high)}"
        )
    lines.append(f"answers are in {found['results']}")
    return lines
