# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every bound method's loss and gradient against the slow implementation in ``reference.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import Schedule
from ctkd.boxes import Box
from ctkd.plugins import registry
from ctkd.propagate import trace
from ctkd.randomness import Noise
from ctkd.train.options import TrainOptions
from ctkd.train.step import TrainingStep

from ..train.steps import FULL, RAMP, make
from . import reference
from .reference import Case, each

BATCH, CLASSES = 4, 3

CASES: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("adversarial", each(reference.adversarial), {}),
    ("ibp", each(reference.ibp), {}),
    ("crown-ibp", each(reference.crown_ibp), {"beta_start": 1.0, "beta_end": 0.2}),
    ("crown-ibp", each(reference.crown_ibp), {"beta_start": 1.0, "beta_end": 1.0}),
    ("crown-ibp", each(reference.crown_ibp), {"beta_start": 1.0, "beta_end": 1.0, "loss_fusion": True}),
    ("crown-ibp", each(reference.crown_ibp), {"beta_start": 0.9, "beta_end": 0.3, "loss_fusion": True}),
    ("cc-ibp", each(reference.cc_ibp), {"alpha": 0.3}),
    ("mtl-ibp", each(reference.mtl_ibp), {"alpha": 0.3}),
    ("exp-ibp", reference.exp_ibp, {"alpha": 0.3}),
    ("sabr", each(reference.sabr), {"lam": 0.3}),
    ("sabr", each(reference.sabr), {"lam": 0.7, "relu_shrink": 0.8}),
    ("taps", reference.taps, {"split": 1}),
    ("taps", reference.taps, {"split": 2, "gradient_scale": 2.0, "relu_shrink": 0.8}),
    ("taps", reference.taps, {"split": 1, "product": False}),
    ("staps", reference.taps, {"split": 1, "lam": 0.3, "relu_shrink": 0.8}),
    ("staps", reference.taps, {"split": 2, "lam": 0.6, "product": False}),
    ("ibp-r", each(reference.ibp_r), {"weight": 0.7}),
    ("forwabs", each(reference.forwabs), {"weight": 0.02}),
    ("singleprop", each(reference.singleprop), {"variant": "fast-lin"}),
    ("singleprop", each(reference.singleprop), {"variant": "zero-slope"}),
    ("singleprop", each(reference.singleprop), {"variant": "crown", "nominal_start": 0.6, "nominal_end": 0.0}),
    ("trades", each(reference.trades), {"beta": 3.0}),
    ("mart", each(reference.mart), {"weight": 2.0}),
]


class Found:
    """An attack that has its result already."""

    def __init__(self, point: Tensor) -> None:
        self.point = point

    def perturb(self, *_: Any, **__: Any) -> Tensor:
        return self.point


def test_every_method_has_a_reference() -> None:
    own = {name for name in registry().names("bound") if registry().find("bound", name).target.startswith("ctkd.")}
    assert own == {name for name, _, _ in CASES}


@pytest.mark.parametrize("schedule", [RAMP, FULL], ids=["ramp", "full"])
@pytest.mark.parametrize(("name", "slow", "options"), CASES)
def test_loss_and_gradient(
    name: str,
    slow: Callable[..., Tensor],
    options: dict[str, Any],
    schedule: Schedule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(3)
    module = make("model", "cnn-small", channels=2, hidden=6).build((1, 8, 8), CLASSES).double().train()
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64, generator=rng)
    labels = torch.tensor([0, 2, 1, 1])
    with torch.no_grad():  # so that batch norm's own parameters matter
        for norm in module:
            if hasattr(norm, "running_mean"):
                norm.weight.uniform_(0.5, 1.5, generator=rng)
                norm.bias.uniform_(-0.3, 0.3, generator=rng)
    box = Box((x - schedule.eps).clamp(0, 1), (x + schedule.eps).clamp(0, 1))
    attacked = box.lower + torch.rand(x.shape, dtype=x.dtype, generator=rng) * (box.upper - box.lower)
    fractions: list[Tensor] = []

    def latent(_: Any, lower: Tensor, upper: Tensor, rivals: int, **__: Any) -> Tensor:
        shape = (BATCH, rivals, *lower.shape[2:])
        part = torch.rand(shape, dtype=lower.dtype, generator=rng)
        part = torch.where(part < 0.2, 0.0, torch.where(part > 0.8, 1.0, part))  # edges too
        fractions.append(part.flatten(2))
        return lower + part * (upper - lower)

    monkeypatch.setattr("ctkd.bounds._latent.attack", latent)
    step = TrainingStep(
        graph=trace(module, (1, 8, 8)),
        method=make("bound", name, **options),
        objective=make("distill", "none"),
        attack=Found(attacked),
        backend=make("propagation", "native"),
        options=TrainOptions(eps=0.05, shi_weight=0.0),
        teachers=[],
    )
    fast = step(x, labels, schedule, Noise(0, "test", samples=torch.arange(len(x)))).total
    case = Case(
        layers=reference.dense_layers(module, x),
        labels=labels,
        x=x.flatten(1),
        box=(box.lower.flatten(1), box.upper.flatten(1)),
        attacked=attacked.flatten(1),
        eps=schedule.eps,
        progress=schedule.progress,
        fractions=fractions[0] if fractions else None,
    )
    assert bool(fractions) == (name in ("taps", "staps") and schedule is FULL)
    expected = slow(case, **options)
    torch.testing.assert_close(fast, expected, rtol=1e-8, atol=1e-8)
    parameters = list(module.parameters())
    pairs = zip(
        torch.autograd.grad(fast, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    )
    seen = 0
    for parameter, (left, right) in zip(parameters, pairs, strict=True):
        zero = torch.zeros_like(parameter)
        left, right = zero if left is None else left, zero if right is None else right
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)
        seen += bool(left.abs().max() > 1e-6)
    assert seen >= len(parameters) - 3  # a bias before batch norm changes nothing
