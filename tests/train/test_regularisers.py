# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Shi regularisers and initialisation against slow, literal formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ctkd.boxes import perturbation_box
from ctkd.propagate import propagate, trace
from ctkd.randomness import generator
from ctkd.train.initialise import shi_initialise
from ctkd.train.regularisers import l1_norm, shi_regularisers


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def literal(bounds: list[tuple[list[float], list[float]]], input_width: float) -> tuple[float, float]:
    """Section 3.3 of Shi et al. 2021, with plain loops."""
    tight = relu = 0.0
    for lower, upper in bounds:
        n = len(lower)
        c = [(a + b) / 2 for a, b in zip(lower, upper, strict=True)]
        mean_radius = sum((b - a) / 2 for a, b in zip(lower, upper, strict=True)) / n
        tight += max(0.0, 0.5 - input_width / max(mean_radius, 1e-12)) / 0.5
        mu = sum(c) / n
        active = [a > 0 for a in lower]
        dead = [b < 0 for b in upper]
        if not any(active) or not any(dead):
            continue
        p = (sum(v for v, on in zip(c, active, strict=True) if on) / n) / (
            -sum(v for v, on in zip(c, dead, strict=True) if on) / n
        )
        q = sum((v - mu) ** 2 for v, on in zip(c, active, strict=True) if on) / sum(
            (v - mu) ** 2 for v, on in zip(c, dead, strict=True) if on
        )
        for ratio in (p, q):
            relu += max(0.0, 0.5 - min(ratio, 1 / ratio)) / 0.5
    return tight / len(bounds), relu / len(bounds)


@pytest.mark.parametrize("seed", range(4))
def test_regularisers_equal_the_literal_formula(seed: int) -> None:
    net = trace(network(seed), (1, 3, 3)).bind().detach()
    x = torch.rand(8, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    box = perturbation_box(x, 0.05)
    bounds = propagate(net, None, box).pre_activation
    tightness, balance = shi_regularisers(bounds, box)
    plain = [(lower.flatten().tolist(), upper.flatten().tolist()) for lower, upper in bounds.values()]
    expected = literal(plain, float(((box.upper - box.lower) / 2).mean()))
    assert float(tightness) == pytest.approx(expected[0], rel=1e-10)
    assert float(balance) == pytest.approx(expected[1], rel=1e-10)


def test_balance_where_one_side_dominates() -> None:
    lower = torch.tensor([[1.0, 2.0, 3.0, -0.2]], dtype=torch.float64)
    upper = lower + 0.1
    box = perturbation_box(torch.rand(1, 4, dtype=torch.float64), 0.1)
    _, balance = shi_regularisers({1: (lower, upper)}, box)
    assert float(balance) == pytest.approx(literal([(lower[0].tolist(), upper[0].tolist())], 0.1)[1])
    assert float(balance) > 0.9


def test_a_layer_without_active_neurons_adds_nothing_and_no_nan() -> None:
    lower = torch.full((2, 3), -2.0, requires_grad=True)
    upper = torch.full((2, 3), -1.0, requires_grad=True)
    box = perturbation_box(torch.rand(2, 3), 0.1)
    tightness, balance = shi_regularisers({1: (lower, upper)}, box)
    assert balance.item() == 0
    (tightness + balance).backward()
    assert lower.grad is not None
    assert lower.grad.isfinite().all()


def test_l1_counts_weights_of_affine_layers_only() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    expected = sum(float(w.detach().abs().sum()) for w in (module[0].weight, module[3].weight))
    assert float(l1_norm(module).detach()) == pytest.approx(expected)


def test_initialisation_has_the_published_spread() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(400, 500), nn.ReLU(), nn.Linear(500, 10))
    last = module[3].weight.detach().clone()
    shi_initialise(trace(module, (1, 20, 20)), generator(0, "test"))
    assert float(module[1].weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 400, rel=0.02)
    assert torch.equal(module[3].weight, last)


def test_initialisation_halves_what_follows_a_sum() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(100, 100), nn.Linear(100, 100)
            self.third, self.last = nn.Linear(100, 100), nn.Linear(100, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).relu()
            return self.last(self.third(h + self.second(h)).relu())

    module = Residual()
    shi_initialise(trace(module, (100,)), generator(0, "test"))
    ratio = float(module.third.weight.detach().std() / module.second.weight.detach().std())
    assert ratio == pytest.approx(0.5, rel=0.05)
