# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Four bound methods on the same data, network, schedule and seed, without a teacher.

A short training and one seed: it shows how the methods differ in kind, not which is best. About 12 seconds on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ctkd.run import train

COMMON = {
    "data.name": "digits",
    "train.eps": 0.1,
    "train.epochs": 8,
    "train.threads": 1,
    "teacher.name": "none",
    "distill.name": "none",
    "certify.samples": 200,
}
METHODS = {
    "adversarial": {},  # a point: empirically robust, hardly certified
    "sabr": {"bound.lam": 0.4},  # a small box
    "mtl-ibp": {"bound.alpha": 0.5},  # a point and a box
    "ibp": {},  # the whole box
}


def main() -> None:
    print(f"{'method':<12} natural  adversarial  certified  undecided")
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in METHODS.items():
            settings = {**COMMON, "bound.name": name, **options}
            _, summary = train(settings=settings, out=Path(scratch) / name)
            print(
                f"{name:<12} {summary['natural_accuracy']:>7.1%}  {summary['adversarial_accuracy']:>11.1%}  "
                f"{summary['certified_accuracy']:>9.1%}  {summary['counts']['undecided']:>9}"
            )


if __name__ == "__main__":
    main()
