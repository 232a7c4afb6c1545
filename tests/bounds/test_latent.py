# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The parts of TAPS: the cut, the latent attack, the gradient link."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd.bounds._latent import Link, attack, cut_node
from ctkd.errors import BadInput
from ctkd.propagate import Network, trace
from ctkd.propagate.ops import Relu
from ctkd.randomness import Noise

from ..train.steps import FULL, make, one_step
from .test_small_box import network


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.branch, self.after = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        x = (self.branch(x).relu() + x).relu()
        return self.after(x)


def test_the_cut_counts_activations_from_the_end() -> None:
    net = network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    assert [cut_node(net, split) for split in (0, 1)] == [net.activations[1], net.activations[0]]
    for split in (2, 7):
        with pytest.raises(BadInput, match=rf"bound.split={split} .* has 2 activations, .* accepted here: 0, 1$"):
            cut_node(net, split)
    with pytest.raises(BadInput, match="accepted here: none"):
        cut_node(network(nn.Linear(4, 3)), 0)


def test_no_cut_inside_a_branch() -> None:
    net = trace(Residual(), (4,)).bind()
    assert [cut_node(net, split) for split in (0, 2)] == [net.activations[2], net.activations[0]]
    with pytest.raises(BadInput, match=r"bound.split=1 .* accepted here: 0, 2"):
        cut_node(net, 1)


@pytest.mark.parametrize("name", ["taps", "staps"])
def test_a_cut_behind_all_activations_is_refused_in_training_too(name: str) -> None:
    with pytest.raises(BadInput, match=r"bound.split=3 .* accepted here: 0, 1, 2"):
        one_step(make("bound", name, split=3), schedule=FULL)


@pytest.mark.parametrize(("steps", "restarts"), [(1, 1), (3, 2), (10, 1), (12, 2)])
def test_the_attack_against_plain_loops(steps: int, restarts: int) -> None:
    rng = torch.Generator().manual_seed(5)
    lower = torch.rand(3, 4, dtype=torch.float64, generator=rng)
    upper = lower + torch.rand(3, 4, dtype=torch.float64, generator=rng)
    upper[0, 0] = lower[0, 0]
    first, second = torch.randn(6, 4, generator=rng).double(), torch.randn(2, 6, generator=rng).double()

    def of_one(point: Tensor, rival: int) -> Tensor:
        return (second @ torch.tanh(first @ point))[rival]

    def margins(points: Tensor) -> Tensor:
        return torch.stack([torch.stack([of_one(row[j], j) for j in range(2)]) for row in points])

    found = attack(
        margins,
        lower.unsqueeze(1),
        upper.unsqueeze(1),
        2,
        steps=steps,
        step_size=max(0.2, 2 / steps),
        restarts=restarts,
        noise=Noise(9, "test", samples=torch.arange(3)),
    )
    again = Noise(9, "test", samples=torch.arange(3))
    noises = [again.uniform(torch.empty(3, 2, 4, dtype=torch.float64)) for _ in range(restarts)]
    for i in range(3):
        for j in range(2):
            candidates = []
            for noise in noises:
                point = lower[i] + noise[i, j] * (upper[i] - lower[i])
                candidates.append(point)
                for step in range(steps):
                    point = point.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(of_one(point, j), point)
                    size = max(0.2, 2 / steps)
                    if steps >= 10 and step >= int(0.7 * steps):
                        size *= 0.2
                    point = point.detach() - size * (upper[i] - lower[i]) * slope.sign()
                    point = torch.minimum(torch.maximum(point, lower[i]), upper[i])
                    candidates.append(point)
            best = min(candidates, key=lambda p: float(of_one(p, j)))
            torch.testing.assert_close(found[i, j], best, rtol=0, atol=1e-12)


def test_the_best_of_all_restarts_counts() -> None:
    """-(p - 0.4)^2 on [0, 1] leads from below 0.4 to the worse end, so one start in five or so finds the worse one."""
    ends = torch.zeros(64, 1, 1, dtype=torch.float64), torch.ones(64, 1, 1, dtype=torch.float64)

    def found(restarts: int) -> Tensor:
        noise = Noise(3, "test", samples=torch.arange(64))
        return attack(
            lambda p: -(p - 0.4).square().squeeze(2), *ends, 1, steps=5, step_size=0.4, restarts=restarts, noise=noise
        )

    assert set(found(1).flatten().tolist()) == {0.0, 1.0}
    assert (found(12) == 1).all()


@pytest.mark.parametrize(
    ("options", "size"), [({"steps": 1}, 2), ({"steps": 4}, 0.5), ({"steps": 20}, 0.2), ({"step_size": 0.3}, 0.3)]
)
def test_what_the_attack_is_told(options: dict[str, Any], size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def spy(margins: Any, lower: Tensor, upper: Tensor, rivals: int, **given: Any) -> Tensor:
        told.update(given)
        return lower.expand(-1, rivals, *lower.shape[2:])

    monkeypatch.setattr("ctkd.bounds._latent.attack", spy)
    one_step(make("bound", "taps", restarts=3, **options), schedule=FULL)
    assert told["step_size"] == pytest.approx(size)
    assert (told["steps"], told["restarts"]) == (options.get("steps", 8), 3)


def test_the_attack_stays_below_the_bound_and_gains_by_steps() -> None:
    loss, _ = one_step(make("bound", "taps", steps=12, restarts=3), schedule=FULL)
    assert (loss.terms["taps/latent"] <= loss.terms["taps/box"]).all()
    weak, _ = one_step(make("bound", "taps", steps=1), schedule=FULL)
    assert loss.terms["taps/latent"].mean() > weak.terms["taps/latent"].mean()
    torch.testing.assert_close(loss.total, loss.terms["taps/latent"].mean() * loss.terms["taps/box"].mean())


def test_the_attack_repeats() -> None:
    first, second = (one_step(make("bound", "staps"), schedule=FULL)[0].total for _ in range(2))
    assert torch.equal(first, second)


def test_the_gradient_scale_does_not_change_the_value() -> None:
    totals = [one_step(make("bound", "taps", gradient_scale=s), schedule=FULL) for s in (1, 5)]
    assert torch.equal(totals[0][0].total, totals[1][0].total)
    assert any(not torch.allclose(a, b) for a, b in zip(totals[0][1], totals[1][1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_link(dtype: torch.dtype) -> None:
    """At the edges 1, in the middle 0, half way 1/2; a box without width, or hardly any, stays finite."""
    tiny = torch.finfo(dtype).tiny
    rows: list[Any] = [  # point, lower, upper, gradient to lower, gradient to upper
        (1.0, 1.0, 3.0, 1.0, 0.0),
        (1.5, 1.0, 3.0, 0.5, 0.0),
        (2.0, 1.0, 3.0, 0.0, 0.0),
        (2.5, 1.0, 3.0, 0.0, 0.5),
        (3.0, 1.0, 3.0, 0.0, 1.0),
        (0.7, 0.7, 0.7, 0.5, 0.5),
        (0.0, 0.0, 0.0, 0.5, 0.5),
        (0.0, 0.0, 4 * tiny, 1.0, 0.0),
        (1e6, 1e6, float(torch.nextafter(torch.tensor(1e6, dtype=dtype), torch.tensor(torch.inf))), 1.0, 0.0),
    ]
    table = torch.tensor(rows, dtype=dtype)
    point, lower, upper = (table[:, i].clone().requires_grad_() for i in range(3))
    linked = Link.apply(point, lower, upper)
    assert torch.equal(linked, point)
    (linked * 2).sum().backward()
    assert point.grad is None
    torch.testing.assert_close(lower.grad, 2 * table[:, 3], rtol=0, atol=1e-6)
    torch.testing.assert_close(upper.grad, 2 * table[:, 4], rtol=0, atol=1e-6)


def test_the_box_at_the_cut_may_have_no_width() -> None:
    """Dead and constant neurons: loss and gradient stay finite."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        module[0].weight[:3] = 0.0
        module[0].bias[0], module[0].bias[1], module[0].bias[2] = 1.0, 0.0, -1.0
    assert isinstance(trace(module, (4,)).bind().nodes[2].op, Relu)
    loss, gradient = step_on(module, "taps")
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradient)


def step_on(module: nn.Module, name: str, **options: Any) -> tuple[Tensor, list[Tensor]]:
    from ctkd.train.options import TrainOptions
    from ctkd.train.step import TrainingStep

    step = TrainingStep(
        graph=trace(module.train(), (4,)),
        method=make("bound", name, **options),
        objective=make("distill", "none"),
        attack=make("attack", "pgd", steps=2),
        backend=make("propagation", "native"),
        options=TrainOptions(eps=0.05, shi_weight=0.0),
        teachers=[],
    )
    x = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    total = step(x, torch.tensor([0, 1, 2, 0, 1, 2]), FULL, Noise(0, "test", samples=torch.arange(6))).total
    return total, list(torch.autograd.grad(total, list(module.parameters())))


def test_other_activations_and_residual_networks_can_be_cut() -> None:
    net: Network = trace(Residual().double(), (4,)).bind()
    assert len(net.activations) == 3
    for module, split in ((Residual().double(), 2), (Residual().double(), 0)):
        loss, gradient = step_on(module, "taps", split=split)
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in gradient)
    curved = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)).double()
    loss, gradient = step_on(curved, "staps")
    assert loss.isfinite()
    assert all(g.abs().sum() > 0 for g in gradient)
