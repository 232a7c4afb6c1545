# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctkd.cli.common import json_option, print_json
from ctkd.errors import BadInput

EPILOG = """\b
Examples:
  ctkd export runs/NAME instances --samples 20 --seed 1
  ctkd export runs/NAME instances --eps 2/255 --timeout 120
  ctkd export runs/NAME benchmark --format vnncomp --seed 1
  ctkd export runs/NAME benchmark --format vnncomp --mix cheap=10,tight=20,undecided=20,broken=10 --budget 7200
"""
FOLDER_ONLY = ("timeout",)
BENCHMARK_ONLY = ("mix", "budget", "pool", "cheap", "name")


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["folder", "vnncomp"]),
    default="folder",
    show_default=True,
    help="folder: instances of one seed. vnncomp: a whole benchmark with a generator for any seed.",
)
@click.option("--samples", type=int, help="Correctly classified images to export; default: 10, of a benchmark 60.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which images.")
@click.option("--eps", help="Radius; default: the run's.")
@click.option("--timeout", type=float, help="Seconds per instance of a folder; default: 60.")
@click.option("--mix", help="Instances of each outcome; default: as even as it can be.")
@click.option("--budget", type=float, help="Seconds that a benchmark's timeouts add up to; default: 21600, the limit.")
@click.option("--pool", type=int, help="Images of each outcome that a benchmark carries, to draw from; default: 200.")
@click.option("--cheap", help="Certification stages that count as cheap; default: ibp,crown-ibp.")
@click.option("--name", help="Of a benchmark's network; default: data set and model.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@json_option
def command(
    run: Path, folder: Path, form: str, eps: str | None, data_dir: Path | None, as_json: bool, **given: Any
) -> None:
    """Write what external verifiers read into FOLDER: onnx/, vnnlib/ and instances.csv.

    --format vnncomp makes a repository for the VNN competition out of results of `ctkd certify`: properties in VNN-LIB
    1.0 and 2.0, a generator, an image pool, counterexamples, a README. Outcomes, for --mix: cheap and tight (certified
    by a cheap stage, by others only), undecided, broken (by the attack).
    """
    options = {name: value for name, value in given.items() if value is not None}
    foreign = [name for name in (BENCHMARK_ONLY if form == "folder" else FOLDER_ONLY) if name in options]
    if foreign:
        other = "vnncomp" if form == "folder" else "folder"
        raise BadInput(*(f"--{name} belongs to --format {other}; this is --format {form}" for name in foreign))
    if form == "folder":
        from ctkd.run import export

        report = export(run, folder, eps=eps, data_dir=data_dir, **options)
        line = f"{report['instances']} instances of {report['model']} at eps {report['eps']:.4g} in {folder}"
    else:
        from ctkd.cli.common import reporter
        from ctkd.run import export_benchmark

        if "cheap" in options:
            options["cheap"] = tuple(name.strip() for name in options["cheap"].split(","))
        report = export_benchmark(run, folder, eps=eps, data_dir=data_dir, reporter=reporter(), **options)
        line = _told(report)
    print_json(report) if as_json else print(line)


def _told(report: dict[str, Any]) -> str:
    """What was written, for people."""
    shares = ", ".join(
        f"{report['mix'][outcome]} {outcome} ({seconds} s each, of {report['pool'][outcome]} images)"
        for outcome, seconds in report["timeouts"].items()
    )
    lines = [
        f"{report['instances']} instances at eps {report['eps']:.4g} in {report['folder']}: {shares}",
        f"timeouts: {report['total_timeout']} s in all",
    ]
    missing = [outcome for outcome, images in report["pool"].items() if not images]
    if missing:
        lines.append(f"no images are {' or '.join(missing)}; a benchmark should be mixed")
    if report["without_witness"]:
        lines.append(
            f"left out: {report['without_witness']} broken images whose counterexample does not pass the strict check"
        )
    return "\n".join([*lines, "README.md is a draft: what is left to write is marked TODO"])
