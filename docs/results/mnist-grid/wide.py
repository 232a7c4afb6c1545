# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The grid of grid.py with more methods, both teachers for each objective, and eps 0.3: wide-rows.jsonl.

    python docs/results/mnist-grid/wide.py --data-dir data [--jobs 2] [--revision HEAD] [--seeds 0 1 2]
    python docs/results/mnist-grid/wide.py --data-dir data --again 17      # row 17 once more, beside what is stored

Each method has the same budget: two short trials without a teacher, with seed 0, on 2,000 validation images; the better
mean of natural and certified accuracy chooses the option with which all its cells run. Objectives have their default
weights. Runs go seed by seed, each on all 10,000 test images. Finished rows are not run again, and the cells of grid.py
at eps 0.1, which were tuned one by one, are left to it. `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grid

ROWS = grid.HERE / "wide-rows.jsonl"
SCHEDULES: dict[float, dict[str, Any]] = {
    0.1: {},
    0.3: {
        "train.eps": 0.3,
        "train.epochs": 12,
        "train.ramp": 6.0,
        "train.milestones": "[9.0, 11.0]",
        "train.average_from": 9.0,
    },
}
TRIALS: dict[float, dict[str, Any]] = {
    0.1: grid.TRIAL,
    0.3: {
        **grid.TRIAL,
        "train.epochs": 8,
        "train.ramp": 4.0,
        "train.milestones": "[6.0, 7.0]",
        "train.average_from": 6.0,
    },
}
TEACHER_EPOCHS = 8
CHOICES: dict[float, dict[str, list[dict[str, Any]]]] = {
    0.1: {
        "ibp": [{"train.train_eps_factor": 1.0}, {"train.train_eps_factor": 1.2}],
        "crown-ibp": [{"bound.beta_end": 1.0}, {"bound.beta_end": 0.0}],
        "sabr": [{"bound.lam": 0.7}, {"bound.lam": 0.9}],
        "cc-ibp": [{"bound.alpha": 0.4}, {"bound.alpha": 0.7}],
        "mtl-ibp": [{"bound.alpha": 0.4}, {"bound.alpha": 0.7}],
        "exp-ibp": [{"bound.alpha": 0.4}, {"bound.alpha": 0.7}],
        "taps": [{"bound.gradient_scale": 5.0}, {"bound.gradient_scale": 2.0}],
    },
    0.3: {
        "ibp": [{"train.train_eps_factor": 1.0}, {"train.train_eps_factor": 1.1}],
        "crown-ibp": [{"bound.beta_end": 1.0}, {"bound.beta_end": 0.0}],
        "sabr": [{"bound.lam": 0.8}, {"bound.lam": 0.95}],
        "cc-ibp": [{"bound.alpha": 0.6}, {"bound.alpha": 0.85}],
        "mtl-ibp": [{"bound.alpha": 0.6}, {"bound.alpha": 0.85}],
        "exp-ibp": [{"bound.alpha": 0.6}, {"bound.alpha": 0.85}],
        "taps": [{"bound.gradient_scale": 5.0}, {"bound.gradient_scale": 2.0}],
    },
}
ON_POINTS = ("mtl-ibp", "exp-ibp")
"""Methods that take a loss on a point: `logits` acts there; elsewhere its variant on the worst case stands for it."""


class Cell(NamedTuple):
    eps: float
    bound: str
    objective: str
    teacher: str


def cells() -> Iterator[Cell]:
    """Without a point, features+logits is features: those cells are left out."""
    for eps in SCHEDULES:
        for bound in CHOICES[eps]:
            yield Cell(eps, bound, "none", "none")
            logits = ("logits", "features+logits") if bound in ON_POINTS else ("logits-box",)
            for objective in ("features", *logits):
                for teacher in ("pgd", "natural"):
                    yield Cell(eps, bound, objective, teacher)


def missing_from(tuned: list[dict[str, Any]]) -> list[Cell]:
    """The cells that grid.py does not have."""
    found = {(row["bound"], row["objective"], row["teacher"]) for row in tuned}
    return [cell for cell in cells() if cell.eps != 0.1 or cell[1:] not in found]


class Runner:
    def __init__(self, book: grid.Book, data_dir: str, code: grid.Code) -> None:
        self.book, self.data_dir, self.code = book, data_dir, code

    def settings(self, cell: Cell, options: dict[str, Any], seed: int, *, trial: bool) -> dict[str, Any]:
        found = {**grid.COMMON, **SCHEDULES[cell.eps]}
        found |= {"bound.name": cell.bound, "distill.name": cell.objective, "teacher.name": cell.teacher}
        if cell.teacher != "none":
            found["teacher.epochs"] = TEACHER_EPOCHS
        return {**found, **(TRIALS[cell.eps] if trial else {}), **options, "train.seed": seed}

    def row(self, cell: Cell, kind: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
        settings = self.settings(cell, options, seed, trial=kind == "trial")
        found = self.book.find(kind=kind, settings=settings)
        if found is None:
            found = {**cell._asdict(), "kind": kind, "options": options, "seed": seed, "settings": settings}
            found |= measured(settings, self.data_dir, self.code)
            self.book.add(found)
            figures = f"{found['natural_accuracy']:.2%} / {found['certified_accuracy']:.2%}"
            print(f"{cell.eps} {cell.bound} {cell.objective} {cell.teacher} {kind} {seed}: {figures}", flush=True)
        return found

    def trial(self, eps: float, bound: str, number: int) -> None:
        self.row(Cell(eps, bound, "none", "none"), "trial", CHOICES[eps][bound][number], 0)

    def run(self, cell: Cell, seed: int) -> None:
        tried = [self.row(cell._replace(objective="none", teacher="none"), "trial", options, 0)
                 for options in CHOICES[cell.eps][cell.bound]]  # fmt: skip
        best = max(tried, key=lambda row: row["natural_accuracy"] + row["certified_accuracy"])
        self.row(cell, "run", best["options"], seed)


def measured(settings: dict[str, Any], data_dir: str, code: grid.Code) -> dict[str, Any]:
    summary = grid.run(settings, data_dir, code)
    keys = ("natural_accuracy", "adversarial_accuracy", "certified_accuracy", "samples", "split", "seconds")
    figures = {key: summary[key] for key in keys} | {"teacher_figures": summary["teacher"]}
    return figures | {"versions": summary["versions"], "commit": code.commit}


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, in percent."""
    print("| eps | bound | objective | teacher | natural | adversarial | certified | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in cells():
        found = [row for row in rows if row["kind"] == "run" and all(row[k] == v for k, v in cell._asdict().items())]
        if found:
            kinds = ("natural", "adversarial", "certified")
            figures = " | ".join(spread([100 * row[f"{kind}_accuracy"] for row in found]) for kind in kinds)
            names = f"{cell.eps} | `{cell.bound}` | `{cell.objective}` | {cell.teacher}"
            print(f"| {names} | {figures} | {len(found)} |")


def spread(values: list[float]) -> str:
    return grid._spread(values) if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with MNIST's files")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--revision", default="HEAD", help="whose code runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", type=int, metavar="ROW", help="run one stored row again, from 1, and compare")
    parser.add_argument("--table", action="store_true", help="print the table of finished rows and stop")
    options = parser.parse_args()
    book = grid.Book(False, ROWS)
    if options.table:
        table(book.rows)
        return
    code, data_dir = grid.Code(options.revision), str(Path(options.data_dir).resolve())
    if options.again is not None:
        stored = book.rows[options.again - 1]
        found = measured(stored["settings"], data_dir, code)
        for key in ("natural_accuracy", "adversarial_accuracy", "certified_accuracy"):
            print(f"{key}: {found[key]:.4f} (stored {stored[key]:.4f})")
        return
    runner = Runner(book, data_dir, code)
    tuned = [json.loads(line) for line in grid.ROWS.read_text().splitlines()]
    todo = missing_from(tuned)
    with ThreadPoolExecutor(options.jobs) as pool:
        chosen = dict.fromkeys((cell.eps, cell.bound) for cell in todo)
        for _ in pool.map(lambda each: runner.trial(*each), [(*pair, n) for pair in chosen for n in (0, 1)]):
            pass
        for seed in options.seeds:
            for _ in pool.map(lambda cell, seed=seed: runner.run(cell, seed), todo):
                pass


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
