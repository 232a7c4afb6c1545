# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Single training steps made by hand, in float64, for the tests of bound methods and objectives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctkd.api import Schedule
from ctkd.plugins import create, options_class, registry
from ctkd.propagate import trace
from ctkd.randomness import Noise
from ctkd.train.options import TrainOptions
from ctkd.train.step import Loss, TrainingStep

RAMP = Schedule(eps=0.03, target=0.05, phase="ramp", epoch=1, step=10)
FULL = Schedule(eps=0.05, target=0.05, phase="full", epoch=3, step=30)
BATCH, CLASSES = 12, 4


def make(kind: str, name: str, **options: Any) -> Any:
    entry = registry().find(kind, name)
    return create(entry, options_class(entry)(**options))


def batch() -> tuple[Tensor, Tensor]:
    """The images and labels of ``one_step``."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64, generator=rng)
    return x, torch.randint(CLASSES, (BATCH,), generator=rng)


def one_step(
    bound: Any,
    objective: Any = None,
    *teachers: Any,
    attack: Any = None,
    schedule: Schedule = RAMP,
    batch_norm: bool = True,
    device: torch.device | str = "cpu",
    **options: Any,
) -> tuple[Loss, list[Tensor]]:
    """The loss of one fixed batch and its gradient, always with the same noise in the attack."""
    torch.manual_seed(3)
    module = make("model", "cnn-small", channels=3, hidden=8, batch_norm=batch_norm).build((1, 8, 8), CLASSES).double()
    module.to(device)
    step = TrainingStep(
        graph=trace(module.train(), (1, 8, 8)),
        method=bound,
        objective=objective or make("distill", "none"),
        attack=attack or make("attack", "pgd", steps=2),
        backend=make("propagation", "native"),
        options=TrainOptions(**{"eps": 0.05, "shi_weight": 0.0, **options}),
        teachers=list(teachers),
    )
    x, labels = (part.to(device) for part in batch())
    loss = step(x, labels, schedule, Noise(0, "test", samples=torch.arange(len(x))))
    parameters = list(module.parameters())
    gradient = torch.autograd.grad(loss.total, parameters, retain_graph=True, allow_unused=True)
    return loss, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]


def same(a: tuple[Loss, list[Tensor]], b: tuple[Loss, list[Tensor]]) -> None:
    torch.testing.assert_close(a[0].total, b[0].total, rtol=1e-10, atol=1e-12)
    for left, right in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)
