# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Networks made so that one kind of rounding is the whole error: every term of the bound is needed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from ctkd.boxes import Box
from ctkd.export.check import runner
from ctkd.propagate import Network, Node, crown_pre_activation, interval_margins, propagate, relaxed_margins
from ctkd.propagate.ops import Add, Conv, LeakyRelu, Linear, MaxPool, Op, Relu, Reshape, Sigmoid, Tanh
from ctkd.rounding import FLOAT32, rounding

from .exact import EXACT, Arithmetic, evaluate, single

COUNT = 400
SMALL = float(np.nextafter(np.float32(2.0**-24), np.float32(0)))
"""Added to 1 in float32 it is not noticed."""
TINY = np.finfo(np.float32).tiny


def chain(shape: tuple[int, ...], *ops: tuple[Op, tuple[int, ...]]) -> Network:
    nodes = [Node(None, (), shape, "input")]
    nodes += [Node(op, (k,), after, f"layer-{k}") for k, (op, after) in enumerate(ops)]
    return Network(tuple(nodes))


def unnoticed() -> Tensor:
    return torch.tensor([[1.0, *[SMALL] * COUNT]])


def zeros(n: int) -> Tensor:
    return torch.zeros(n)


def keep() -> tuple[Op, tuple[int, ...]]:
    """One number as the first logit; the other logit is 0."""
    return Linear(torch.tensor([[1.0], [0.0]]), zeros(2)), (2,)


POOL = ((Reshape((1, 1, 1)), (1, 1, 1)), (MaxPool((1, 1), (1, 1), (0, 0)), (1, 1, 1)), (Reshape((1,)), (1,)))
LONG = (Linear(unnoticed(), zeros(1)), (1,))
SUMS = {
    "in a hidden layer": chain((COUNT + 1,), LONG, (Relu(), (1,)), keep()),
    "passed on by a layer": chain((COUNT + 1,), LONG, (Linear(torch.ones(1, 1), zeros(1)), (1,)), keep()),
    "passed on by max pooling": chain((COUNT + 1,), LONG, *POOL, keep()),
    "in a convolution": chain(
        (1, 1, COUNT + 1),
        (Conv(unnoticed().reshape(1, 1, 1, -1), zeros(1), (1, 1), (0, 0), (1, 1), 1), (1, 1, 1)),
        (Reshape((1,)), (1,)),
        keep(),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_long_sum_is_bounded_wherever_it_is(name: str) -> None:
    net = SUMS[name]
    x = torch.ones(1, *net.input_shape)
    bound = float(rounding(net, Box(x, x), torch.tensor([0])).deployed[0, 1])
    flat = [1.0] * (COUNT + 1)
    error = evaluate(net, flat, EXACT)[0] - Fraction(float(evaluate(net, flat, single())[0]))
    assert Fraction(bound) / 2 < error <= Fraction(bound)


def test_the_slope_of_a_leaky_rectifier_rounds() -> None:
    slope = torch.tensor(0.9)
    net = chain((1,), *[(LeakyRelu(slope), (1,))] * 40, keep())
    largest, bound = 0.0, 0.0
    for x in -1 - torch.rand(300, generator=torch.Generator().manual_seed(0)):
        point = x.reshape(1, 1)
        true, found = (evaluate(net, [float(x)], arithmetic)[0] for arithmetic in (EXACT, single()))
        error = abs(float(true - Fraction(float(found))))
        bound = float(rounding(net, Box(point, point), torch.tensor([0])).deployed[0, 1])
        assert error <= bound
        largest = max(largest, error / abs(float(true)))
    assert largest > 1.2 * FLOAT32.gamma(4)  # more than the last layer alone accounts for


def test_a_sum_of_branches_rounds() -> None:
    """The same branch added to itself and to others, forty times: the last layer alone accounts for less."""
    nodes = [Node(None, (), (1,), "input"), Node(LeakyRelu(torch.tensor(0.3)), (0,), (1,), "start")]
    for k in range(40):
        nodes.append(Node(Add(), (k + 1, 0), (1,), f"add-{k}"))
    nodes.append(Node(keep()[0], (len(nodes) - 1,), (2,), "head"))
    net, largest = Network(tuple(nodes)), 0.0
    for x in torch.rand(300, generator=torch.Generator().manual_seed(0)):
        point = x.reshape(1, 1)
        true, found = (evaluate(net, [float(x)], arithmetic)[0] for arithmetic in (EXACT, single()))
        error = abs(float(true - Fraction(float(found))))
        assert error <= float(rounding(net, Box(point, point), torch.tensor([0])).deployed[0, 1])
        largest = max(largest, error / abs(float(true)))
    assert largest > FLOAT32.gamma(4)


def flushing() -> Arithmetic:
    """Float32 that replaces subnormal results by zero."""

    class Flushed(np.float32):  # type: ignore[misc]
        def __mul__(self, other: object) -> Flushed:  # type: ignore[override]
            return flush(np.float32(self) * np.float32(other))  # type: ignore[arg-type]

        def __add__(self, other: object) -> Flushed:  # type: ignore[override]
            return flush(np.float32(self) + np.float32(other))  # type: ignore[arg-type]

    def flush(value: np.float32) -> Flushed:
        return Flushed(0 if abs(value) < TINY else value)

    def total(parts: list[Flushed]) -> Flushed:
        result = Flushed(0)
        for part in parts:
            result = result + part
        return result

    return Arithmetic(lambda v: flush(np.float32(v)), total)


def test_underflow_in_a_hidden_layer_is_multiplied_by_what_follows() -> None:
    """Every product is flushed, and so the whole sum is lost."""
    net = chain(
        (COUNT,),
        (Linear(torch.full((1, COUNT), 1e-20), zeros(1)), (1,)),
        (Linear(torch.tensor([[1e30], [0.0]]), zeros(2)), (2,)),
    )
    x = torch.full((1, COUNT), 9e-19)
    true, found = (evaluate(net, x[0].tolist(), arithmetic)[0] for arithmetic in (EXACT, flushing()))
    assert float(found) == 0
    bound = float(rounding(net, Box(x, x), torch.tensor([0])).deployed[0, 1])
    assert 3e-6 < float(true) <= bound < 1e-3


@pytest.mark.parametrize("kind", [Sigmoid, Tanh])
def test_sigmoid_and_tanh_are_as_near_as_assumed(kind: type[Sigmoid | Tanh]) -> None:
    """In torch and onnxruntime; the bound counts it."""
    grid = torch.cat([torch.linspace(-30, 30, 400_001), 10.0 ** torch.linspace(-40, 2, 20_001)])
    true = kind()(grid.double())
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(kind.__name__, ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    run = runner(model)
    for found in (kind()(grid), torch.from_numpy(run(grid[:, None].numpy()))[:, 0]):
        assert float((found.double() - true).abs().max()) <= FLOAT32.s_shaped
    x = torch.tensor([[0.5]])
    bound = rounding(chain((1,), (kind(), (1,)), keep()), Box(x, x), torch.tensor([0]))
    assert FLOAT32.s_shaped <= float(bound.deployed[0, 1]) < 2 * FLOAT32.s_shaped


MIDDLES = {"unstable": (0.0, [(Relu(), (1,))]), "active": (1.0, [(Relu(), (1,))]), "largest": (0.0, [*POOL])}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_follows_a_neuron_is_as_wrong_as_its_bounds(name: str) -> None:
    """Bounds in float32: the neuron's input is wrong by large terms that cancel, and so is the line above it."""
    offset, middle = MIDDLES[name]
    largest = 0.0
    for seed in range(12):
        half = 1 + torch.rand(1, COUNT, generator=torch.Generator().manual_seed(seed))
        net = chain(
            (2 * COUNT + 1,),
            (Linear(torch.cat([half, -half, torch.tensor([[1e-4]])], 1), torch.tensor([offset])), (1,)),
            *middle,
            (Linear(torch.tensor([[-1.0], [0.0]]), zeros(2)), (2,)),
        )
        upper = torch.ones(1, 2 * COUNT + 1)
        lower = upper.clone()
        lower[0, -1] = -1
        box, label = Box(lower, upper), torch.tensor([0])
        least = evaluate(net, upper[0].tolist(), EXACT)[0]
        allowed = Fraction(float(rounding(net, box, label, bounds=FLOAT32).bounds[0, 1]))
        flow = propagate(net, None, box)
        for found in (
            interval_margins(net, flow, label)[0],
            relaxed_margins(net, flow.pre_activation, box, label),
            relaxed_margins(net, crown_pre_activation(net, box), box, label),
        ):
            excess = Fraction(float(found[0, 1])) - least
            assert excess <= allowed
            largest = max(largest, float(excess))
    assert largest > FLOAT32.gamma(40) * max(offset, 2e-4)  # more than what is rounded behind the neuron
