# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""No point of a box, sampled or attacked, may leave the bounds; a box of zero width is a forward pass."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from ctkd.boxes import Box, perturbation_box
from ctkd.propagate import (
    Bounds,
    crown_pre_activation,
    interval_margins,
    margins_of,
    propagate,
    relax,
    relaxed_margins,
    specified_bounds,
    trace,
)

from .nets import Case, at_least, cases, close, margins_at, points, quick, values_at


def check_pre_activation(case: Case, bounds: Bounds, x: torch.Tensor) -> None:
    assert set(bounds) == set(case.network.nonlinear)
    sources = [case.network.nodes[i].inputs[0] for i in bounds]
    for value, (lower, upper) in zip(values_at(case, x, *sources), bounds.values(), strict=True):
        at_least(value, lower.expand_as(value))
        at_least(-value, -upper.expand_as(value))


@quick(60)
@given(cases())
def test_the_network_is_the_module(case: Case) -> None:
    with torch.no_grad():
        close(case.network(case.x), case.module(case.x))
    assert case.network.nodes[-1].shape == (3,)


@quick(60)
@given(cases(), st.integers(0, 100))
def test_interval_bounds_contain_every_point(case: Case, seed: int) -> None:
    flow = propagate(case.network, None, case.box)
    x = points(case, seed)
    check_pre_activation(case, flow.pre_activation, x)
    nodes = [case.network.output, *([case.network.features_node] if case.network.head else [])]
    logits, *features = values_at(case, x, *nodes)
    at_least(flow.radius.expand_as(logits), (logits - flow.value).abs())
    for value in features:
        assert flow.features is not None
        at_least(flow.feature_radius.expand_as(value), (value - flow.features).abs())
    margins = margins_at(case, x)
    lower, upper = interval_margins(case.network, flow, case.labels)
    at_least(margins, lower.expand_as(margins))
    at_least(-margins, -upper.expand_as(margins))


@quick(50)
@given(cases(), st.integers(0, 100))
def test_relaxed_bounds_contain_every_point(case: Case, seed: int) -> None:
    x = points(case, seed)
    margins = margins_at(case, x)
    crown = crown_pre_activation(case.network, case.box)
    check_pre_activation(case, crown, x)
    for bounds in (propagate(case.network, None, case.box).pre_activation, crown):
        relaxed = relaxed_margins(case.network, bounds, case.box, case.labels)
        assert (relaxed.gather(1, case.labels[:, None]) == 0).all()
        at_least(margins, relaxed.expand_as(margins))


@quick(30)
@given(cases(), st.integers(0, 100))
def test_specified_bounds_of_inner_nodes_contain_every_point(case: Case, seed: int) -> None:
    network, x = case.network, points(case, seed)
    relaxations = relax(network, propagate(network, None, case.box).pre_activation)
    generator = torch.Generator().manual_seed(seed)
    for node in range(1, len(network.nodes)):
        shape = network.nodes[node].shape
        rows = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
        bound = specified_bounds(network, node, rows, relaxations, case.box)
        (value,) = values_at(case, x, node)
        value = torch.einsum("pbn,bsn->pbs", value.flatten(2), rows.flatten(2))
        at_least(value, bound.expand_as(value))


@quick(40)
@given(cases())
def test_zero_width_is_the_forward_pass(case: Case) -> None:
    box = perturbation_box(case.x, 0.0)
    expected = case.margins(case.x)
    flow = propagate(case.network, None, box)
    with torch.no_grad():
        close(flow.value, case.module(case.x))
    assert not flow.radius.any()
    for end in interval_margins(case.network, flow, case.labels):
        close(end, expected)
    for bounds in (flow.pre_activation, crown_pre_activation(case.network, box)):
        close(relaxed_margins(case.network, bounds, box, case.labels), expected)


@quick(40)
@given(cases(), st.floats(0, 1))
def test_interval_bounds_are_nested_in_eps(case: Case, share: float) -> None:
    wide = propagate(case.network, None, case.box)
    narrow = propagate(case.network, None, perturbation_box(case.x, share * case.eps))
    for i, (lower, upper) in narrow.pre_activation.items():
        at_least(lower, wide.pre_activation[i][0])
        at_least(-upper, -wide.pre_activation[i][1])
    at_least(wide.radius - narrow.radius, (wide.value - narrow.value).abs())
    inner, outer = (interval_margins(case.network, flow, case.labels)[0] for flow in (narrow, wide))
    at_least(inner, outer)


@quick(40)
@given(cases())
def test_crown_is_never_looser_than_intervals(case: Case) -> None:
    """True of pre-activation bounds, which are intersected; of margins it is not proved and not asserted."""
    interval = propagate(case.network, None, case.box).pre_activation
    for i, (lower, upper) in crown_pre_activation(case.network, case.box).items():
        assert (lower <= upper).all()
        at_least(lower, interval[i][0], 1e-12)
        at_least(-upper, -interval[i][1], 1e-12)


@quick(20)
@given(cases())
def test_merging_the_specification_never_hurts(case: Case) -> None:
    flow = propagate(case.network, None, case.box)
    lower, upper = flow.value - flow.radius, flow.value + flow.radius
    apart = lower.gather(1, case.labels[:, None]) - upper
    apart = apart.scatter(1, case.labels[:, None], 0.0)
    at_least(interval_margins(case.network, flow, case.labels)[0], apart)


def test_margins_of_names_the_label_first() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0]])
    assert margins_of(logits, torch.tensor([1])).tolist() == [[3.0, 0.0, 2.0]]


@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
def test_overflow_certifies_nothing(method: str) -> None:
    """Where float32 overflows, the margin must not become a finite positive number."""
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for i in (0, 2):
            module[i].weight.fill_(1e30)
            module[i].bias.fill_(1e30)
        module[4].weight.copy_(torch.tensor([[-1e-30], [0.0]]))
        module[4].bias.copy_(torch.tensor([1.0, 0.0]))  # margin 1 - 1e-30 * (1e60 x + ...): hugely negative
    network = trace(module, (1,)).bind().detach()
    box, labels = Box(torch.tensor([[0.0]]), torch.tensor([[1.0]])), torch.tensor([0])
    flow = propagate(network, None, box)
    if method == "interval":
        margins, _ = interval_margins(network, flow, labels)
    else:
        bounds = flow.pre_activation if method == "crown-ibp" else crown_pre_activation(network, box)
        margins = relaxed_margins(network, bounds, box, labels)
    assert not (torch.isfinite(margins[0, 1]) and margins[0, 1] > 0), margins
