# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""In every pair that is accepted, another teacher gives another loss, and so does another student's bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.plugins import create, options_class, registry
from ctkd.propagate import trace
from ctkd.randomness import Noise, generator
from ctkd.train.options import TrainOptions
from ctkd.train.step import TrainingStep

from ..test_pairs import WORKS
from ..train.steps import FULL, make

TAUGHT = [pair for pair in WORKS if pair[1] != "none"]


def total(bound: str, distill: str, shift: float, eps: float) -> Tensor:
    """The loss of one batch, with teachers that differ by ``shift``."""

    def teacher(x: Tensor) -> TeacherOutputs:
        count = len(x)
        ramp = torch.arange(4, dtype=x.dtype) * shift
        return TeacherOutputs(ramp.expand(count, 4) + x.mean((1, 2, 3))[:, None], ramp.repeat(2).expand(count, 8))

    entry = registry().find("distill", distill)
    objective = create(entry, options_class(entry)())
    torch.manual_seed(3)
    module = make("model", "cnn-small", channels=3, hidden=8).build((1, 8, 8), 4).double().train()
    if hasattr(objective, "prepare"):
        objective.prepare((8, 8), generator(0, "test"))
    step = TrainingStep(
        graph=trace(module, (1, 8, 8)),
        method=make("bound", bound),
        objective=objective,
        attack=make("attack", "pgd", steps=2),
        backend=make("propagation", "native"),
        options=TrainOptions(eps=0.05, shi_weight=0.0),
        teachers=[teacher] * objective.teachers,
    )
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=rng)
    schedule = FULL.__class__(eps=eps, target=eps, phase="full", epoch=FULL.epoch, step=FULL.step)
    return step(x, torch.randint(4, (6,), generator=rng), schedule, Noise(0, "test", samples=torch.arange(6))).total


@pytest.mark.parametrize(("bound", "distill"), TAUGHT)
def test_the_loss_depends_on_teacher_and_radius(bound: str, distill: str) -> None:
    usual = total(bound, distill, 0.5, 0.05)
    assert usual.isfinite()
    assert (total(bound, distill, 1.5, 0.05) - usual).abs() > 1e-4
    assert (total(bound, distill, 0.5, 0.15) - usual).abs() > 1e-6
