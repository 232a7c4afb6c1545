# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Gradients of bounds against finite differences, through batch statistics as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctkd.propagate import crown_pre_activation, interval_margins, propagate, relaxed_margins

from .nets import Case, make

H = 1e-6


def objective(case: Case, method: str, statistics: str) -> Callable[[], Tensor]:
    """Some smooth function of all margins, from the module's current parameters."""
    graph, box = case.graph, case.box
    weights = torch.rand(
        case.x.shape[0], graph.classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def value() -> Tensor:
        network = graph.bind(graph.clean_pass(case.x).statistics if statistics == "batch" else None)
        flow = propagate(network, case.x, box)
        if method == "interval":
            margins, _ = interval_margins(network, flow, case.labels)
        elif method == "crown-ibp":
            margins = relaxed_margins(network, flow.pre_activation, box, case.labels)
        else:
            margins = relaxed_margins(network, crown_pre_activation(network, box), box, case.labels)
        return (weights * margins).sum() + (flow.value[: flow.points] ** 2).sum() / 10

    return value


# Seeds whose networks hold the layers that matter here: batch norm behind linear and convolutional layers,
# pooling, branches, other activations. Chosen once; the assertion on dead parameters below keeps them meaningful.
# No pool of overlapping pools: its inputs tie exactly, rounding picks one, and its relaxation jumps.
@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        *(("mlp", 2), ("mlp", 9), ("conv", 3), ("conv", 12), ("residual", 1), ("residual", 6)),
        *(("curved", 2), ("curved", 5), ("curved", 8), ("pooled", 4), ("pooled", 7), ("pooled", 11)),
    ],
)
def test_gradients_are_finite_differences(kind: str, seed: int, method: str, statistics: str) -> None:
    case = make(kind, seed, batch=5)
    value = objective(case, method, statistics)
    named = dict(case.module.named_parameters())
    gradients = torch.autograd.grad(value(), list(named.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(seed)
    alive = 0
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        assert gradient is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        original = parameter.detach().clone()
        results = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(original + sign * H * direction)
                results.append(value())
                parameter.copy_(original)
        expected = (results[0] - results[1]) / (2 * H)
        found = (gradient * direction).sum()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
        alive += bool(found.abs() > 1e-6)
    assert alive >= len(named) / 2


def test_batch_statistics_carry_gradient() -> None:
    """The gradient with statistics held constant is another one: the path through them exists and matters."""
    case = make("residual", 1, batch=5)
    graph = case.graph
    statistics = graph.clean_pass(case.x).statistics
    assert statistics
    constant = {i: type(m)(m.mean.detach(), m.variance.detach(), m.size) for i, m in statistics.items()}
    parameters = list(case.module.parameters())

    def gradient(moments: object) -> Tensor:
        network = graph.bind(moments)  # type: ignore[arg-type]
        margins, _ = interval_margins(network, propagate(network, None, case.box), case.labels)
        found = torch.autograd.grad(margins.sum(), parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(parameters, found, strict=True)
            ]
        )

    assert (gradient(statistics) - gradient(constant)).norm() > 0.01 * gradient(constant).norm()


@pytest.mark.parametrize("method", ["interval", "crown-ibp"])
def test_gradients_stay_finite_where_nothing_is_unstable(method: str) -> None:
    """Zero-width boxes and dead neurons: the chord's slope is 0 / 0 there, and must not reach the gradient."""
    case = make("mlp", 9)
    with torch.no_grad():
        for name, parameter in case.module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    case = Case(case.module, torch.zeros_like(case.x), case.labels, 0.0)
    objective(case, method, "running")().backward()
    assert all(torch.isfinite(p.grad).all() for p in case.module.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["interval", "crown-ibp"])
@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e6])
@pytest.mark.parametrize("seed", [2, 5, 8])
def test_gradients_stay_finite_where_activations_are_flat(seed: int, eps: float, method: str) -> None:
    """Boxes of almost no width, and bounds so far out that sigmoid and tanh do not move."""
    case = make("curved", seed)
    with torch.no_grad():
        for layer in case.module.modules():
            if isinstance(layer, torch.nn.Linear) and eps > 1:
                layer.weight.mul_(eps)
    case = Case(case.module, case.x, case.labels, min(eps, 0.5))
    objective(case, method, "running")().backward()
    assert all(torch.isfinite(p.grad).all() for p in case.module.parameters() if p.grad is not None)


def test_a_detached_network_has_no_gradient() -> None:
    case = make("conv", 3)
    assert case.graph.bind()(case.x).requires_grad
    assert not case.graph.bind().detach()(case.x).requires_grad
