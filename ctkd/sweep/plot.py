# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The picture of a sweep: its front, or, with one objective, its course."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.storage import write_bytes

if TYPE_CHECKING:
    from ctkd.sweep.study import Outcome

GREY, BLUE = "#9a9a93", "#1f5fa8"


def plot(outcomes: Sequence[Outcome], objectives: Sequence[str], path: Path) -> None:
    """Write a PNG: the first two objectives against each other, or one over the trials. Bars are the seeds' spread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw = _front if len(objectives) > 1 else _course
    draw(axes, outcomes, objectives)
    axes.grid(visible=True, linewidth=0.5, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def _front(axes: Any, outcomes: Sequence[Outcome], objectives: Sequence[str]) -> None:
    x, y = objectives[:2]
    for part, colour, label in ((False, GREY, "other trials"), (True, BLUE, "front")):
        chosen = sorted((o for o in outcomes if o.front == part), key=lambda o: o.mean[x])
        if not chosen:
            continue
        _bars(axes, [o.mean[x] for o in chosen], chosen, (x, y), colour, label)
        for outcome in chosen if part else ():
            place = (outcome.mean[x], outcome.mean[y])
            axes.annotate(str(outcome.number), place, xytext=(5, 5), textcoords="offset points", fontsize=9)
    if len(objectives) == 2:
        front = sorted((o.mean[x], o.mean[y]) for o in outcomes if o.front)
        axes.plot(*zip(*front, strict=True), color=BLUE, linewidth=0.8, alpha=0.5)
    axes.set(xlabel=_words(x), ylabel=_words(y))
    _scale(axes.xaxis, x)
    _scale(axes.yaxis, y)


def _course(axes: Any, outcomes: Sequence[Outcome], objectives: Sequence[str]) -> None:
    (name,) = objectives
    for part, colour, label in ((False, GREY, "trials"), (True, BLUE, "best")):
        chosen = [o for o in outcomes if o.front == part]
        _bars(axes, [o.number for o in chosen], chosen, (None, name), colour, label)
    axes.set(xlabel="trial", ylabel=_words(name))
    _scale(axes.yaxis, name)


def _bars(
    axes: Any,
    places: Sequence[float],
    chosen: Sequence[Outcome],
    names: tuple[str | None, str],
    colour: str,
    label: str,
) -> None:
    x, y = names
    axes.errorbar(
        places,
        [o.mean[y] for o in chosen],
        yerr=[o.spread[y] or 0.0 for o in chosen],
        xerr=None if x is None else [o.spread[x] or 0.0 for o in chosen],
        fmt="o",
        color=colour,
        elinewidth=0.8,
        label=label,
    )


def _words(name: str) -> str:
    return f"{name.replace('_', ' ')} (validation)" if name.endswith("accuracy") else name


def _scale(axis: Any, name: str) -> None:
    from matplotlib.ticker import PercentFormatter

    if name.endswith("accuracy"):
        axis.set_major_formatter(PercentFormatter(1.0))
