# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How rounding errors pass through each operator. One function a family; docs/soundness.md has the derivations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from ctkd.errors import BadInput
from ctkd.propagate.interval import step
from ctkd.propagate.network import Node
from ctkd.propagate.ops import (
    Add,
    Affine,
    AvgPool,
    Conv,
    LeakyRelu,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
    Scale,
    Sigmoid,
    Tanh,
)
from ctkd.rounding.formats import FLOAT32, FLOAT64, Format, upward


@dataclass(frozen=True)
class Model:
    """What is assumed of the computations.

    Attributes:
        deployed: the arithmetic in which the network runs.
        bounds: the arithmetic of the certification stages.
        nodes: of the network: neither a node's readers nor the constants that a backward pass sums are more.
    """

    nodes: int
    deployed: Format = FLOAT32
    bounds: Format = FLOAT64

    @property
    def sums(self) -> int:
        """Additions that one coefficient or constant of a backward pass may meet between layers."""
        return 2 * self.nodes + 8


@dataclass(frozen=True, eq=False)
class State:
    """One node over a batch of boxes; all fields are (batch, *shape), float64, with z the node's exact value.

    Attributes:
        centre, radius: as interval propagation computes them.
        slack: ``|z - centre| <= radius + slack``.
        deployed: ``|computed value - z|`` in the deployed network.
        bound: how far any computed lower bound of the node, by intervals or by a backward pass, may exceed the least z
            of the box; the same for upper bounds.
    """

    centre: Tensor
    radius: Tensor
    slack: Tensor
    deployed: Tensor
    bound: Tensor

    @cached_property
    def extent(self) -> Tensor:
        """``|centre| + radius``."""
        return upward(self.centre.abs() + self.radius, 0)

    @cached_property
    def size(self) -> Tensor:
        """At least ``|z|``."""
        return upward(self.extent + self.slack, 0)

    @property
    def lower(self) -> Tensor:
        """At most z, also in real arithmetic."""
        return self.centre - upward(self.radius + self.slack + 4 * FLOAT64.unit * self.extent, 0)

    @property
    def upper(self) -> Tensor:
        return self.centre + upward(self.radius + self.slack + 4 * FLOAT64.unit * self.extent, 0)


def begin(centre: Tensor, radius: Tensor, model: Model) -> State:
    """The input: exact in the network; the end of a backward pass sums over all of it."""
    zero = torch.zeros_like(centre)
    n = centre[0].numel() + model.sums
    extent = centre.abs() + radius
    bound = upward(model.bounds.gamma(n) * extent + n * model.bounds.tiny, 0)
    return State(centre, radius, upward(4 * FLOAT64.unit * extent, 0), zero, bound)


def advance(node: Node, states: list[State], model: Model) -> State:
    """One operator.

    Raises: BadInput if nothing is known about its rounding, or about that of the constants it was made of.
    """
    op = node.op
    rule = RULES.get(type(op)) if op is not None else None
    if op is None or rule is None:
        raise BadInput(
            f"layer {node.path!r}: no rounding bound of {type(op).__name__}; known: "
            f"{', '.join(kind.__name__ for kind in RULES)}"
        )
    for name, tensor in op.tensors():
        if not tensor.equal(tensor.float().to(tensor.dtype)):
            raise BadInput(
                f"layer {node.path!r}: its {name} is no float32 number, since it was made of several constants; "
                "how a runtime rounds those is not known"
            )
    centre, radius = step(op, [s.centre for s in states], [s.radius for s in states], len(states[0].centre))
    slack, deployed, bound = rule(op, states, model)
    # What reads a node's value adds its coefficients up.
    extent = centre.abs() + radius
    bound = bound + model.bounds.gamma(model.nodes) * (extent + slack)
    return State(centre, radius, upward(slack, 0), upward(deployed, 0), upward(bound, 0))


Errors = tuple[Tensor, Tensor, Tensor]
"""``slack``, ``deployed`` and ``bound`` of an operator's output."""


def terms(op: Op) -> tuple[int, int]:
    """Of affine operators: most addends of an output, and of a coefficient that is pulled back; constants apart."""
    if isinstance(op, Linear):
        return op.weight.shape[1], op.weight.shape[0]
    if isinstance(op, Conv):
        out, channels, height, width = op.weight.shape
        return channels * height * width, out // op.groups * height * width
    if isinstance(op, AvgPool):  # one more, for the weight 1 / n is rounded
        return prod(op.kernel) + 1, prod(op.kernel) + 1
    return (0, 0) if isinstance(op, Reshape) else (1, 1)


def grown(op: Affine, error: Tensor, size: Tensor, n: int, arithmetic: Format, *, sparse: bool = False) -> Tensor:
    """The error behind ``W x + b``: ``|W| error``, and what sums of n terms round off, the largest being ``size``.

    Args:
        sparse: whether terms that are zero all over the box do not count: they are sums in the network itself.

    Returns:
        Infinite where something on the way may overflow.
    """
    if n == 0:
        return op.radius(error)
    held = upward(size + error, 0)
    gamma = arithmetic.gammas(_present(op, held) + 1) if sparse else arithmetic.gamma(n)
    sums = upward(op.map(torch.abs)(held), n)
    weights = max((float(tensor.abs().max()) for _, tensor in op.tensors()), default=1.0)
    largest = held.flatten(1).amax(1).reshape(-1, *[1] * (sums.dim() - 1))
    flushed = 8 * n * arithmetic.tiny * (1 + weights + largest)
    total = upward(op.radius(error) + gamma * sums + flushed, n)
    return torch.where(sums + total < arithmetic.largest, total, torch.inf)


def flushed(node: Node, source: State, model: Model) -> Tensor:
    """(batch,): what underflow in the coefficients of a backward pass does to its result, however small they are."""
    op = node.op
    assert op is not None
    n = (max(terms(op)) if isinstance(op, Affine) else prod(node.shape)) + model.sums
    weights = max((float(tensor.abs().max()) for _, tensor in op.tensors()), default=1.0)
    return upward(8 * n * model.bounds.tiny * (1 + weights) * (1 + source.size.flatten(1).sum(1)), prod(node.shape))


def _present(op: Affine, held: Tensor) -> Tensor:
    """For each output how many of its terms are not zero for certain: to multiply zero and to add it is exact."""
    if isinstance(op, AvgPool):
        return torch.full_like(op(held), terms(op)[0])
    weights = op.map(lambda tensor: (tensor != 0).to(tensor.dtype))
    return weights.radius((held > 0).to(held.dtype)).round()


def affine(op: Affine, states: list[State], model: Model) -> Errors:
    (state,) = states
    forward, backward = terms(op)
    constants = op.map(torch.abs)(torch.zeros_like(state.centre))
    widest = constants[0].numel() + model.sums
    bound = grown(op, state.bound, state.size, max(forward, backward) + 4 if forward else 0, model.bounds)
    return (
        grown(op, state.slack, state.extent, forward + 1 if forward else 0, FLOAT64),
        grown(op, state.deployed, state.size, forward + 1 if forward else 0, model.deployed, sparse=True),
        bound + model.bounds.gamma(widest) * constants + widest * model.bounds.tiny,
    )


def add(op: Add, states: list[State], model: Model) -> Errors:
    a, b = states
    size, held = a.size + b.size, a.size + b.size + a.deployed + b.deployed
    deployed = a.deployed + b.deployed + model.deployed.unit * held + 4 * model.deployed.tiny
    return (
        a.slack + b.slack + FLOAT64.gamma(2) * size,
        torch.where(held < model.deployed.largest, deployed, torch.inf),
        a.bound + b.bound + model.bounds.gamma(2) * (size + a.bound + b.bound),
    )


def relu(op: Relu, states: list[State], model: Model) -> Errors:
    """Exact in the network. Of an unstable neuron the line above may lie below the rectifier by as much as the bounds
    of its input are wrong, and by the rounding of slope and shift."""
    (state,) = states
    widest = state.centre[0].numel() + model.sums
    loose = 2 * state.bound + _constants(state, widest, model)
    active, dead = state.lower - state.bound > 0, state.upper + state.bound < 0
    kept = state.bound + model.bounds.gamma(10) * (state.size + state.bound)
    bound = torch.where(active, kept, torch.where(dead, 0, loose))
    above = (state.upper + state.deployed).clamp(min=0)
    slack = torch.where(state.upper > 0, state.slack + FLOAT64.gamma(8) * state.extent, 0)
    return slack, torch.minimum(state.deployed, above), bound


def _constants(state: State, n: int, model: Model) -> Tensor:
    """Lines through the bounds' values, and their shifts summed over all neurons."""
    return model.bounds.gamma(n + 8) * (state.size + state.bound) + 8 * n * model.bounds.tiny * (1 + state.size)


def leaky_relu(op: LeakyRelu, states: list[State], model: Model) -> Errors:
    """One product, and slopes that are rounded also where the neuron is stable."""
    (state,) = states
    widest = state.centre[0].numel() + model.sums
    held = state.size + state.deployed
    return (
        state.slack + FLOAT64.gamma(10) * state.extent,
        state.deployed + model.deployed.unit * held + 4 * model.deployed.tiny * (1 + held),
        2 * state.bound + _constants(state, widest + 8, model),
    )


def s_shaped(op: Sigmoid | Tanh, states: list[State], model: Model) -> Errors:
    """No steeper than 1 (1/4 for the sigmoid); lines are chords and tangents of computed values."""
    (state,) = states
    steepest = 0.25 if isinstance(op, Sigmoid) else 1.0
    widest = state.centre[0].numel() + model.sums
    size = 1 + state.size
    own = model.bounds.s_shaped + FLOAT64.s_shaped
    return (
        state.slack + FLOAT64.gamma(8) * size + 2 * FLOAT64.s_shaped,
        steepest * state.deployed + model.deployed.s_shaped,
        2 * state.bound + _constants(state, widest + 64, model) + model.bounds.gamma(widest + 64) * size + 8 * own,
    )


def max_pool(op: MaxPool, states: list[State], model: Model) -> Errors:
    """Exact in the network. The line above takes an input that is the largest as far as the bounds are right."""
    (state,) = states
    widest = state.centre[0].numel() + prod(op.kernel) + model.sums
    return (
        op(state.slack) + FLOAT64.gamma(8) * op(state.extent),
        op(state.deployed),
        op(3 * state.bound + _constants(state, widest, model)),
    )


RULES: dict[type[Op], Callable[[Any, list[State], Model], Errors]] = {
    Add: add,
    AvgPool: affine,
    Conv: affine,
    LeakyRelu: leaky_relu,
    Linear: affine,
    MaxPool: max_pool,
    Relu: relu,
    Reshape: affine,
    Scale: affine,
    Sigmoid: s_shaped,
    Tanh: s_shaped,
}
