# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CROWN-IBP's fused loss: sound, equal to IBP at beta 0, and finite however large the margins are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd.api import Schedule
from ctkd.bounds.crown_ibp import _mean_decay
from ctkd.boxes import perturbation_box
from ctkd.propagate import interval_lower, margin_specification, propagate, relaxed_lower, trace
from ctkd.randomness import Noise
from ctkd.train.options import TrainOptions
from ctkd.train.step import TrainingStep

from ..train.steps import batch, make, one_step, same

EPS = 0.05
FULL = Schedule(eps=EPS, target=EPS, phase="full", epoch=3, step=30)


def fused_method(beta: float = 1.0) -> Any:
    return make("bound", "crown-ibp", beta_start=beta, beta_end=beta, loss_fusion=True)


def losses(module: nn.Module, x: Tensor, labels: Tensor, method: Any, eps: float = EPS) -> tuple[Tensor, list[Tensor]]:
    """The loss per sample, and the gradient of its mean."""
    step = TrainingStep(
        graph=trace(module.train(), tuple(x.shape[1:])),
        method=method,
        objective=make("distill", "none"),
        attack=make("attack", "pgd", steps=1),
        backend=make("propagation", "native"),
        options=TrainOptions(eps=eps, shi_weight=0.0),
        teachers=[],
    )
    loss = step(x, labels, replace(FULL, eps=eps, target=eps), Noise(0, "test", samples=torch.arange(len(x))))
    return loss.terms["robust/box"].detach(), list(torch.autograd.grad(loss.total, list(module.parameters())))


def mlp(width: int, scale: float = 1.0, classes: int = 5) -> nn.Module:
    module = nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    return module


@pytest.mark.parametrize("beta", [0.001, 0.5, 1.0])
@pytest.mark.parametrize(("scale", "eps"), [(0.5, 0.05), (1.0, 0.01), (1.5, 0.1), (2.5, 0.03), (1.0, 1e-9)])
def test_it_bounds_the_worst_loss(beta: float, scale: float, eps: float) -> None:
    torch.manual_seed(0)
    module = mlp(12, scale).double()
    x, labels = torch.rand(8, 16, dtype=torch.float64), torch.arange(8) % 5
    bound, _ = losses(module, x, labels, fused_method(beta), eps)
    box = perturbation_box(x, eps)
    for i in range(300):
        point = box.lower + torch.rand_like(x) * (box.upper - box.lower)
        if i % 2:
            point = torch.where(torch.rand_like(x) < 0.5, box.lower, box.upper)
        worst = nn.functional.cross_entropy(module(point), labels, reduction="none")
        assert (worst <= bound + 1e-9).all()


def test_beta_zero_is_ibp() -> None:
    same(one_step(fused_method(0)), one_step(make("bound", "ibp")))
    # The formula itself, not only the way around it.
    near, plain = one_step(fused_method(1e-12)), one_step(make("bound", "ibp"))
    torch.testing.assert_close(near[0].total, plain[0].total, rtol=1e-9, atol=0)
    for a, b in zip(near[1], plain[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_two_classes_and_a_tight_box_are_like_without_fusion() -> None:
    """With two classes there is one margin; as its interval shrinks, the chord becomes exp itself."""
    torch.manual_seed(0)
    module = mlp(10, classes=2).double()
    x, labels = torch.rand(6, 16, dtype=torch.float64), torch.arange(6) % 2
    gaps = []
    for eps in (1e-2, 1e-4):
        bound, _ = losses(module, x, labels, fused_method(), eps)
        usual, _ = losses(module, x, labels, make("bound", "crown-ibp"), eps)
        assert (bound >= usual - 1e-12).all()
        gaps.append(float((bound - usual).max()))
    assert gaps[1] < 1e-3 * gaps[0]


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_large_margins_stay_finite_in_float32(beta: float) -> None:
    torch.manual_seed(0)
    module = mlp(512, 8.0)
    x, labels = torch.rand(8, 16), torch.arange(8) % 5
    plain, _ = losses(module, x, labels, make("bound", "ibp"), 0.3)
    assert plain.min() > 1e4
    bound, gradient = losses(module, x, labels, fused_method(beta), 0.3)
    assert bound.isfinite().all()
    assert all(g.isfinite().all() for g in gradient)
    wide = mlp(512, 8.0).double()
    wide.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    exact, _ = losses(wide, x.double(), labels, fused_method(beta), 0.3)
    torch.testing.assert_close(bound.double(), exact, rtol=1e-4, atol=0)


def test_margins_that_are_all_large_and_positive_give_no_loss() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        module[2].weight.zero_()
        module[2].bias.copy_(torch.tensor([1e4, -1e4]))
    bound, gradient = losses(module, torch.rand(2, 4), torch.zeros(2, dtype=torch.long), fused_method())
    assert torch.equal(bound, torch.zeros(2))
    assert all(g.isfinite().all() for g in gradient)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_mean_decay(dtype: torch.dtype, tolerance: float) -> None:
    width = torch.tensor([0.0, 1e-30, 1e-9, 0.99e-4, 1.01e-4, 0.5, 30, 1e4, 1e30], dtype=dtype, requires_grad=True)
    value = _mean_decay(width)
    double = width.detach().double()
    # In steps of the series' next terms for narrow widths; the plain formula elsewhere.
    expected = torch.where(
        double < 0.01,
        1 - double / 2 + double**2 / 6 - double**3 / 24,
        (1 - torch.exp(-double)) / double.clamp(min=0.01),
    )
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    value.sum().backward()
    assert width.grad is not None
    assert width.grad.isfinite().all()
    assert float(width.grad[0]) == pytest.approx(-0.5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_functionals_are_mixed_as_margins_are(beta: float) -> None:
    """What an objective reads over the box is as tight as what the method's own loss is made of."""
    seen: list[Any] = []

    class Spy:
        reads = frozenset({"box"})
        teachers, needs_features = 1, False
        teacher_inputs: frozenset[str] = frozenset()
        student_points: frozenset[str] = frozenset()

        def loss(self, enclosure: Any, lesson: Any) -> Tensor:
            seen.append(enclosure)
            result: Tensor = lesson.robust
            return result

    rows = torch.eye(4, dtype=torch.float64)[batch()[1]].unsqueeze(1) - torch.eye(4, dtype=torch.float64)
    for fusion in (False, True):
        method = make("bound", "crown-ibp", beta_start=beta, beta_end=beta, loss_fusion=fusion)
        one_step(method, Spy(), lambda x: None)
    usual, fused = seen
    torch.testing.assert_close(usual.lower(rows), usual.margins)
    torch.testing.assert_close(fused.lower(rows), usual.margins)
    others = torch.randn(12, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fused.lower(others), usual.lower(others))
    assert fused.kind == "box"
    assert (fused.margins is None) == (beta > 0)


@pytest.mark.parametrize(("classes", "beta"), [(2, 1.0), (5, 1.0), (5, 0.3), (40, 1.0)])
def test_it_is_its_formula_row_by_row(classes: int, beta: float) -> None:
    """The definition written out, with a row for each margin and its upper bound by the negated row."""
    torch.manual_seed(0)
    module = mlp(12, 2.0, classes).double()
    x, labels = torch.rand(8, 16, dtype=torch.float64), torch.arange(8) % classes
    bound, found = losses(module, x, labels, fused_method(beta))

    network, box = trace(module, (16,)).bind(), perturbation_box(x, EPS)
    flow = propagate(network, None, box)
    rows, _ = margin_specification(labels, classes, x.dtype)
    low, high = (sign * interval_lower(network, flow, sign * rows) for sign in (1, -1))
    e, width = (-low).exp(), high - low
    steep = e * (1 - (-width).exp()) / width
    row = (steep.unsqueeze(2) * rows).sum(1, keepdim=True)
    chords = (e + steep * low).sum(1) - relaxed_lower(network, flow.pre_activation, box, row).squeeze(1)
    expected = (1 + beta * chords + (1 - beta) * e.sum(1)).log()

    torch.testing.assert_close(bound, expected.detach(), rtol=1e-10, atol=1e-10)
    for a, b in zip(found, torch.autograd.grad(expected.mean(), list(module.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
