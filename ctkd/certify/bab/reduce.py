# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One sample's network without its stable neurons.

Over a box most neurons of a certifiably trained network are stable: zero, or the identity. What is left is affine in
the input and in the outputs of the unstable rectifiers, and small enough for dense matrices. Subproblems are bounded on
that network, which agrees with the whole one in the box.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from ctkd.certify.bab.problem import Problem
from ctkd.propagate import Network, Node
from ctkd.propagate.linear import pulled_back, relax, rows_at_once
from ctkd.propagate.ops import Add, Linear, Lines, Op, Relaxation, Reshape

LARGEST = 2**25
"""Coefficients that the matrices may have; a larger network stays as it is."""


def reduced(problem: Problem) -> Problem:
    """The same problem of one sample on such a network, with the same units; as it is where that is not possible."""
    width = prod(problem.network.input_shape)
    rows = problem.units + problem.network.classes
    if not problem.rectified or rows * (width + problem.units) > LARGEST:
        return problem
    build = _Build(width, problem)
    bounds = {}
    for i, columns in problem.columns.items():
        source, place = problem.network.nodes[i].inputs[0], problem.places[i]
        units = build.affine(source, place)
        op = problem.network.nodes[i].op
        assert op is not None
        build.outputs[i] = build.add(op, (units,), (len(place),))
        bounds[build.outputs[i]] = (problem.lower[:, columns], problem.upper[:, columns])
    build.affine(problem.network.output, torch.arange(problem.network.classes, device=problem.labels.device))
    network = Network(tuple(build.nodes))
    return replace(
        problem,
        network=network,
        lines=relax(network, bounds),
        places={build.outputs[i]: torch.arange(len(place), device=place.device) for i, place in problem.places.items()},
        columns={build.outputs[i]: columns for i, columns in problem.columns.items()},
    )


@dataclass(frozen=True, eq=False)
class _Stable(Relaxation):
    """Stable neurons, exactly; what comes to units is taken away and kept."""

    slope: Tensor
    units: Tensor
    taken: list[Tensor] = field(default_factory=list)

    def backward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        self.taken.append(rows.flatten(2)[0][:, self.units])
        return rows * self.slope.unsqueeze(1), None


class _Build:
    """The nodes of the small network. ``outputs`` maps nodes with units to nodes of their own."""

    def __init__(self, width: int, problem: Problem) -> None:
        shape = problem.network.input_shape
        self.problem = problem
        self.nodes = [Node(None, (), shape, ""), Node(Reshape((width,)), (0,), (width,), "")]
        self.outputs: dict[int, int] = {}

    def add(self, op: Op, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.nodes.append(Node(op, inputs, shape, ""))
        return len(self.nodes) - 1

    def affine(self, node: int, places: Tensor) -> int:
        """Some outputs of a node of the whole network, as affine functions of the input and of earlier units."""
        pieces = [self._pull(node, chunk) for chunk in torch.split(places, rows_at_once(self.problem.network, node))]
        constant, *weights = (torch.cat(each) for each in zip(*pieces, strict=True))
        shape = (len(places),)
        total = self.add(Linear(weights[0], constant), (1,), shape)
        for source, weight in zip(self.outputs.values(), weights[1:], strict=True):
            if bool(weight.any()):
                term = self.add(Linear(weight, torch.zeros_like(constant)), (source,), shape)
                total = self.add(Add(), (total, term), shape)
        return total

    def _pull(self, node: int, places: Tensor) -> list[Tensor]:
        """Constants, weights on the input, and weights on each earlier node's units; each (places, ...)."""
        network, lines = self.problem.network, self.problem.lines
        rows = self.problem.lower.new_zeros(len(places), prod(network.nodes[node].shape))
        rows = rows.scatter_(1, places[:, None], 1.0).reshape(1, -1, *network.nodes[node].shape)
        stable = {i: self._stable(i) for i in lines if i <= node}
        at_input, constant = pulled_back(network, node, rows, stable)
        weights = []
        for i in self.outputs:
            taken = stable[i].taken if i in stable else []
            weights.append(taken[0] if taken else rows.new_zeros(len(places), len(self.problem.places[i])))
        constant = rows.new_zeros(1, len(places)) if constant is None else constant
        return [constant[0], at_input.reshape(len(places), -1), *weights]

    def _stable(self, i: int) -> _Stable:
        lines, nothing = self.problem.lines[i], torch.zeros(0, dtype=torch.int64, device=self.problem.labels.device)
        assert isinstance(lines, Lines)
        units = self.problem.places.get(i, nothing)
        slope = lines.upper_slope.flatten(1).index_fill(1, units, 0.0)
        return _Stable(slope.reshape(lines.upper_slope.shape), units)
