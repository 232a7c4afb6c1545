# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified accuracy of every finished run of the two grids, one mark for each seed.

python docs/results/mnist-grid/plot.py docs/results/img/mnist-grid.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import grid
import matplotlib as mpl
import wide
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMNS = {  # colour and mark
    ("none", "none"): ("no teacher", "#1b2026", "o"),
    ("features", "pgd"): ("features, PGD teacher", "#0072b2", "s"),
    ("features", "natural"): ("features, natural teacher", "#4a9fd0", "s"),
    ("logits", "pgd"): ("logits, PGD teacher", "#d55e00", "^"),
    ("logits", "natural"): ("logits, natural teacher", "#c98800", "^"),
    ("features+logits", "pgd"): ("both, PGD teacher", "#009e73", "D"),
    ("features+logits", "natural"): ("both, natural teacher", "#6b6b00", "D"),
}
PANELS = {
    "0.1": "eps 0.1, 10,000 test images",
    "0.3": "eps 0.3, 10,000 test images",
    "complete-0.3": "the same, complete, 1,000",
}


def rows() -> list[dict[str, Any]]:
    found = [json.loads(line) for line in grid.ROWS.read_text().splitlines()]
    found = [{**row, "part": "0.1"} for row in found]
    found += [json.loads(line) for line in wide.ROWS.read_text().splitlines()]
    return [row for row in found if row["kind"] == "run"]


def drawn(found: list[dict[str, Any]]) -> Figure:
    present = {part: [row for row in found if row["part"] == part] for part in PANELS}
    methods = {
        part: [bound for bound in wide.PARTS["0.1"].choices if any(row["bound"] == bound for row in here)]
        for part, here in present.items()
    }
    widths = [len(names) + 0.4 for names in methods.values()]
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (part, title) in zip(figure.subplots(1, len(PANELS), width_ratios=widths), PANELS.items(), strict=True):
        columns = [
            column
            for column in COLUMNS
            if any((row["objective"].removesuffix("-box"), row["teacher"]) == column for row in present[part])
        ]
        step = 0.8 / max(len(columns), 4)
        for place, bound in enumerate(methods[part]):
            for number, (objective, teacher) in enumerate(columns):
                label, colour, mark = COLUMNS[objective, teacher]
                values = [
                    100 * row["certified_accuracy"]
                    for row in present[part]
                    if (row["bound"], row["objective"].removesuffix("-box"), row["teacher"])
                    == (bound, objective, teacher)
                ]
                if not values:
                    continue
                x = place + (number - (len(columns) - 1) / 2) * step
                axes.plot([x] * len(values), values, mark, color=colour, markersize=4, alpha=0.75, mew=0, label=label)
                mean = statistics.mean(values)
                axes.plot([x - 0.4 * step, x + 0.4 * step], [mean, mean], "-", color=colour, linewidth=1.6)
        axes.set_xticks(range(len(methods[part])), methods[part], rotation=30, ha="right")
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for edge in range(1, len(methods[part])):
            axes.axvline(edge - 0.5, color="#e6eaee", linewidth=0.6)
    figure.axes[0].set_ylabel("certified accuracy (%)")
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    ordered = [label for label, *_ in COLUMNS.values() if label in handles]
    figure.legend([handles[name] for name in ordered], ordered, loc="outside upper center", ncols=4, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    with mpl.rc_context({"font.size": 9}):
        drawn(rows()).savefig(parser.parse_args().out, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
