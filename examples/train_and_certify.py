# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Train a student with a robust teacher, certify it, and read the three accuracies.

The same as ``ctkd train --bound cc-ibp --epochs 14 --set bound.alpha=0.6 --set teacher.epochs=8``, then ``ctkd certify
RUN --eps 0.05``. About 10 seconds on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ctkd.run import certify, train

SETTINGS = {
    "data.name": "digits",  # 8x8 digits that come with scikit-learn
    "train.eps": 0.1,  # L-infinity radius; pixels lie in [0, 1]
    "train.epochs": 14,  # the schedule scales with it
    "train.threads": 1,
    "bound.name": "cc-ibp",
    "bound.alpha": 0.6,
    "teacher.name": "pgd",
    "teacher.epochs": 8,
    "distill.name": "features",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, summary = train(settings=SETTINGS, out=Path(scratch) / "run")
        print(f"on {summary['samples']} {summary['split']} images at eps {summary['eps']}:")
        for who, accuracies in (("teacher", summary["teacher"]), ("student", summary)):
            for kind in ("natural", "adversarial"):
                print(f"  {who} {kind:<11} {accuracies[f'{kind}_accuracy']:.1%}")
        print(f"  student certified   {summary['certified_accuracy']:.1%}")
        low, high = summary["robust_accuracy_interval"]
        print(f"  undecided: {summary['counts']['undecided']}, so robust accuracy is between {low:.1%} and {high:.1%}")

        # The trained network can be certified at any other radius.
        smaller = certify(folder.path, eps=0.05)
        print(f"  certified at eps {smaller['eps']}: {smaller['certified_accuracy']:.1%}")


if __name__ == "__main__":
    main()
