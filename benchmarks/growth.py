# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``python -m benchmarks growth``: step time and memory as one size of a small convolutional network grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import output, timing
from benchmarks.cases import Case, stack
from benchmarks.process import Entrant, Worker

BASE = {"width": 16, "depth": 4, "batch": 64, "classes": 10}
AXES: dict[str, tuple[int, ...]] = {
    "width": (8, 16, 32, 64),
    "depth": (2, 4, 6, 8),
    "batch": (32, 64, 128, 256),
    "classes": (10, 200, 1000),
}
SHAPE = (3, 32, 32)
STEPS = ("ibp", "crown-ibp")


def case(step: str, width: int, depth: int, batch: int, classes: int, shape: tuple[int, ...] = SHAPE) -> Case:
    """``depth`` 3x3 convolutions, the first with stride 2, and a hidden layer of 128."""
    layers = stack(shape, [(width, 3, 2 if i == 0 else 1, 1) for i in range(depth)], 128, classes)
    return Case(step, "stack", layers, shape, batch, 2 / 255, classes)


def run(
    entrants: Sequence[Entrant],
    steps: Sequence[str],
    axes: dict[str, tuple[int, ...]],
    rounds: int,
    threads: int,
    *,
    base: dict[str, int] = BASE,
    shape: tuple[int, ...] = SHAPE,
    guard: bool = True,
) -> list[dict[str, Any]]:
    results = []
    for axis, values in axes.items():
        for step in steps:
            for value in values:
                made = case(step, **{**base, axis: value}, shape=shape)
                for entrant in entrants:
                    output.say(f"{step}, {axis} {value}, {entrant.label}")
                    results.append(_point(entrant, made, axis, value, rounds, threads, guard))
    return results


def _point(
    entrant: Entrant, made: Case, axis: str, value: int, rounds: int, threads: int, guard: bool
) -> dict[str, Any]:
    with Worker(entrant, made, threads) as worker:
        least = 0.0 if rounds == 1 else timing.LEAST
        own = [worker.process.pid]
        samples = timing.interleave({"": worker.step}, rounds, own, least=least, guard=guard)[""]
        memory = worker.end()["peak"] - worker.memory_before
    return {
        "contender": entrant.label,
        "facts": worker.facts,
        "axis": axis,
        "value": value,
        "case": asdict(made),
        "samples": samples,
        "seconds": timing.summary(samples),
        "memory": memory,
    }


def show(results: list[dict[str, Any]]) -> None:
    rows = [
        (
            f"{r['axis']} {r['value']}",
            r["case"]["step"],
            r["contender"],
            output.seconds(r["seconds"]["median"]),
            output.megabytes(r["memory"]),
        )
        for r in results
    ]
    notes = ["memory: largest resident set of the process less what it held before the first step"]
    base = ", ".join(f"{key} {value}" for key, value in BASE.items())
    output.table(f"Growth from {base}", ("", "step", "", "median", "memory"), rows, notes)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """One column for each axis: seconds above, memory below."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(r["axis"] for r in results))
    lines = list(dict.fromkeys((r["case"]["step"], r["contender"]) for r in results))
    figure = Figure(figsize=(3.2 * len(axes), 5.6), layout="constrained")
    places = figure.subplots(2, len(axes), squeeze=False, sharex="col")
    for column, axis in enumerate(axes):
        for step, contender in lines:
            points = [r for r in results if (r["axis"], r["case"]["step"], r["contender"]) == (axis, step, contender)]
            x = [p["value"] for p in points]
            label = step if len({c for _, c in lines}) == 1 else f"{step}, {contender}"
            y = [1000 * p["seconds"]["median"] for p in points]
            low, high = ([1000 * p["seconds"]["quartiles"][i] for p in points] for i in (0, 1))
            (line,) = places[0][column].plot(x, y, marker="o", markersize=4, label=label)
            places[0][column].fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            memory = [p["memory"] / 2**20 for p in points]
            places[1][column].plot(x, memory, marker="o", markersize=4, color=line.get_color())
        for row in places:
            row[column].set_ylim(0, 1.08 * row[column].dataLim.y1)
            row[column].grid(alpha=0.3)
        places[1][column].set_xlabel(axis)
        places[1][column].set_xticks(sorted({r["value"] for r in results if r["axis"] == axis}))
    places[0][0].set_ylabel("ms per step (median, quartiles)")
    places[1][0].set_ylabel("memory, MiB")
    places[0][0].legend(frameon=False)
    figure.savefig(path, dpi=150)
