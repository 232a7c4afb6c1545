# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bounds computed slowly and obviously: every affine layer as a matrix, one sample and one neuron at a time."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ctkd.propagate import Network
from ctkd.propagate.ops import Add, Affine, Relu

Interval = tuple[Tensor, Tensor]


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
    if isinstance(node.op, Relu):
        return low.clamp(min=0), high.clamp(min=0)
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
    """CROWN's lower bound of ``row . node`` over a box. ``before`` bounds the input of every activation."""
    rows = {node: row}
    constant = 0.0
    for i in range(node, 0, -1):
        if i not in rows:
            continue
        entry, row = network.nodes[i], rows.pop(i)
        if isinstance(entry.op, Relu):
            pulled = torch.zeros_like(row)
            for n, (low, high, a) in enumerate(zip(*(t.tolist() for t in (*before[i], row)), strict=True)):
                if low >= 0:
                    pulled[n] = a
                elif high > 0 and a < 0:  # the chord from (low, 0) to (high, high)
                    pulled[n] = a * high / (high - low)
                    constant += -a * high / (high - low) * low
                elif high > 0:
                    pulled[n] = a if high > -low else 0.0
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
    """Bounds of every activation's input for one sample, neuron by neuron.

    A neuron that intervals show to be stable keeps its interval. With ``intersect`` the others get the better of
    both bounds, and the intervals start from the bounds found so far; without, they get CROWN's bounds alone.
    """
    box = (lower.flatten(), upper.flatten())
    known, before = {0: box}, {}
    plain = intervals(network, lower, upper)
    for i in range(1, len(network.nodes)):
        node = network.nodes[i]
        if isinstance(node.op, Relu):
            source = node.inputs[0]
            low, high = (bound.clone() for bound in (known if intersect else plain)[source])
            for n, unit in enumerate(torch.eye(low.numel(), dtype=torch.float64)):
                if not low[n] < 0 < high[n]:
                    continue
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
