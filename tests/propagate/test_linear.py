# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bounds against the slow reference in ``dense.py``, and the pieces of backward propagation."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from torch import nn

import ctkd.propagate.linear as linear
from ctkd.boxes import Box
from ctkd.propagate import (
    crown_pre_activation,
    interval_margins,
    lower_bounds,
    margin_specification,
    propagate,
    relax,
    relaxed_margins,
    specified_bounds,
    trace,
)
from ctkd.propagate.ops import Relu

from . import dense
from .nets import Case, at_least, cases, close, make, quick


def flat(bounds: tuple[torch.Tensor, torch.Tensor], sample: int) -> dense.Interval:
    return bounds[0][sample].flatten(), bounds[1][sample].flatten()


@quick(25)
@given(cases())
def test_against_the_slow_reference(case: Case) -> None:
    network, box = case.network, case.box
    flow = propagate(network, None, box)
    margins = interval_margins(network, flow, case.labels)
    fast = {
        "interval": (flow.pre_activation, relaxed_margins(network, flow.pre_activation, box, case.labels)),
        "crown": (
            crown := crown_pre_activation(network, box),
            relaxed_margins(network, crown, box, case.labels),
        ),
    }
    for b, label in enumerate(case.labels.tolist()):
        known = dense.intervals(network, box.lower[b], box.upper[b])
        before = {i: known[network.nodes[i].inputs[0]] for i in network.activations}
        slow = {"interval": before, "crown": dense.crown(network, box.lower[b], box.upper[b], intersect=True)}
        for name, (bounds, relaxed) in fast.items():
            for i in network.activations:
                close(torch.stack(flat(bounds[i], b)), torch.stack(slow[name][i]))
            close(relaxed[b], dense.margins(network, slow[name], (box.lower[b], box.upper[b]), label))
        close(
            torch.stack([flow.value[b] - flow.radius[b], flow.value[b] + flow.radius[b]]),
            torch.stack(known[network.output]),
        )
        if network.head is not None:  # the specification merged into the last layer, written out
            low, high = known[network.features_node]
            for j in range(network.classes):
                difference = network.head.weight[label] - network.head.weight[j]
                least = difference.clamp(min=0) @ low + difference.clamp(max=0) @ high
                close(margins[b, j], least + network.head.bias[label] - network.head.bias[j])


@quick(25)
@given(cases())
def test_chunks_change_nothing(case: Case) -> None:
    def results() -> list[torch.Tensor]:
        bounds = crown_pre_activation(case.network, case.box)
        return [
            *itertools.chain(*bounds.values()),
            relaxed_margins(case.network, bounds, case.box, case.labels),
        ]

    whole = results()
    for elements in (1, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "ELEMENTS", elements)
            for chunked, expected in zip(results(), whole, strict=True):
                close(chunked, expected, 1e-12)


def test_chunks_are_as_small_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("mlp", 1)
    widest = max(torch.Size(node.shape).numel() for node in case.network.nodes)
    sizes = []
    one_pass = linear._one_pass

    def spy(network: object, node: int, rows: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(rows.shape[0])
        return one_pass(network, node, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "_one_pass", spy)
    monkeypatch.setattr(linear, "ELEMENTS", 3 * widest)
    relaxed_margins(case.network, propagate(case.network, None, case.box).pre_activation, case.box, case.labels)
    assert sizes == [3, 1]  # two samples, two other classes each


def test_rows_belong_to_their_samples() -> None:
    """Rows in any order, several for one sample and none for another."""
    case = make("conv", 5, batch=3)
    network = case.network
    relaxations = relax(network, propagate(network, None, case.box).pre_activation)
    rows = torch.randn(5, network.classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sample = torch.tensor([2, 0, 2, 2, 0])
    together = lower_bounds(network, network.output, rows, sample, relaxations, case.box)
    for row, s, bound in zip(rows, sample.tolist(), together, strict=True):
        one = slice(s, s + 1)
        alone = relax(network, propagate(network, None, case.box[one]).pre_activation)
        close(bound, specified_bounds(network, network.output, row[None, None], alone, case.box[one])[0, 0])


def test_no_rows() -> None:
    case = make("mlp", 0)
    empty = torch.zeros(0, case.network.classes, dtype=torch.float64)
    assert lower_bounds(
        case.network, case.network.output, empty, torch.zeros(0, dtype=torch.long), {}, case.box
    ).shape == (0,)


def test_margin_specification() -> None:
    rows, others = margin_specification(torch.tensor([0, 2]), 3, torch.float64)
    assert others.tolist() == [[1, 2], [0, 1]]
    assert rows.tolist() == [[[1, -1, 0], [1, 0, -1]], [[-1, 0, 1], [0, -1, 1]]]


def test_relu_relaxation() -> None:
    lower = torch.tensor([-2.0, -1.0, -1.0, 0.0, 1.0, -3.0, 0.0])
    upper = torch.tensor([1.0, 2.0, 1.0, 2.0, 3.0, -1.0, 0.0])
    relaxation = Relu().relax(lower, upper)
    assert relaxation.lower_slope.tolist() == [0, 1, 0, 1, 1, 0, 1]
    torch.testing.assert_close(relaxation.upper_slope, torch.tensor([1 / 3, 2 / 3, 1 / 2, 1, 1, 0, 1]))
    assert relaxation.upper_shift is not None
    torch.testing.assert_close(relaxation.upper_shift, torch.tensor([2 / 3, 2 / 3, 1 / 2, 0, 0, 0, 0]))
    assert relaxation.lower_shift is None
    for share in torch.linspace(0, 1, 21):
        x = lower + share * (upper - lower)
        at_least(x.relu(), relaxation.lower_slope * x, 1e-6)
        at_least(relaxation.upper_slope * x + relaxation.upper_shift, x.relu(), 1e-6)


def test_crown_by_hand() -> None:
    """Zhang et al. 2018, small enough for paper: y = relu(x1 + x2) - relu(x1 - x2), x in [-1, 1] x [0, 1]."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        module[0].bias.zero_()
        module[2].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        module[2].bias.zero_()
    network = trace(module, (2,)).bind().detach()
    box = Box(torch.tensor([[-1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0]]).double())
    flow = propagate(network, None, box)
    close(torch.cat(flow.pre_activation[2]), torch.tensor([[-1.0, -2.0], [2.0, 1.0]]).double())
    labels = torch.tensor([0])
    close(interval_margins(network, flow, labels), torch.tensor([[0.0, -1.0]]).double())
    # relu(a) >= a where 2 > 1; relu(b) <= (b + 2) / 3. So y >= x1 + x2 - (x1 - x2 + 2) / 3 >= -2/3 - 2/3.
    close(
        relaxed_margins(network, flow.pre_activation, box, labels),
        torch.tensor([[0.0, -4 / 3]], dtype=torch.float64),
    )


@pytest.mark.parametrize("seed", range(4))
def test_crown_tightens_behind_the_second_layer(seed: int) -> None:
    """Not merely the intervals again: in a deep network unstable neurons gain."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(3) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())]
    case = Case(nn.Sequential(*layers, nn.Linear(6, 3)).double(), torch.rand(2, 6).double(), torch.tensor([0, 1]), 0.3)
    interval = propagate(case.network, None, case.box).pre_activation
    crown = crown_pre_activation(case.network, case.box)
    last = case.network.activations[-1]
    assert (crown[last][1] - crown[last][0]).sum() < 0.99 * (interval[last][1] - interval[last][0]).sum()
