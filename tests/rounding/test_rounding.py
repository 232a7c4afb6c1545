# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A-priori rounding bounds against rational arithmetic, every order of summation, torch and onnxruntime."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput
from ctkd.export.check import runner
from ctkd.export.onnx_writer import to_onnx
from ctkd.propagate import (
    Network,
    Node,
    crown_pre_activation,
    interval_margins,
    margins_of,
    propagate,
    relaxed_margins,
)
from ctkd.propagate.ops import Function, Linear, Relu
from ctkd.rounding import FLOAT32, FLOAT64, Rounding, rounding
from ctkd.testing.nets import NETS, batch, network
from ctkd.train.finish import finalise

from .exact import EXACT, ORDERS, evaluate, least, single

STAGES = ("ibp", "crown-ibp", "crown")


def layers(*sizes: int, seed: int, spread: float = 0.0) -> Network:
    """A fully connected network of random weights, whose sizes vary by factors of up to ``10 ** spread``."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> Tensor:
        values = generator.standard_normal(shape) * 10 ** generator.uniform(-spread, spread, shape)
        return torch.tensor(values, dtype=torch.float32)

    nodes = [Node(None, (), (sizes[0],), "input")]
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        nodes.append(Node(Linear(draw(after, before), draw(after)), (len(nodes) - 1,), (after,), f"linear-{k}"))
        if k < len(sizes) - 2:
            nodes.append(Node(Relu(), (len(nodes) - 1,), (after,), f"relu-{k}"))
    return Network(tuple(nodes))


def box_of(size: int, seed: int, eps: float = 0.2) -> tuple[Tensor, Box]:
    x = torch.tensor(np.random.default_rng(seed).random((1, size)), dtype=torch.float32)
    return x, perturbation_box(x, eps)


def inside(box: Box, seed: int) -> list[Tensor]:
    """Points of the first box: its ends, a corner, anything."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(box.lower.shape, generator=generator)
    corner = torch.where(share < 0.5, box.lower, box.upper)
    return [box.lower[0], box.upper[0], corner[0], box.clamp(box.lower + share * (box.upper - box.lower))[0]]


def apart(logits: list[Any], label: int) -> list[Fraction]:
    return [Fraction(float(logits[label])) - Fraction(float(v)) for v in logits]


def check_deployed(net: Network, x: Tensor, bound: Rounding, label: int) -> float:
    """The largest share of the bound that an order of summation reaches; fails above 1."""
    flat = [float(v) for v in x.flatten()]
    true = evaluate(net, flat, EXACT)
    reached = 0.0
    for name, arithmetic in ORDERS.items():
        found = apart(evaluate(net, flat, arithmetic), label)
        for j, margin in enumerate(found):
            error = abs(margin - (true[label] - true[j]))
            allowed = Fraction(float(bound.deployed[0, j]))
            assert error <= allowed, (name, j, float(error), float(allowed))
            reached = max(reached, float(error / allowed) if allowed else 0.0)
    return reached


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.sampled_from([0.0, 1.0, 4.0]))
def test_no_order_of_summation_exceeds_the_bound(seed: int, hidden: list[int], spread: float) -> None:
    net = layers(4, *hidden, 3, seed=seed, spread=spread)
    _, box = box_of(4, seed)
    bound = rounding(net, box, torch.tensor([1]))
    assert bound.deployed.isfinite().all()
    for x in inside(box, seed):
        check_deployed(net, x, bound, 1)


FORMS = {
    "convolution": [nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)],
    "pools": [
        nn.Conv2d(1, 2, 1),
        nn.MaxPool2d(2, 1),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(2, 3),
    ],
    "groups": [nn.Conv2d(1, 2, 3, dilation=1), nn.ReLU(), nn.Conv2d(2, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 3)],
    "no head": [nn.Flatten(), nn.Linear(16, 3), nn.LeakyReLU(0.3)],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_operator_keeps_to_the_bound(name: str) -> None:
    torch.manual_seed(0)
    net = finalise(nn.Sequential(*FORMS[name]), (1, 4, 4))
    _x, box = box_of(16, 3)
    box = Box(box.lower.reshape(1, 1, 4, 4), box.upper.reshape(1, 1, 4, 4))
    bound = rounding(net, box, torch.tensor([2]))
    assert max(check_deployed(net, x, bound, 2) for x in inside(box, 0)) > 1e-3  # not vacuous either


@pytest.mark.parametrize("name", NETS)
def test_torch_and_onnxruntime_keep_to_the_bound(name: str) -> None:
    """Those of all forms that an exported network has, in both engines and at 60 points a box."""
    net = network(name, trained=True, dtype=torch.float32)
    x, labels = batch(torch.float32, size=8)
    box = perturbation_box(x, 0.05)
    bound = rounding(net, box, labels)
    run = runner(to_onnx(net))
    wide, generator = net.to(torch.float64), torch.Generator().manual_seed(0)
    reached = torch.zeros(2, dtype=torch.float64)
    for k in range(60):
        share = torch.rand(x.shape, generator=generator)
        points = box.clamp(box.lower + (share if k % 2 else share.round()) * (box.upper - box.lower))
        exact = margins_of(wide(points.double()), labels)
        for e, logits in enumerate((net(points), torch.from_numpy(run(points.numpy())))):
            error = (margins_of(logits.double(), labels) - exact).abs() - bound.bounds
            assert (error <= bound.deployed).all()
            others = torch.ones_like(error).scatter(1, labels[:, None], 0) > 0
            reached[e] = torch.maximum(reached[e], (error / bound.deployed)[others].max())
    # The trained narrow network is constant over most boxes.
    assert name == "narrow" or (reached > 1 / 5000).all(), "the bound is further from what is seen than documented"


def test_the_bound_is_reached_up_to_a_tenth() -> None:
    """One large term, then a thousand that are each just too small to be noticed."""
    n = 1000
    small = np.nextafter(np.float32(2.0**-24), np.float32(0))
    weight = torch.zeros(2, n + 1)
    weight[0] = torch.tensor([1.0, *[float(small)] * n])
    net = Network((Node(None, (), (n + 1,), "input"), Node(Linear(weight, torch.zeros(2)), (0,), (2,), "linear")))
    x = torch.ones(1, n + 1)
    (deployed,) = rounding(net, Box(x, x), torch.tensor([0])).deployed[:, 1].tolist()
    exact = evaluate(net, [1] * (n + 1), EXACT)[0]
    error = float(exact - Fraction(float(evaluate(net, [1] * (n + 1), single())[0])))
    assert error <= deployed <= 1.1 * error


@pytest.mark.parametrize("arithmetic", [FLOAT32, FLOAT64])
def test_bounds_minus_their_rounding_are_below_the_exact_minimum(arithmetic: Any) -> None:
    """Networks of one input: their least margin is known exactly. Without the rounding it would be exceeded."""
    dtype = torch.float32 if arithmetic is FLOAT32 else torch.float64
    exceeded = dict.fromkeys(STAGES, 0)
    for seed in range(60):
        net = layers(1, *([3] * (seed % 3)), 2, seed=seed, spread=1.0)
        _, box = box_of(1, seed, 0.3 / 2 ** (seed % 8))
        label = torch.tensor([seed % 2])
        true = least(net, float(box.lower), float(box.upper), seed % 2, 1 - seed % 2)
        allowed = rounding(net, box, label, bounds=arithmetic).bounds[0, 1 - seed % 2]
        for name, found in bounds(net.to(dtype), box.to(dtype), label).items():
            value = Fraction(float(found[0, 1 - seed % 2]))
            assert value - Fraction(float(allowed)) <= true, (name, seed)
            exceeded[name] += value > true
    assert all(count >= 3 for count in exceeded.values()), exceeded


@torch.no_grad()
def bounds(net: Network, box: Box, labels: Tensor) -> dict[str, Tensor]:
    flow = propagate(net, None, box)
    found = (
        interval_margins(net, flow, labels)[0],
        relaxed_margins(net, flow.pre_activation, box, labels),
        relaxed_margins(net, crown_pre_activation(net, box), box, labels),
    )
    return dict(zip(STAGES, found, strict=True))


@pytest.mark.parametrize("name", NETS)
def test_float32_bounds_minus_their_rounding_hold(name: str) -> None:
    """The stages in float32, where rounding matters: what remains is below the margins of sampled points."""
    for trained in (False, True):
        net = network(name, trained=trained, dtype=torch.float32)
        x, labels = batch(torch.float32, size=4)
        box = perturbation_box(x, 0.05)
        allowed = rounding(net, box, labels, bounds=FLOAT32).bounds
        wide, exact = net.to(torch.float64), bounds(net.to(torch.float64), box.to(torch.float64), labels)
        generator = torch.Generator().manual_seed(0)
        for stage, found in bounds(net, box, labels).items():
            left = found.double() - allowed
            for _ in range(20):
                points = torch.where(torch.rand(x.shape, generator=generator) < 0.5, box.lower, box.upper)
                assert (left <= margins_of(wide(points.double()), labels) + 1e-12).all()
            if stage == "ibp":  # its exact value is the same number, whatever computes it
                assert (left <= exact[stage] + 1e-12).all()
                assert ((found.double() - exact[stage]).abs() <= allowed).all()


def test_overflow_and_too_many_terms_have_no_bound() -> None:
    huge = Network(
        (Node(None, (), (2,), "input"), Node(Linear(torch.full((2, 2), 3e38), torch.zeros(2)), (0,), (2,), ""))
    )
    x = torch.ones(1, 2)
    assert rounding(huge, Box(x, x), torch.tensor([0])).deployed[0, 1] == torch.inf
    assert FLOAT32.gamma(2**23) == float("inf")
    hidden = layers(2, 3, 2, seed=0).map(lambda t: t * 1e25)
    assert rounding(hidden, Box(x, x), torch.tensor([0])).deployed[0, 1] == torch.inf


def test_subnormal_numbers_may_be_flushed() -> None:
    """Products below the smallest normal number: with them flushed the error is the whole value."""
    net = layers(3, 3, 2, seed=1).map(lambda t: t * 1e-20 * (t.dim() > 1))
    _, box = box_of(3, 0)
    bound = float(rounding(net, box, torch.tensor([0])).deployed[0, 1])
    true = evaluate(net, box.upper[0].tolist(), EXACT)
    assert 0 < abs(true[0] - true[1]) <= Fraction(bound)
    assert bound < 2.0**-115


def test_an_operator_without_a_rule_is_refused() -> None:
    node = Node(Function("exp"), (0,), (2,), "act")
    with pytest.raises(BadInput, match="layer 'act': no rounding bound of Function; known: Add, AvgPool, Conv"):
        rounding(
            Network((Node(None, (), (2,), "input"), node)), Box(torch.zeros(1, 2), torch.ones(1, 2)), torch.tensor([0])
        )
