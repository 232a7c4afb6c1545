# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A published bound method that ctkd does not have, as a plugin in one file: ReLU stability.

Xiao et al. 2019 (arXiv 1809.03008): adversarial training, and a penalty ``-tanh(1 + l u)`` for every ReLU whose input
has the bounds l and u over the box. It is small where l and u have one sign, so that the ReLU is linear over the box
and easy to verify. About 10 seconds on one core.

In a package of your own, the upper half of this file is two modules: the registration, which imports no torch, and
the method. An entry point makes them known; see "Write a bound method" in the documentation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ctkd import Paper, Registration, hookimpl, register
from ctkd.options import NonNegative, Options
from ctkd.run import train

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step

CTKD_INTERFACE = 1
SOURCE = Paper(
    ("Xiao, Kai Y.", "Tjeng, Vincent", "Shafiullah, Nur Muhammad", "Madry, Aleksander"),
    "Training for Faster Adversarial Robustness Verification via Inducing ReLU Stability",
    2019,
    "International Conference on Learning Representations",
    "1809.03008",
)


@hookimpl
def ctkd_bound_methods() -> list[Registration]:
    summary = "adversarial loss, and a penalty of ReLUs that are unstable over the box"
    return [Registration("relu-stability", "own_bound_method:ReLUStability", summary, (SOURCE,))]


class ReLUStabilityOptions(Options):
    """How strongly ReLUs are pushed to one side."""

    weight: NonNegative = 1.0
    """Of the penalty, a mean over all ReLUs of the network. The source weighs the sum."""


class ReLUStability:
    """The adversarial loss plus ``weight * mean(-tanh(1 + l u))``. An estimate, not a bound of the loss.

    Deviations: l and u are plain interval bounds, and the penalty is a mean, not a sum, over the ReLUs.
    """

    Options = ReLUStabilityOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False

    def __init__(self, options: ReLUStabilityOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        import torch

        # For each activation of the network the bounds of its input, (batch, *shape).
        bounds = [step.bounds("full")[node] for node in step.network.activations]
        products = [(lower * upper).flatten(1) for lower, upper in bounds]
        penalty = -torch.tanh(1 + torch.cat(products, dim=1)).mean(1)
        return step.loss(step["adversarial"]) + self.options.weight * step.record("relu-stability", penalty)


def unstable(run: Path) -> str:
    """The share of unstable ReLUs after the last epoch, layer by layer."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return ", ".join(f"{layer['unstable']:.0%}" for layer in last["validation"]["layers"].values())


def main() -> None:
    register(sys.modules[__name__], "own_bound_method.py")
    with tempfile.TemporaryDirectory() as scratch:
        for weight in (0.0, 2.0):
            run = Path(scratch) / f"weight-{weight}"
            settings = {
                "bound.name": "relu-stability",
                "bound.weight": weight,
                "teacher.name": "none",
                "train.epochs": 10,
                "train.threads": 1,
            }
            _, summary = train(settings=settings, out=run)
            print(
                f"weight {weight}: natural {summary['natural_accuracy']:.1%}, "
                f"adversarial {summary['adversarial_accuracy']:.1%}, "
                f"certified {summary['certified_accuracy']:.1%}; unstable ReLUs by layer: {unstable(run)}"
            )


if __name__ == "__main__":
    main()
