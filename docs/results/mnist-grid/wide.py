# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The grid of grid.py with more methods, both teachers for each objective, eps 0.3, and a part for complete verifiers.

    python docs/results/mnist-grid/wide.py --data-dir data [--jobs 2] [--revision HEAD] [--seeds 0 1 2] [--parts 0.3]
    python docs/results/mnist-grid/wide.py --data-dir data --again 17      # row 17 once more, beside what is stored

Each method has the same budget: two short trials without a teacher, with seed 0, on 2,000 validation images; the better
mean of natural and certified accuracy chooses the option with which all its cells run. Objectives have the weights that
most trials of grid.py chose. Runs go seed by seed on test images: all 10,000, in the parts `complete` the first 1,000.
Rows are appended to wide-rows.jsonl as they are finished and not run again; the cells of grid.py at eps 0.1, which were
tuned one by one, are left to it. `--table` prints what is
there, and differences from no teacher by seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grid

ROWS = grid.HERE / "wide-rows.jsonl"
ON_POINTS = ("features", "logits", "features+logits")
OBJECTIVES = {"mtl-ibp": ON_POINTS, "exp-ibp": ON_POINTS, "taps": ("features",)}
"""`logits` acts where a method takes a loss on a point; elsewhere its variant on the worst case stands for it, and
`features+logits` would be `features`. TAPS has a loss of its own on the worst case: `logits-box` would replace it."""

WEIGHTS: dict[tuple[str, str], dict[str, Any]] = {
    ("features", "pgd"): {"distill.weight": 1.0},
    ("features", "natural"): {"distill.weight": 0.1},
    ("logits", "pgd"): {"distill.weight": 0.5},
    ("logits", "natural"): {"distill.weight": 0.5},
    ("logits-box", "pgd"): {"distill.weight": 1.0},
    ("logits-box", "natural"): {"distill.weight": 1.0},
    ("features+logits", "pgd"): {"distill.feature_weight": 1.0},
    ("features+logits", "natural"): {"distill.feature_weight": 1.0},
}
"""By objective and teacher."""


@dataclass(frozen=True)
class Part:
    """Methods with the options that are tried, and what their runs and trials add to grid.py's common settings."""

    choices: dict[str, list[dict[str, Any]]]
    runs: dict[str, Any]
    trials: dict[str, Any]
    teachers: tuple[str, ...] = ("pgd", "natural")
    only: tuple[str, ...] | None = None
    """These objectives; all, without."""
    weights: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """In place of those in ``WEIGHTS``."""
    against: str | None = None
    """The part that has its cells without a teacher; itself, without."""


def _over(key: str, *values: float) -> list[dict[str, Any]]:
    return [{key: value} for value in values]


AT_03 = {
    "train.eps": 0.3,
    "train.epochs": 12,
    "train.ramp": 6.0,
    "train.milestones": "[9.0, 11.0]",
    "train.average_from": 9.0,
}
COMPLETE = {
    "certify.samples": 1000,
    "certify.stages": '["ibp","crown-ibp","crown","alpha-crown",{name="complete",timeout=20}]',
}
PARTS = {
    "0.1": Part(
        {
            "ibp": _over("train.train_eps_factor", 1.0, 1.2),
            "crown-ibp": _over("bound.beta_end", 1.0, 0.0),
            "sabr": _over("bound.lam", 0.7, 0.9),
            "cc-ibp": _over("bound.alpha", 0.4, 0.7),
            "mtl-ibp": _over("bound.alpha", 0.4, 0.7),
            "exp-ibp": _over("bound.alpha", 0.4, 0.7),
            "taps": _over("bound.gradient_scale", 5.0, 2.0),
        },
        {},
        grid.TRIAL,
    ),
    "0.3": Part(
        {
            "ibp": _over("train.train_eps_factor", 1.0, 1.1),
            "crown-ibp": _over("bound.beta_end", 1.0, 0.0),
            "sabr": _over("bound.lam", 0.8, 0.95),
            "cc-ibp": _over("bound.alpha", 0.6, 0.85),
            "mtl-ibp": _over("bound.alpha", 0.6, 0.85),
            "exp-ibp": _over("bound.alpha", 0.6, 0.85),
            "taps": _over("bound.gradient_scale", 5.0, 2.0),
        },
        AT_03,
        {
            **grid.TRIAL,
            "train.epochs": 8,
            "train.ramp": 4.0,
            "train.milestones": "[6.0, 7.0]",
            "train.average_from": 6.0,
        },
    ),
    # Small alphas leave much to a complete verifier; nothing is tried out.
    "complete": Part(
        {"cc-ibp": _over("bound.alpha", 0.02), "mtl-ibp": _over("bound.alpha", 0.02)},
        {
            "attack.steps": 4,
            "attack.step_size": 0.5,
            **COMPLETE,
        },
        {},
        teachers=("pgd",),
    ),
    # Students of part 0.3 once more (the same seed gives the same weights), with what its trials chose.
    "complete-0.3": Part(
        {
            "ibp": _over("train.train_eps_factor", 1.0),
            "cc-ibp": _over("bound.alpha", 0.6),
            "mtl-ibp": _over("bound.alpha", 0.6),
        },
        AT_03 | COMPLETE,
        {},
        teachers=("pgd",),
    ),
    # Is it the weight, in which the two teachers' features differ?
    "light-0.3": Part(
        {
            "ibp": _over("train.train_eps_factor", 1.0),
            "sabr": _over("bound.lam", 0.8),
            "cc-ibp": _over("bound.alpha", 0.6),
            "mtl-ibp": _over("bound.alpha", 0.6),
        },
        AT_03,
        {},
        teachers=("pgd",),
        only=("features",),
        weights={("features", "pgd"): {"distill.weight": 0.1}},
        against="0.3",
    ),
}


class Cell(NamedTuple):
    part: str
    bound: str
    objective: str
    teacher: str


def cells() -> Iterator[Cell]:
    for name, part in PARTS.items():
        for bound in part.choices:
            if part.only is None or "none" in part.only:
                yield Cell(name, bound, "none", "none")
            objectives = OBJECTIVES.get(bound, ("features", "logits-box"))
            objectives = tuple(each for each in objectives if part.only is None or each in part.only)
            for objective, teacher in itertools.product(objectives, part.teachers):
                yield Cell(name, bound, objective, teacher)


def missing_from(tuned: list[dict[str, Any]]) -> list[Cell]:
    """The cells that grid.py does not have."""
    found = {(row["bound"], row["objective"], row["teacher"]) for row in tuned}
    return [cell for cell in cells() if cell.part != "0.1" or cell[1:] not in found]


@dataclass(frozen=True)
class Runner:
    book: grid.Book
    data_dir: str
    code: grid.Code

    def trial(self, part: str, bound: str, options: dict[str, Any]) -> dict[str, Any]:
        cell = Cell(part, bound, "none", "none")
        return self._row(cell, "trial", options, 0, PARTS[part].runs | PARTS[part].trials)

    def run(self, cell: Cell, seed: int) -> dict[str, Any]:
        part = PARTS[cell.part]
        choices = part.choices[cell.bound]
        best = choices[0]
        if len(choices) > 1:
            tried = [self.trial(cell.part, cell.bound, options) for options in choices]
            best = max(tried, key=lambda row: row["natural_accuracy"] + row["certified_accuracy"])["options"]
        return self._row(cell, "run", best, seed, part.runs)

    def _row(
        self, cell: Cell, kind: str, options: dict[str, Any], seed: int, settings: dict[str, Any]
    ) -> dict[str, Any]:
        settings = {**grid.COMMON, **settings, **options, "train.seed": seed}
        settings |= {"bound.name": cell.bound, "distill.name": cell.objective, "teacher.name": cell.teacher}
        if cell.teacher != "none":
            settings |= {"teacher.epochs": 8, **(WEIGHTS | PARTS[cell.part].weights)[cell.objective, cell.teacher]}
        found = self.book.find(kind=kind, settings=settings)
        if found is None:
            found = {**cell._asdict(), "kind": kind, "options": options, "seed": seed, "settings": settings}
            found |= measured(settings, self.data_dir, self.code)
            self.book.add(found)
            figures = f"{found['natural_accuracy']:.2%} / {found['certified_accuracy']:.2%}"
            print(*cell, options, kind, f"seed {seed}: {figures}", flush=True)
        return found


def measured(settings: dict[str, Any], data_dir: str, code: grid.Code) -> dict[str, Any]:
    """Train and certify."""
    summary = grid.run(settings, data_dir, code)
    keys = ("natural_accuracy", "adversarial_accuracy", "certified_accuracy", "stages", "samples", "split", "seconds")
    figures = {key: summary[key] for key in keys} | {"teacher_figures": summary["teacher"]}
    return figures | {"versions": summary["versions"], "commit": code.commit}


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, in percent."""
    print("| part | bound | objective | teacher | chosen | natural | adversarial | certified | seeds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in cells():
        found = [row for row in rows if row["kind"] == "run" and all(row[k] == v for k, v in cell._asdict().items())]
        if found:
            kinds = ("natural", "adversarial", "certified")
            figures = " | ".join(spread([100 * row[f"{kind}_accuracy"] for row in found]) for kind in kinds)
            chosen = ", ".join(f"`{key}={value}`" for key, value in found[0]["options"].items())
            names = f"{cell.part} | `{cell.bound}` | `{cell.objective}` | {cell.teacher}"
            print(f"| {names} | {chosen} | {figures} | {len(found)} |")


def differences(rows: list[dict[str, Any]]) -> None:
    """Certified accuracy against the same method and seed without a teacher: by seed, then the mean and its error."""
    runs = [row for row in rows if row["kind"] == "run"]
    found: dict[Cell, list[tuple[int, float]]] = {}
    for cell in cells():
        for row in runs:
            if cell.objective == "none" or any(row[key] != value for key, value in cell._asdict().items()):
                continue
            part = PARTS[cell.part].against or cell.part
            plain = Cell(part, cell.bound, "none", "none")._asdict() | {"seed": row["seed"]}
            for other in runs:
                if all(other[key] == value for key, value in plain.items()):
                    points = 100 * (row["certified_accuracy"] - other["certified_accuracy"])
                    found.setdefault(cell, []).append((row["seed"], points))
    for part in dict.fromkeys(cell.part for cell in found):
        columns = list(dict.fromkeys((_kind(cell), cell.teacher) for cell in found if cell.part == part))
        print(f"\n| {part} | " + " | ".join(f"{kind}, {teacher}" for kind, teacher in columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for bound in dict.fromkeys(cell.bound for cell in found if cell.part == part):
            here = {(_kind(c), c.teacher): values for c, values in found.items() if (c.part, c.bound) == (part, bound)}
            print(f"| `{bound}` | " + " | ".join(_paired(sorted(here.get(column, []))) for column in columns) + " |")
        every = [
            [p for c, values in found.items() if (c.part, _kind(c), c.teacher) == (part, *column) for _, p in values]
            for column in columns
        ]
        print("| all pairs | " + " | ".join(f"{_mean(values)}, of {len(values)}" for values in every) + " |")


def _kind(cell: Cell) -> str:
    return cell.objective.removesuffix("-box")


def _paired(values: list[tuple[int, float]]) -> str:
    points = [value for _, value in values]
    by_seed = ", ".join(f"{value:+.2f}" for value in points)
    return by_seed if len(points) < 2 else f"{by_seed}: {_mean(points)}"


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{value:+.2f}" for value in values)
    return f"{statistics.mean(values):+.2f} ({statistics.stdev(values) / len(values) ** 0.5:.2f})"


def spread(values: list[float]) -> str:
    return grid.spread(values) if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with MNIST's files")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--revision", default="HEAD", help="whose code runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--bounds", nargs="+", choices=list(PARTS["0.1"].choices), help="only these methods")
    parser.add_argument("--teachers", nargs="+", choices=["none", "pgd", "natural"], help="only these teachers")
    parser.add_argument("--again", type=int, metavar="ROW", help="run one stored row again, from 1, and compare")
    parser.add_argument("--table", action="store_true", help="print the table of finished rows and stop")
    options = parser.parse_args()
    book = grid.Book(False, ROWS)
    if options.table:
        table(book.rows)
        differences(book.rows)
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
    todo = [cell for cell in missing_from(tuned) if cell.part in options.parts]
    todo = [cell for cell in todo if options.bounds is None or cell.bound in options.bounds]
    todo = [cell for cell in todo if options.teachers is None or cell.teacher in options.teachers]
    todo.sort(key=lambda cell: cell.teacher == "natural")  # last, where time does not carry to the end
    with ThreadPoolExecutor(options.jobs) as pool:
        tried = [
            pool.submit(runner.trial, part, bound, choice)
            for part, bound in dict.fromkeys((cell.part, cell.bound) for cell in todo)
            for choice in PARTS[part].choices[bound]
            if PARTS[part].trials
        ]
        for future in tried:
            future.result()
        for future in [pool.submit(runner.run, cell, seed) for seed in options.seeds for cell in todo]:
            future.result()


if __name__ == "__main__":
    main()
