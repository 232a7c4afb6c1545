# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Does a teacher help, which objective, and must it be adversarially trained? A grid on MNIST, eps 0.1, `cnn-small`.

    python docs/results/mnist-grid/grid.py --data-dir data [--jobs 2] [--revision 2d237f8] [--commit]

Each cell (bound method, objective, teacher) gets the same budget: four short trials on validation images with seed 0,
of which the one with the best mean of natural and certified accuracy is chosen, then a run with each of three seeds on
all 10,000 test images. Rows are appended to rows.jsonl as they are finished, each with all settings of its run; a row
with the same settings is not run again, so the program can be stopped and started at will. All runs use the code of one
revision, taken out of git, whatever is edited meanwhile. `--table` prints means and spreads of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = HERE / "rows.jsonl"
SEEDS = (0, 1, 2)
COMMON = {
    "data.name": "mnist",
    "model.name": "cnn-small",
    "train.eps": 0.1,
    "train.epochs": 8,
    "train.warmup": 0.5,
    "train.ramp": 3.0,
    "train.milestones": "[6.0, 7.0]",
    "train.average_from": 6.0,
    "train.lr": 2e-3,
    "train.batch_size": 256,
    "train.final": "false",
    "train.threads": 1,
    "train.train_eps_factor": 1.0,
    "train.l1": 0.0,
    "data.shift": 0,
    "attack.steps": 1,
    "attack.step_size": 10.0,
    "certify.attack_steps": 10,
    "certify.attack_restarts": 1,
}
TRIAL = {
    "train.epochs": 5,
    "train.milestones": "[3.5, 4.25]",
    "train.average_from": 3.5,
    "train.ramp": 2.0,
    "certify.split": "validation",
    "certify.samples": 2000,
    "train.seed": 0,
}
# The four trials of each method; where there is a teacher, its weight is tried in the place of the second value.
BOUNDS: dict[str, list[dict[str, Any]]] = {
    "ibp": [{"train.train_eps_factor": 1.0}, {"train.train_eps_factor": 1.2}],
    "sabr": [{"bound.lam": 0.7}, {"bound.lam": 0.9}],
    "cc-ibp": [{"bound.alpha": 0.4}, {"bound.alpha": 0.7}],
    "mtl-ibp": [{"bound.alpha": 0.4}, {"bound.alpha": 0.7}],
}
SECOND: dict[str, list[dict[str, Any]]] = {
    "none": [{}, {"train.l1": 5e-6}],
    "features": [{"distill.weight": 0.1}, {"distill.weight": 1.0}],
    "logits": [{"distill.weight": 0.5}, {"distill.weight": 1.0}],
    "logits-box": [{"distill.weight": 0.5}, {"distill.weight": 1.0}],
    "features+logits": [{"distill.feature_weight": 0.1}, {"distill.feature_weight": 1.0}],
}


def cells() -> Iterator[tuple[str, str, str]]:
    """Bound method, objective, teacher. Where no loss is taken on a point, the worst-case variant stands for logits."""
    for bound, objective in itertools.product(BOUNDS, ("none", "features", "logits")):
        name = "logits-box" if objective == "logits" and bound != "mtl-ibp" else objective
        for teacher in ("none",) if objective == "none" else ("pgd", "natural"):
            if (objective, teacher) != ("logits", "natural"):  # one column with a natural teacher
                yield bound, name, teacher
    yield "mtl-ibp", "features+logits", "pgd"


def trials(bound: str, objective: str) -> list[dict[str, Any]]:
    return [{**a, **b} for a, b in itertools.product(BOUNDS[bound], SECOND[objective])]


class Book:
    """The finished rows."""

    def __init__(self, commit: bool, file: Path = ROWS) -> None:
        self.lock = threading.Lock()
        self.commit, self.file = commit, file
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        with self.lock:
            return next((r for r in self.rows if all(r.get(key) == value for key, value in wanted.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        with self.lock:
            self.rows.append(row)
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if self.commit:
                text = f"Grid: {row['bound']}, {row['objective']}, {row['teacher']}, {row['kind']}"
                subprocess.run(["git", "add", self.file.name], cwd=HERE, check=True)
                subprocess.run(["git", "commit", "-qm", text, "--", self.file.name], cwd=HERE, check=True)


class Code:
    """The package ``ctkd`` of one revision, in a folder of its own."""

    def __init__(self, revision: str) -> None:
        found = subprocess.run(["git", "rev-parse", revision], cwd=HERE, capture_output=True, text=True, check=True)
        self.commit = found.stdout.strip()
        self.folder = tempfile.TemporaryDirectory()
        root = HERE.parent.parent.parent
        packed = subprocess.run(["git", "archive", self.commit, "ctkd"], cwd=root, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", self.folder.name], input=packed.stdout, check=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": self.folder.name,
            "OMP_NUM_THREADS": "1",
            "CTKD_LOAD_PLUGINS": "",
        }


def run(settings: dict[str, Any], data_dir: str, code: Code) -> dict[str, Any]:
    """One ``ctkd train``; its summary."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "ctkd", "train", *arguments, "--set", f"data.dir={data_dir}"]
        done = subprocess.run(
            [*command, "--out", f"{folder}/run", "--json"],
            capture_output=True,
            text=True,
            env=code.environment,
            cwd=folder,  # not the repository, whose package Python would find first
        )
    if done.returncode:
        raise RuntimeError(f"{settings}: {done.stderr.strip()}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def cell(bound: str, objective: str, teacher: str, book: Book, data_dir: str, code: Code) -> None:
    """Trials that are not there yet, the choice, and the runs that are not there yet."""
    names = {"bound": bound, "objective": objective, "teacher": teacher}
    base = {**COMMON, "bound.name": bound, "distill.name": objective, "teacher.name": teacher}
    if teacher != "none":
        base["teacher.epochs"] = 8

    def make(kind: str, options: dict[str, Any], extra: dict[str, Any], seed: int) -> dict[str, Any]:
        settings = {**base, **extra, **options, "train.seed": seed}
        found = book.find(kind=kind, settings=settings)
        if found is None:
            summary = run(settings, data_dir, code)
            keys = ("natural_accuracy", "adversarial_accuracy", "certified_accuracy", "samples", "split", "seconds")
            found = {**names, "kind": kind, "options": options, "seed": seed, "settings": settings}
            found |= {key: summary[key] for key in keys} | {"teacher_figures": summary["teacher"]}
            found |= {"versions": summary["versions"], "commit": code.commit}
            book.add(found)
        return found

    tried = [make("trial", options, TRIAL, 0) for options in trials(bound, objective)]
    best = max(tried, key=lambda row: row["natural_accuracy"] + row["certified_accuracy"])
    for seed in SEEDS:
        row = make("run", best["options"], {}, seed)
        figures = f"{row['natural_accuracy']:.2%} / {row['certified_accuracy']:.2%}"
        print(f"{bound} {objective} {teacher} {best['options']} seed {seed}: {figures}", flush=True)


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, in percent."""
    print("| bound | objective | teacher | chosen | natural | adversarial | certified | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for bound, objective, teacher in cells():
        names = {"bound": bound, "objective": objective, "teacher": teacher, "kind": "run"}
        found = [row for row in rows if all(row[key] == value for key, value in names.items())]
        if not found:
            continue
        kinds = ("natural", "adversarial", "certified")
        figures = " | ".join(spread([100 * row[f"{kind}_accuracy"] for row in found]) for kind in kinds)
        chosen = ", ".join(f"`{key}={value}`" for key, value in found[0]["options"].items())
        print(f"| `{bound}` | `{objective}` | {teacher} | {chosen} | {figures} | {len(found)} |")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with MNIST's files")
    parser.add_argument("--jobs", type=int, default=2, help="cells worked on at once, one thread each")
    parser.add_argument("--revision", default="HEAD", help="whose code runs")
    parser.add_argument("--commit", action="store_true", help="commit rows.jsonl after each row")
    parser.add_argument("--table", action="store_true", help="print the table of finished rows and stop")
    options = parser.parse_args()
    book = Book(options.commit)
    if options.table:
        table(book.rows)
        return
    code, data_dir = Code(options.revision), str(Path(options.data_dir).resolve())
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(cell, *names, book, data_dir, code) for names in cells()]
        for future in futures:
            future.result()


if __name__ == "__main__":
    main()
