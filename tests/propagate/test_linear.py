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
from ctkd.propagate.ops import Activation, LeakyRelu, Lines, MaxPool, Relu, Sigmoid, Tanh

from . import dense
from .nets import Case, at_least, cases, close, make, quick


def flat(bounds: tuple[torch.Tensor, torch.Tensor], sample: int) -> dense.Interval:
    return bounds[0][sample].flatten(), bounds[1][sample].flatten()


@quick(25)
@given(cases())
def test_against_the_slow_reference(case: Case) -> None:
    network, box = case.network, case.box
    flow = propagate(network, None, box)
    margins, _ = interval_margins(network, flow, case.labels)
    fast = {
        "interval": (flow.pre_activation, relaxed_margins(network, flow.pre_activation, box, case.labels)),
        "crown": (
            crown := crown_pre_activation(network, box),
            relaxed_margins(network, crown, box, case.labels),
        ),
    }
    for b, label in enumerate(case.labels.tolist()):
        known = dense.intervals(network, box.lower[b], box.upper[b])
        before = {i: known[network.nodes[i].inputs[0]] for i in network.nonlinear}
        slow = {"interval": before, "crown": dense.crown(network, box.lower[b], box.upper[b], intersect=True)}
        for name, (bounds, relaxed) in fast.items():
            for i in network.nonlinear:
                close(torch.stack(flat(bounds[i], b)), torch.stack(slow[name][i]))
            # By the bounds as they are: rounding may decide between two inputs of a pool that bound it equally well.
            given = {i: flat(bounds[i], b) for i in network.nonlinear}
            close(relaxed[b], dense.margins(network, given, (box.lower[b], box.upper[b]), label))
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
    one_pass = linear.backward_pass

    def spy(network: object, node: int, rows: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(tuple(rows.shape[:2]))
        return one_pass(network, node, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "backward_pass", spy)
    for rows, expected in ((3, [(1, 2)] * 2), (1, [(1, 1)] * 4), (4, [(2, 2)])):  # two samples, two rivals each
        monkeypatch.setattr(linear, "ELEMENTS", rows * widest)
        relaxed_margins(case.network, propagate(case.network, None, case.box).pre_activation, case.box, case.labels)
        assert sizes == expected
        sizes.clear()


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
    assert relaxation.lower_slope.tolist() == [0, 1, 0, 1, 1, 0, 0]
    torch.testing.assert_close(relaxation.upper_slope, torch.tensor([1 / 3, 2 / 3, 1 / 2, 1, 1, 0, 0]))
    assert relaxation.upper_shift is not None
    torch.testing.assert_close(relaxation.upper_shift, torch.tensor([2 / 3, 2 / 3, 1 / 2, 0, 0, 0, 0]))
    assert relaxation.lower_shift is None
    for share in torch.linspace(0, 1, 21):
        x = lower + share * (upper - lower)
        at_least(x.relu(), relaxation.lower_slope * x, 1e-6)
        at_least(relaxation.upper_slope * x + relaxation.upper_shift, x.relu(), 1e-6)


def at(lines: Lines, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of both lines."""
    shifts = [torch.zeros_like(x) if shift is None else shift for shift in (lines.lower_shift, lines.upper_shift)]
    return lines.lower_slope * x + shifts[0], lines.upper_slope * x + shifts[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-4, 0.1, 1.0, 5.0, 50.0, 1e4, 1e8])
@pytest.mark.parametrize("op", [LeakyRelu(torch.tensor(0.25)), Sigmoid(), Tanh()], ids=lambda op: type(op).__name__)
def test_lines_enclose_the_function(op: Activation, scale: float, dtype: torch.dtype) -> None:
    """Boxes of every width, around zero and on either side of it; the allowance is rounding."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(3000, generator=generator, dtype=dtype) * torch.tensor([scale, 1.0, 10.0]).repeat(1000)
    lower = centre - torch.rand(3000, generator=generator, dtype=dtype) * scale
    upper = centre + torch.rand(3000, generator=generator, dtype=dtype) * scale
    lines = op.relax(lower, upper)
    allowance = 16 * torch.finfo(dtype).eps * (1 + (scale if isinstance(op, LeakyRelu) else 0))
    for share in torch.linspace(0, 1, 41, dtype=dtype):
        x = torch.minimum(lower + share * (upper - lower), upper)
        below, above = at(lines, x)
        assert (below - op(x)).max() <= allowance
        assert (op(x) - above).max() <= allowance


def test_leaky_relu_relaxation() -> None:
    lower = torch.tensor([-2.0, -1.0, -1.0, 0.0, 1.0, -3.0, 0.0])
    upper = torch.tensor([1.0, 2.0, 1.0, 2.0, 3.0, -1.0, 0.0])
    lines = LeakyRelu(torch.tensor(0.25)).relax(lower, upper)
    assert lines.lower_slope.tolist() == [0.25, 1, 0.25, 1, 1, 0.25, 0.25]
    torch.testing.assert_close(lines.upper_slope, torch.tensor([1 / 2, 3 / 4, 5 / 8, 1, 1, 0.25, 0.25]))
    torch.testing.assert_close(lines.upper_shift, torch.tensor([1 / 2, 1 / 2, 3 / 8, 0, 0, 0, 0]))


def test_a_leaky_relu_of_slope_zero_is_a_relu() -> None:
    lower = torch.randn(50, generator=torch.Generator().manual_seed(0))
    upper = lower + torch.rand(50, generator=torch.Generator().manual_seed(1))
    leaky, relu = (op.relax(lower, upper) for op in (LeakyRelu(torch.tensor(0.0)), Relu()))
    for name in ("lower_slope", "upper_slope", "upper_shift"):
        assert torch.equal(getattr(leaky, name), getattr(relu, name))


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=lambda op: type(op).__name__)
def test_s_shaped_relaxation(op: Activation) -> None:
    """One box of each kind: convex, concave, a tangent through the lower end, the chord, a tangent in the middle."""
    lower = torch.tensor([-3.0, 1.0, -4.0, -2.0, -0.1], dtype=torch.float64)
    upper = torch.tensor([-1.0, 3.0, 2.0, 0.2, 3.0], dtype=torch.float64)
    middle, lines = (lower + upper) / 2, op.relax(lower, upper)
    _, low = at(lines, lower)
    _, high = at(lines, upper)
    _, inside = at(lines, middle)
    touches_low, touches_high, touches_middle = (
        [bool((value - op(x)).abs() < 1e-9) for value, x in zip(values, points, strict=True)]
        for values, points in ((low, lower), (high, upper), (inside, middle))
    )
    assert touches_low == [True, False, True, True, False]
    assert touches_high == [True, False, False, True, False]
    assert touches_middle == [False, True, False, False, True]


def test_max_pool_relaxation() -> None:
    """Two windows that share an input. The first is certain, the second is not."""
    lower = torch.tensor([0.0, 3.0, 2.5]).reshape(1, 1, 1, 3)
    upper = torch.tensor([2.0, 4.0, 5.0]).reshape(1, 1, 1, 3)
    op = MaxPool((1, 2), (1, 1), (0, 0))
    assert [bound.flatten().tolist() for bound in op.interval(lower, upper)] == [[3, 3], [4, 5]]
    assert op.unstable(lower, upper).flatten().tolist() == [False, True, True]
    rows = torch.tensor([[2.0, 1.0], [-2.0, 0.0], [0.0, -1.0]]).reshape(1, 3, 1, 1, 2)
    pulled, constant = op.relax(lower, upper).backward(rows)
    assert pulled.flatten(2).tolist() == [[[0, 3, 0], [0, -2, 0], [0, 0, 0]]]
    assert constant is not None
    assert constant.tolist() == [[0, 0, -5]]


def test_pooled_values_are_not_independent() -> None:
    """Both windows pass the middle pixel, so their difference is zero: CROWN sees it, though intervals cannot."""
    module = nn.Sequential(nn.MaxPool2d((1, 2), 1), nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        module[2].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        module[2].bias.zero_()
    network = trace(module, (1, 1, 3)).bind().detach()
    image = torch.tensor([0.2, 0.8, 0.2], dtype=torch.float64).reshape(1, 1, 1, 3)
    box, last = Box(image - 0.1, image + 0.1), network.activations[-1]
    interval = torch.tensor([[-0.2, -0.2], [0.2, 0.2]], dtype=torch.float64)
    close(torch.cat(propagate(network, None, box).pre_activation[last]), interval)
    close(torch.cat(crown_pre_activation(network, box)[last]), torch.zeros(2, 2, dtype=torch.float64))


def test_padding_is_never_the_largest() -> None:
    lower, upper = torch.full((1, 1, 2, 2), -3.0), torch.full((1, 1, 2, 2), -2.0)
    op = MaxPool((2, 2), (2, 2), (1, 1))
    assert op(lower).flatten().tolist() == [-3.0] * 4
    pulled, constant = op.relax(lower, upper).backward(torch.full((1, 1, 1, 2, 2), -1.0))
    assert pulled.flatten().tolist() == [-1.0] * 4  # each window holds one pixel, which is its largest for certain
    assert constant is not None
    assert constant.tolist() == [[0]]


@pytest.mark.parametrize("op", [LeakyRelu(torch.tensor(0.25)), Sigmoid(), Tanh(), MaxPool((2, 2), (2, 2), (0, 0))])
@pytest.mark.parametrize("bounds", [(torch.nan, torch.nan), (-torch.inf, torch.inf), (torch.nan, 1.0)])
def test_bounds_that_are_no_numbers_prove_nothing(op: Activation, bounds: tuple[float, float]) -> None:
    lower, upper = (torch.full((1, 1, 2, 2), bound) for bound in bounds)
    rows = -torch.ones(1, 1, *op(lower).shape[1:])
    pulled, constant = op.relax(lower, upper).backward(rows)
    value = constant + (pulled * upper).sum() - (pulled * (upper - lower)).abs().sum()
    assert not (torch.isfinite(value) and value > -4), value


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
    close(interval_margins(network, flow, labels)[0], torch.tensor([[0.0, -1.0]]).double())
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
