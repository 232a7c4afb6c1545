# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A traced module with live parameters, and its lowering to a bound network.

Batch norm lives here and nowhere below: given statistics it is a per-channel scale, and ``bind`` folds it
into the affine layer before it. With batch statistics the folding is differentiable, so gradients of bounds
flow through the statistics into the pass that produced them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctkd.distributed import whole
from ctkd.propagate.batch_norm import normalise
from ctkd.propagate.network import Network, Node, lowered
from ctkd.propagate.ops import Affine, Linear, Op, Relu, Scale
from ctkd.propagate.ops.base import channels
from ctkd.propagate.ops.compiled import CompiledRelu


class Moments(NamedTuple):
    """Statistics of one batch-norm layer: mean and biased variance per channel, and how many values each averages."""

    mean: Tensor
    variance: Tensor
    size: int


HEAVY = 2**20
"""Weights of a fully connected layer from which on ``Graph.bind`` does not fold batch statistics into it."""

Statistics = Mapping[int, Moments]
"""Batch-norm statistics by traced node."""


@dataclass(frozen=True)
class BatchNorm:
    """Stands where a batch-norm layer stands in the traced graph."""

    module: nn.BatchNorm1d | nn.BatchNorm2d

    def scale(self, moments: Moments | None, rank: int) -> Scale:
        """The layer as a per-channel scale; None takes the running statistics."""
        norm = self.module
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = norm.running_mean if moments is None else moments.mean
        variance = norm.running_var if moments is None else moments.variance
        factor = (variance + norm.eps).rsqrt()
        if norm.affine:
            factor = factor * norm.weight
        shift = -mean * factor
        if norm.affine:
            shift = shift + norm.bias
        return Scale(channels(factor, rank), channels(shift, rank))

    def batch(self, x: Tensor) -> tuple[Tensor, Moments]:
        """The layer in training mode on a batch, and the statistics of it."""
        norm = self.module
        weight, bias = (norm.weight, norm.bias) if norm.affine else (None, None)
        result, mean, variance = normalise(x, weight, bias, norm.eps)
        return result, Moments(mean, variance, whole(x.numel() // x.shape[1]))


@dataclass(frozen=True)
class TracedNode:
    """One traced layer: ``make`` builds its operator from the module's current parameters."""

    path: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    make: Callable[[], Op] | BatchNorm | None


class CleanPass(NamedTuple):
    """Logits and features of a batch in training mode, and the statistics it set."""

    logits: Tensor
    features: Tensor | None
    statistics: dict[int, Moments]


class Graph:
    """A classifier as a graph of operators. Made by ``ctkd.propagate.trace``."""

    def __init__(self, module: nn.Module, nodes: Sequence[TracedNode], compute: torch.dtype | None = None) -> None:
        self.module = module
        self.nodes = tuple(nodes)
        self.compute = compute

    def lowered(self, dtype: torch.dtype) -> Graph:
        """The same classifier, computing in ``dtype`` as ``Network.lowered`` does; its parameters stay."""
        return Graph(self.module, self.nodes, dtype)

    def compiled(self) -> Graph:
        """The same classifier with compiled training bounds of its rectifiers; nothing else knows how to store them."""
        return self._with(Relu, CompiledRelu)

    def interpreted(self) -> Graph:
        """The inverse of ``compiled``."""
        return self._with(CompiledRelu, Relu)

    def _with(self, old: type[Relu], new: type[Relu]) -> Graph:
        nodes = [replace(node, make=new) if node.make is old else node for node in self.nodes]
        return Graph(self.module, nodes, self.compute)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def classes(self) -> int:
        return self.nodes[-1].shape[0]

    @cached_property
    def norms(self) -> dict[int, BatchNorm]:
        return {i: node.make for i, node in enumerate(self.nodes) if isinstance(node.make, BatchNorm)}

    @cached_property
    def _mergeable(self) -> frozenset[int]:
        """Per-channel scales whose input nobody else reads: they can become part of an affine layer before them."""
        readers: dict[int, int] = {}
        for node in self.nodes:
            for source in node.inputs:
                readers[source] = readers.get(source, 0) + 1
        return frozenset(
            i for i, node in enumerate(self.nodes) if len(node.inputs) == 1 and readers[node.inputs[0]] == 1
        )

    @cached_property
    def _tap(self) -> int | None:
        """The input of the last affine layer, as ``Network.features_node`` finds it after merging."""
        i = len(self.nodes) - 1
        while i in self._mergeable and (i in self.norms or isinstance(self._op(i), Scale)):
            i = self.nodes[i].inputs[0]
        return self.nodes[i].inputs[0] if i and i not in self.norms and isinstance(self._op(i), Linear) else None

    def _op(self, i: int) -> Op:
        make = self.nodes[i].make
        assert make is not None
        assert not isinstance(make, BatchNorm)
        return make()

    def bind(self, statistics: Statistics | None = None) -> Network:
        """The network with its current parameters, batch norm folded.

        Args:
            statistics: of each batch-norm layer; None takes the running statistics.

        Differentiable with respect to parameters and statistics.
        """
        bound: list[Node] = [Node(None, (), self.input_shape, "input")]
        place: dict[int, int] = {0: 0}
        for i, node in enumerate(self.nodes[1:], start=1):
            inputs = tuple(place[source] for source in node.inputs)
            assert node.make is not None
            if isinstance(node.make, BatchNorm):
                op: Op = node.make.scale(None if statistics is None else statistics[i], len(node.shape) + 1)
            else:
                op = node.make()
            merged = None if statistics and self._heavy(i, bound[inputs[0]]) else self._merged(i, op, bound[inputs[0]])
            if merged is not None:
                before = bound[inputs[0]]
                bound[inputs[0]] = Node(merged, before.inputs, before.shape, before.path)
                place[i] = inputs[0]
                continue
            bound.append(Node(op, inputs, node.shape, node.path))
            place[i] = len(bound) - 1
        network = Network(tuple(bound))
        return network if self.compute is None else network.lowered(self.compute)

    def _heavy(self, i: int, before: Node) -> bool:
        """Whether, in training, scaling the outputs of a hidden fully connected layer is cheaper than its weights."""
        return isinstance(before.op, Linear) and before.op.weight.numel() >= HEAVY and i != len(self.nodes) - 1

    def _merged(self, i: int, op: Op, before: Node) -> Affine | None:
        if not isinstance(op, Scale) or i not in self._mergeable or not isinstance(before.op, Affine):
            return None
        if isinstance(before.op, Scale):
            return before.op.then_scale(op.scale, op.shift)
        rank = len(before.shape) + 1
        per_channel = [1, before.shape[0], *[1] * (rank - 2)]
        parts = [torch.broadcast_to(t, per_channel) for t in (op.scale, op.shift) if _fits(t, per_channel)]
        return before.op.then_scale(*parts) if len(parts) == 2 else None

    def clean_pass(self, x: Tensor) -> CleanPass:
        """A batch in training mode: batch norm uses, and returns, the statistics of this very batch."""
        values: dict[int, Tensor] = {0: x}
        statistics: dict[int, Moments] = {}
        last = {source: i for i, node in enumerate(self.nodes) for source in node.inputs}
        tap = self._tap
        for i, node in enumerate(self.nodes[1:], start=1):
            if isinstance(node.make, BatchNorm):
                values[i], statistics[i] = node.make.batch(values[node.inputs[0]])
            else:
                op = self._op(i)
                if self.compute is not None and tap is not None and tap not in node.inputs:
                    op = lowered(op, self.compute)
                values[i] = op(*(values[source] for source in node.inputs))
            for source in node.inputs:
                if last[source] == i and source != tap:
                    values.pop(source, None)
        logits = values[len(self.nodes) - 1]
        return CleanPass(logits, None if tap is None else values[tap].to(logits.dtype), statistics)

    @torch.no_grad()
    def blended(self, statistics: Statistics) -> dict[int, Moments]:
        """What the running statistics become by one momentum update, as PyTorch does it (unbiased variance)."""
        result = {}
        for i, moments in statistics.items():
            norm = self.norms[i].module
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.momentum is not None
            unbiased = moments.variance * (moments.size / max(1, moments.size - 1))
            pairs = ((norm.running_mean, moments.mean), (norm.running_var, unbiased))
            mean, variance = (torch.lerp(old, new.to(old.dtype), norm.momentum) for old, new in pairs)
            result[i] = Moments(mean, variance, moments.size)
        return result

    @torch.no_grad()
    def update_running(self, statistics: Statistics, keep: Tensor | None = None) -> None:
        """One momentum update of the running statistics.

        ``keep`` is a scalar boolean on the device; where it is False nothing changes.
        """
        for i, after in self.blended(statistics).items():
            norm = self.norms[i].module
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            for running, target in ((norm.running_mean, after.mean), (norm.running_var, after.variance)):
                running.copy_(target if keep is None else torch.where(keep, target, running))
            norm.num_batches_tracked += 1 if keep is None else keep.long()


def _fits(tensor: Tensor, shape: list[int]) -> bool:
    return tensor.dim() == len(shape) and all(a in (1, b) for a, b in zip(tensor.shape, shape, strict=True))
