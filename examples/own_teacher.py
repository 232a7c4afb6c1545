# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher of your own: any PyTorch training, wrapped as a teacher source.

The teacher here learns by single-step attacks from a random start (Wong et al. 2020, arXiv 2001.03994) in a plain
PyTorch loop that knows nothing of ctkd. The student learns from its predictions. About 7 seconds on one core.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ctkd import Paper, Registration, hookimpl, register
from ctkd.options import Count, Options
from ctkd.run import train

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ctkd.api import TeacherContext
    from ctkd.propagate import Network

CTKD_INTERFACE = 1
SOURCE = Paper(
    ("Wong, Eric", "Rice, Leslie", "Kolter, J. Zico"),
    "Fast is better than free: Revisiting adversarial training",
    2020,
    "International Conference on Learning Representations",
    "2001.03994",
)


@hookimpl
def ctkd_teachers() -> list[Registration]:
    summary = "trained by single-step attacks from a random start, in a loop of its own"
    return [Registration("fast", "own_teacher:FastTeacher", summary, (SOURCE,))]


class FastTeacherOptions(Options):
    """Length of the teacher's training."""

    epochs: Count = 10
    """Passes over the training images."""
    batch_size: Count = 64
    """Images per step."""


class FastTeacher:
    """Trained on the spot, not cached: a loop of your own is run again in every run."""

    Options = FastTeacherOptions

    def __init__(self, options: FastTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        import torch
        from torch.nn.functional import cross_entropy

        from ctkd.propagate import trace

        images, labels = context.data.train.images, context.data.train.labels
        generator = torch.Generator().manual_seed(context.seed)
        module = context.build_model()  # the student's architecture, freshly initialised
        optimiser = torch.optim.Adam(module.parameters(), lr=2e-3)
        for _ in range(self.options.epochs):
            order = torch.randperm(len(images), generator=generator)
            for batch in order.split(self.options.batch_size):
                x, y = images[batch], labels[batch]
                optimiser.zero_grad()
                cross_entropy(module(attacked(module, x, y, context.eps, generator)), y).backward()
                optimiser.step()
        # A bound network: batch norm folded with its running statistics. It is frozen by ctkd.
        return trace(module, context.data.input_shape).bind().detach()


def attacked(module: nn.Module, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """One step of 1.25 eps along the sign of the gradient, from a uniform start, cut to the ball and to [0, 1]."""
    import torch
    from torch.nn.functional import cross_entropy

    noise = (2 * torch.rand(x.shape, generator=generator) - 1) * eps
    start = (x + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(module(start), y), start)
    moved = start.detach() + 1.25 * eps * gradient.sign()
    return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)


def main() -> None:
    register(sys.modules[__name__], "own_teacher.py")
    settings = {
        "teacher.name": "fast",
        "bound.name": "mtl-ibp",
        "distill.name": "logits",  # AD-CERT: the teacher's prediction in place of the point's label
        "train.epochs": 10,
        "train.threads": 1,
    }
    with tempfile.TemporaryDirectory() as scratch:
        _, summary = train(settings=settings, out=Path(scratch) / "run")
    teacher = summary["teacher"]
    print(f"teacher: natural {teacher['natural_accuracy']:.1%}, adversarial {teacher['adversarial_accuracy']:.1%}")
    print(
        f"student: natural {summary['natural_accuracy']:.1%}, adversarial {summary['adversarial_accuracy']:.1%}, "
        f"certified {summary['certified_accuracy']:.1%}"
    )


if __name__ == "__main__":
    main()
