# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bounds computed slowly and obviously: every affine layer as a matrix, one sample and one neuron at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import exp, prod, tanh

import torch
from torch import Tensor

from ctkd.propagate import Network
from ctkd.propagate.ops import Add, Affine, LeakyRelu, MaxPool, Nonlinear, Op, Relu, Sigmoid, Tanh

Interval = tuple[Tensor, Tensor]


# The nonlinear operators, one number at a time ----------------------------------------------------------

Line = tuple[float, float]
"""Slope and shift."""


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def function(op: Op) -> Callable[[float], float]:
    if isinstance(op, Sigmoid | Tanh):
        return _sigmoid if isinstance(op, Sigmoid) else tanh
    slope = negative_slope(op)
    return lambda x: x if x >= 0 else slope * x


def negative_slope(op: Op) -> float:
    assert isinstance(op, Relu | LeakyRelu)
    return op.negative_slope.item() if isinstance(op, LeakyRelu) else 0.0


def lines(op: Op, low: float, high: float) -> tuple[Line, Line]:
    """CROWN's lines below and above an activation over [low, high]."""
    if isinstance(op, Sigmoid | Tanh):
        slope, shift = _line_above(op, -high, -low)
        return (slope, 2 * function(op)(0.0) - shift), _line_above(op, low, high)
    slope = negative_slope(op)
    if low >= 0 or high <= 0:
        line = (1.0 if high > 0 else slope, 0.0)
        return line, line
    chord = (high - slope * low) / (high - low)
    return (1.0 if high > -low else slope, 0.0), (chord, (1 - chord) * high)


def _line_above(op: Sigmoid | Tanh, low: float, high: float) -> Line:
    """The tangent with the smallest value in the middle of those that are above the function, else the chord."""
    f = function(op)

    def tangent(d: float) -> Line:
        slope = f(d) * (1 - f(d)) if isinstance(op, Sigmoid) else 1 - f(d) ** 2
        return slope, f(d) - slope * d

    def above(d: float) -> bool:
        slope, shift = tangent(d)
        return slope * low + shift >= f(low)

    middle = (low + high) / 2
    if low >= 0 or low == high or (middle >= 0 and above(middle)):
        return tangent(middle)
    if high <= 0 or not above(high):
        slope = (f(high) - f(low)) / (high - low)
        return slope, f(low) - slope * low
    bad, good = max(middle, 0.0), high
    for _ in range(100):
        d = (bad + good) / 2
        bad, good = (bad, d) if above(d) else (d, good)
    return tangent(good)


@lru_cache(maxsize=64)
def windows(network: Network, i: int) -> list[list[int]]:
    """For each output of a max pool the places of its inputs, all flat."""
    node = network.nodes[i]
    assert isinstance(node.op, MaxPool)
    (channels, height, width), (_, rows, columns) = network.nodes[node.inputs[0]].shape, node.shape
    op, found = node.op, []
    for c in range(channels):
        for y in range(rows):
            for x in range(columns):
                top, left = y * op.stride[0] - op.padding[0], x * op.stride[1] - op.padding[1]
                ys, xs = range(top, top + op.kernel[0]), range(left, left + op.kernel[1])
                inside = [(v, h) for v in ys for h in xs if 0 <= v < height and 0 <= h < width]
                found.append([(c * height + v) * width + h for v, h in inside])
    return found


def largest(window: list[int], low: list[float], high: list[float]) -> tuple[int, bool]:
    """The input with the largest lower bound, and whether it is the largest input for certain."""
    first = max(window, key=lambda n: low[n])
    return first, all(low[first] >= high[n] for n in window if n != first)


def uncertain(network: Network, i: int, low: list[float], high: list[float]) -> list[int]:
    """Inputs of a nonlinear node whose bounds matter for its lines."""
    op = network.nodes[i].op
    if isinstance(op, MaxPool):
        found = set()
        for window in windows(network, i):
            first, certain = largest(window, low, high)
            found |= set() if certain else {n for n in window if high[n] > low[first]}
        return sorted(found)
    if isinstance(op, Sigmoid | Tanh):
        return [n for n, (a, b) in enumerate(zip(low, high, strict=True)) if a < b]
    return [n for n, (a, b) in enumerate(zip(low, high, strict=True)) if a < 0 < b]


# Networks -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def matrix(network: Network, i: int) -> tuple[Tensor, Tensor]:
    """An affine node as (out, in) and (out,), read off its values at zero and at the unit vectors."""
    node = network.nodes[i]
    assert isinstance(node.op, Affine)
    shape = network.nodes[node.inputs[0]].shape
    unit = torch.eye(prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        shift = node.op(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        return (node.op(unit).flatten(1) - shift).T, shift


def interval_step(network: Network, i: int, known: dict[int, Interval]) -> Interval:
    """Interval bounds of one node of one sample, flat, from those of its inputs."""
    node = network.nodes[i]
    low, high = known[node.inputs[0]]
    if isinstance(node.op, Add):
        return low + known[node.inputs[1]][0], high + known[node.inputs[1]][1]
    if isinstance(node.op, MaxPool):
        chosen = windows(network, i)
        return torch.stack([low[w].max() for w in chosen]), torch.stack([high[w].max() for w in chosen])
    if isinstance(node.op, Nonlinear):
        f = function(node.op)
        return tuple(torch.tensor([f(v) for v in bound.tolist()], dtype=torch.float64) for bound in (low, high))
    W, b = matrix(network, i)
    above, below = W.clamp(min=0), W.clamp(max=0)
    return above @ low + below @ high + b, above @ high + below @ low + b


def intervals(network: Network, lower: Tensor, upper: Tensor) -> dict[int, Interval]:
    """Interval bounds of every node for one sample's box."""
    known = {0: (lower.flatten(), upper.flatten())}
    for i in range(1, len(network.nodes)):
        known[i] = interval_step(network, i, known)
    return known


def functional(network: Network, node: int, row: Tensor, before: dict[int, Interval], box: Interval) -> float:
    """CROWN's lower bound of ``row . node`` over a box. ``before`` bounds the input of every nonlinear node."""
    rows = {node: row}
    constant = 0.0
    for i in range(node, 0, -1):
        if i not in rows:
            continue
        entry, row = network.nodes[i], rows.pop(i)
        if isinstance(entry.op, MaxPool):
            low, high = (bound.tolist() for bound in before[i])
            pulled = torch.zeros(len(low), dtype=row.dtype)
            for window, a in zip(windows(network, i), row.tolist(), strict=True):
                first, certain = largest(window, low, high)
                if certain or a > 0:
                    pulled[first] += a
                else:
                    constant += a * max(high[n] for n in window)
        elif isinstance(entry.op, Nonlinear):
            pulled = torch.zeros_like(row)
            for n, (low, high, a) in enumerate(zip(*(t.tolist() for t in (*before[i], row)), strict=True)):
                below, above = lines(entry.op, low, high)
                slope, shift = below if a > 0 else above
                pulled[n] = a * slope
                constant += a * shift
        elif isinstance(entry.op, Affine):
            W, b = matrix(network, i)
            pulled, constant = row @ W, constant + (row @ b).item()
        else:
            pulled = row
        for source in entry.inputs:
            rows[source] = rows[source] + pulled if source in rows else pulled
    a = rows[0]
    return constant + (a.clamp(min=0) @ box[0] + a.clamp(max=0) @ box[1]).item()


def crown(network: Network, lower: Tensor, upper: Tensor, *, intersect: bool) -> dict[int, Interval]:
    """Bounds of every nonlinear node's input for one sample, neuron by neuron.

    A neuron whose bounds cannot matter keeps its interval. With ``intersect`` the others get the better of
    both bounds, and the intervals start from the bounds found so far; without, they get CROWN's bounds alone.
    """
    box = (lower.flatten(), upper.flatten())
    known, before = {0: box}, {}
    plain = intervals(network, lower, upper)
    for i in range(1, len(network.nodes)):
        node = network.nodes[i]
        if isinstance(node.op, Nonlinear):
            source = node.inputs[0]
            low, high = (bound.clone() for bound in (known if intersect else plain)[source])
            units = torch.eye(low.numel(), dtype=torch.float64)
            for n in uncertain(network, i, low.tolist(), high.tolist()):
                unit = units[n]
                least = functional(network, source, unit, before, box)
                most = -functional(network, source, -unit, before, box)
                low[n] = max(low[n].item(), least) if intersect else least
                high[n] = min(high[n].item(), most) if intersect else most
            known[source] = before[i] = (low, high)
        known[i] = interval_step(network, i, known)
    return before


def margins(network: Network, before: dict[int, Interval], box: Interval, label: int) -> Tensor:
    """Lower bounds of ``logit[label] - logit[j]`` for one sample, 0 at the label."""
    unit = torch.eye(network.classes, dtype=torch.float64)
    box = (box[0].flatten(), box[1].flatten())
    return torch.tensor(
        [
            0.0 if j == label else functional(network, network.output, unit[label] - unit[j], before, box)
            for j in range(network.classes)
        ],
        dtype=torch.float64,
    )
