# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Networks in rational arithmetic, and in float32 with sums in any order: loops, slow and plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctkd.propagate import Network
from ctkd.propagate.ops import Add, Affine, AvgPool, LeakyRelu, MaxPool, Relu

Terms = list[tuple[int, float]]
"""Of one output: the inputs that it reads, and their weights."""


def rows(network: Network, i: int) -> tuple[list[Terms], list[float]]:
    """An affine node as weights and constants; unit rows pulled back, which rounds nothing."""
    node = network.nodes[i]
    assert isinstance(node.op, Affine)
    size, shape = prod(node.shape), network.nodes[node.inputs[0]].shape
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *node.shape)
    weights, constants = node.op.map(Tensor.double).backward(eye, shape)
    flat = weights.reshape(size, -1).tolist()
    return (
        [[(k, w) for k, w in enumerate(row) if w] for row in flat],
        [0.0] * size if constants is None else constants.tolist(),
    )


def pools(op: MaxPool, shape: tuple[int, ...]) -> list[list[int]]:
    """The inputs of each window."""
    places = torch.arange(prod(shape), dtype=torch.float64).reshape(1, *shape)
    windows = op._windows(places, -1.0)  # (1, channels, window, windows)
    return [[int(p) for p in column if p >= 0] for channel in windows[0].transpose(1, 2).tolist() for column in channel]


class Arithmetic:
    """Numbers of one kind, and how sums of products are made of them."""

    def __init__(self, number: Callable[[Any], Any], total: Callable[[list[Any]], Any]) -> None:
        self.number, self.total = number, total


EXACT = Arithmetic(Fraction, sum)


def single(order: Callable[[list[Any]], list[Any]] = list, *, tree: bool = False) -> Arithmetic:
    """Float32; the addends of each sum in the order that ``order`` brings them into, one by one or as a tree."""

    def total(parts: list[Any]) -> Any:
        parts = order(parts)
        while tree and len(parts) > 1:
            parts = [a + b for a, b in zip(parts[::2], [*parts[1::2], np.float32(0)], strict=False)]
        result = np.float32(0)
        for part in parts:
            result = result + part
        return result

    return Arithmetic(np.float32, total)


def shuffled(seed: int) -> Callable[[list[Any]], list[Any]]:
    def order(parts: list[Any]) -> list[Any]:
        return [parts[k] for k in np.random.default_rng(seed).permutation(len(parts))]

    return order


ORDERS: dict[str, Arithmetic] = {
    "forwards": single(),
    "backwards": single(lambda parts: parts[::-1]),
    "small first": single(lambda parts: sorted(parts, key=abs)),
    "large first": single(lambda parts: sorted(parts, key=abs, reverse=True)),
    "negative first": single(sorted),
    "tree": single(tree=True),
    **{f"shuffled {seed}": single(shuffled(seed)) for seed in range(3)},
}


def evaluate(network: Network, x: Sequence[Any], arithmetic: Arithmetic) -> list[Any]:
    """The logits at one flat input."""
    number = arithmetic.number
    values: list[list[Any]] = [[number(v) for v in x]]
    for i, node in enumerate(network.nodes[1:], start=1):
        given = values[node.inputs[0]]
        op: Any = node.op
        if isinstance(op, Affine):
            weights, constants = rows(network, i)
            share = Fraction(1, prod(op.kernel)) if isinstance(op, AvgPool) and number is Fraction else None
            values.append(
                [
                    arithmetic.total([(share or number(w)) * given[k] for k, w in row] + [number(constant)])
                    for row, constant in zip(weights, constants, strict=True)
                ]
            )
        elif isinstance(op, Add):
            values.append([a + b for a, b in zip(given, values[node.inputs[1]], strict=True)])
        elif isinstance(op, Relu):
            values.append([max(v, number(0)) for v in given])
        elif isinstance(op, LeakyRelu):
            slope = number(op.negative_slope.item())
            values.append([v if v > 0 else slope * v for v in given])
        else:
            assert isinstance(op, MaxPool)
            windows = pools(op, network.nodes[node.inputs[0]].shape)
            values.append([max(given[k] for k in window) for window in windows])
    return values[-1]


def least(network: Network, lower: float, upper: float, label: int, other: int) -> Fraction:
    """The least margin over an interval of a network of one input with rectifiers, exactly.

    Between two neighbouring points of ``points`` every node visited so far is affine.
    """
    points = [Fraction(lower), Fraction(upper)]
    for i, node in enumerate(network.nodes):
        if isinstance(node.op, Relu):
            before = Network(network.nodes[: node.inputs[0] + 1])
            values = [evaluate(before, [p], EXACT) for p in points]
            roots = {
                p + (q - p) * a / (a - b)
                for p, q, left, right in zip(points, points[1:], values, values[1:], strict=False)
                for a, b in zip(left, right, strict=True)
                if a * b < 0
            }
            points = sorted({*points, *roots})
        assert i == 0 or isinstance(node.op, Affine | Relu | Add)
    logits = [evaluate(network, [p], EXACT) for p in points]
    return min(row[label] - row[other] for row in logits)
