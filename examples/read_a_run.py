# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Read what a run recorded: figures per epoch, the verdict on each sample, the summary.

A run folder holds JSON and SQLite, so that nothing of ctkd is needed to read it. About 5 seconds on one core.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from pathlib import Path

from ctkd.run import train

SETTINGS = {"bound.name": "ibp", "teacher.name": "none", "train.epochs": 10, "train.threads": 1}


def learning_curve(run: Path) -> None:
    print("epoch  phase   eps     loss    natural  interval-certified (validation)")
    for line in (run / "metrics.jsonl").read_text().splitlines():
        epoch = json.loads(line)
        seen = epoch["validation"]
        print(
            f"{epoch['epoch']:>5}  {epoch['phase']:<6}  {epoch['eps']:.4f}  {epoch['losses']['loss']:.4f}  "
            f"{seen['natural_accuracy']:>7.1%}  {seen['interval_certified_accuracy']:>7.1%}"
        )


def samples(run: Path) -> None:
    with sqlite3.connect(run / "certification.sqlite") as database:
        print("status, settled by, how many:")
        query = "SELECT status, stage, COUNT(*) FROM samples GROUP BY status, stage ORDER BY COUNT(*) DESC"
        for status, stage, count in database.execute(query):
            print(f"  {status:<10} {stage or '-':<10} {count}")
        query = (
            "SELECT sample, label, lower_margin, attack_margin FROM samples WHERE status = 'certified' "
            "ORDER BY lower_margin LIMIT 3"
        )
        print("certified with the smallest margin:")
        for sample, label, lower, found in database.execute(query):
            print(f"  sample {sample} (a {label}): at least {lower:.4f} in the box, the attack reached {found:.4f}")
    database.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        train(settings=SETTINGS, out=run)
        learning_curve(run)
        samples(run)
        summary = json.loads((run / "summary.json").read_text())
        print(f"certified accuracy: {summary['certified_accuracy']:.1%} of {summary['samples']} images")


if __name__ == "__main__":
    main()
