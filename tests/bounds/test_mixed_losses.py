# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Exp-IBP, TRADES, MART, IBP-R, ForwAbs and SingleProp: what they reduce to and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd.bounds.exp_ibp import _log_mean
from ctkd.bounds.forwabs import forward_widths
from ctkd.bounds.mart import _rest
from ctkd.bounds.singleprop import _pass
from ctkd.boxes import Box
from ctkd.config import resolve
from ctkd.errors import BadInput
from ctkd.plugins import registry
from ctkd.propagate import propagate, trace

from ..train.steps import FULL, RAMP, make, one_step, same
from .test_latent import Residual, step_on
from .test_small_box import network

CURVED = (nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_exp_ibp_at_its_ends(batch_norm: bool) -> None:
    for alpha, name in ((1, "ibp"), (0, "adversarial")):
        same(
            one_step(make("bound", "exp-ibp", alpha=alpha), batch_norm=batch_norm),
            one_step(make("bound", name), batch_norm=batch_norm),
        )


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_exp_ibp_is_never_above_mtl_ibp(alpha: float) -> None:
    ours = one_step(make("bound", "exp-ibp", alpha=alpha))[0]
    theirs = one_step(make("bound", "mtl-ibp", alpha=alpha))[0]
    assert ours.total < theirs.total
    point, box = (ours.terms[f"robust/{kind}"].mean() for kind in ("point", "box"))
    torch.testing.assert_close(ours.total, box**alpha * point ** (1 - alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_loss_has_no_infinite_gradient(dtype: torch.dtype) -> None:
    zero, one = torch.zeros(3, dtype=dtype, requires_grad=True), torch.ones(3, dtype=dtype, requires_grad=True)
    loss = (0.9 * _log_mean(zero) + 0.1 * _log_mean(one)).exp()
    loss.backward()
    assert 0 <= loss.item() < 1e-30
    assert zero.grad is not None
    assert torch.equal(zero.grad, torch.zeros_like(zero))
    assert one.grad is not None
    assert one.grad.isfinite().all()


def test_no_weight_no_regulariser() -> None:
    for name in ("ibp-r", "forwabs"):
        same(one_step(make("bound", name, weight=0)), one_step(make("bound", "adversarial")))


def test_trades_without_beta_is_natural_training() -> None:
    loss, _ = one_step(make("bound", "trades", beta=0))
    ibp, _ = one_step(make("bound", "ibp"), kappa_start=1, kappa_end=1)
    torch.testing.assert_close(loss.total, ibp.terms["clean"].mean())


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_terms_are_recorded_and_weighed(name: str) -> None:
    weight = "beta" if name == "trades" else "weight"
    light, heavy = (one_step(make("bound", name, **{weight: w}))[0] for w in (0, 3))
    divergence = heavy.terms[f"{name}/divergence"]
    assert (divergence > 0).all()
    assert heavy.total > light.total


def test_trades_brings_its_attack() -> None:
    attack: Any = resolve({"bound.name": "trades"}).attack.options
    assert attack.objective == "kl-student"
    attack = resolve({"bound.name": "trades", "attack.objective": "margin"}).attack.options
    assert attack.objective == "margin"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mart_in_log_space(dtype: torch.dtype) -> None:
    """-log(1 - p) of the strongest rival: exact, and finite where p rounds to 1 or the label has everything."""
    labels = torch.tensor([0, 1, 2, 0])
    logits = torch.tensor([[1.0, 2, 3], [0, -1, 2], [300, 0, -300], [500, 0, 0]], dtype=dtype).requires_grad_()
    rest = _rest(logits, labels)
    p = logits.double().softmax(1)
    expected = [-(1 - p[0, 2]).log(), -(1 - p[1, 2]).log(), torch.tensor(300.0), torch.tensor(0.0)]
    torch.testing.assert_close(rest, torch.stack([e.to(dtype) for e in expected]), rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(rest.sum(), logits)
    assert gradient.isfinite().all()


def test_ibp_r_needs_relus() -> None:
    method = make("bound", "ibp-r")
    method.check(network(*CURVED))
    with pytest.raises(BadInput, match=r"bound.name=ibp-r regularises the inputs of ReLUs, and this network has none"):
        method.check(network(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))


def test_ibp_r_counts_relus_only() -> None:
    loss, gradient = step_on(nn.Sequential(*CURVED).double(), "ibp-r", weight=1.0)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradient)


@pytest.mark.parametrize("pool", [True, False])
def test_forwabs_is_not_below_intervals(pool: bool) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 2, 3, padding=1), nn.LeakyReLU(0.1)]
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5)] if pool else [nn.Flatten(), nn.Linear(32, 5)]
    net = trace(nn.Sequential(*layers, nn.Sigmoid(), nn.Linear(5, 3)).double(), (1, 4, 4)).bind().detach()
    x = torch.rand(20, 1, 4, 4, dtype=torch.float64)
    radius = 0.3 * torch.rand_like(x)
    assert (forward_widths(net, radius) >= propagate(net, None, Box(x - radius, x + radius)).radius - 1e-12).all()


def test_singleprop_adds_the_widths_of_branches() -> None:
    """Where every ReLU is active, widths are those of plain interval arithmetic."""
    torch.manual_seed(0)
    module = Residual().double()
    for bias in (module.before.bias, module.branch.bias):
        torch.nn.init.constant_(bias, 50.0)
    net, x = trace(module, (4,)).bind().detach(), torch.rand(6, 4, dtype=torch.float64)
    known = _pass(net, x, 0.1, "fast-lin")
    torch.testing.assert_close(known[net.output][1], forward_widths(net, torch.full_like(x, 0.1)))
    torch.testing.assert_close(known[net.output][0], net(x))


def test_singleprop_ends() -> None:
    clean = one_step(make("bound", "singleprop", nominal_start=1, nominal_end=1))[0]
    same_as, _ = one_step(make("bound", "trades", beta=0))
    torch.testing.assert_close(clean.total, same_as.total)
    pure = one_step(make("bound", "singleprop", nominal_start=0, nominal_end=0))[0]
    assert set(pure.terms) == {"robust/mixed"}
    assert pure.total > clean.total


def test_singleprop_refuses_other_activations() -> None:
    method = make("bound", "singleprop")
    method.check(network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with pytest.raises(BadInput, match=r"bound.name=singleprop has rules for ReLUs only, and this network has Tanh"):
        method.check(network(*CURVED))
    with pytest.raises(BadInput, match="singleprop"):
        step_on(nn.Sequential(*CURVED).double(), "singleprop")


def test_singleprop_offers_its_estimate_to_objectives() -> None:
    seen: list[Any] = []

    class Reader:
        reads = frozenset({"point", "mixed"})
        teachers, needs_features = 1, False
        teacher_inputs: frozenset[str] = frozenset()
        student_points: frozenset[str] = frozenset()

        def loss(self, enclosure: Any, lesson: Any) -> Tensor:
            seen.append(enclosure)
            result: Tensor = lesson.robust
            return result

    one_step(make("bound", "singleprop", nominal_start=0, nominal_end=0), Reader(), lambda x: None)
    (estimate,) = seen
    assert estimate.kind == "mixed"
    assert (estimate.radius > 0).any()
    one = torch.eye(4, dtype=torch.float64)
    label = (estimate.margins == 0).int().argmax(1)
    torch.testing.assert_close(estimate.lower(one[label].unsqueeze(1) - one), estimate.margins)


@pytest.mark.parametrize("name", registry().names("bound"))
def test_methods_see_only_the_kinds_they_name(name: str) -> None:
    method = make("bound", name)
    seen = set()
    for schedule in (RAMP, FULL):
        terms = one_step(method, schedule=schedule)[0].terms
        seen |= {term.split("/")[1] for term in terms if term.startswith("robust/")}
    assert seen == method.evaluates


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in registry().names("bound")),
        ("crown-ibp", {"loss_fusion": True}),
        *((name, {"split": 0, "product": product}) for name in ("taps", "staps") for product in (True, False)),
    ],
)
def test_methods_say_whether_they_have_a_loss_of_their_own(name: str, options: dict[str, Any]) -> None:
    """Objectives that replace the loss of the margins are refused by what is said."""
    seen: list[Any] = []

    class Reader:
        reads = frozenset({"point", "box", "mixed"})
        teachers, needs_features = 1, False
        teacher_inputs: frozenset[str] = frozenset()
        student_points: frozenset[str] = frozenset()

        def loss(self, enclosure: Any, lesson: Any) -> Tensor:
            seen.append(enclosure.loss is not None)
            result: Tensor = lesson.robust
            return result

    method = make("bound", name, **options)
    for schedule in (RAMP, FULL):
        one_step(method, Reader(), lambda x: None, schedule=schedule)
    assert any(seen) == getattr(method, "own_loss", False)


def test_forwabs_adds_the_widths_of_branches() -> None:
    torch.manual_seed(0)
    module = Residual().double()
    radius = torch.rand(6, 4, dtype=torch.float64)
    first = radius @ module.before.weight.abs().T
    expected = (first @ module.branch.weight.abs().T + first) @ module.after.weight.abs().T
    torch.testing.assert_close(forward_widths(trace(module, (4,)).bind().detach(), radius), expected)


def test_forwabs_takes_the_largest_width_of_a_window() -> None:
    net = trace(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2)), (1, 2, 2)).bind().detach()
    widths = forward_widths(net, torch.tensor([[[[0.3, 0.1], [0.2, 0.0]]]]))
    torch.testing.assert_close(widths, 0.3 * net.head.weight.abs().T)  # type: ignore[union-attr]
