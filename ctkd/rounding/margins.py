# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A-priori bounds of what rounding does to margins over a box: in the deployed network, and in their bounds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctkd.boxes import Box, centre_radius
from ctkd.propagate.network import Network
from ctkd.propagate.ops import Linear
from ctkd.propagate.spread import Spread
from ctkd.rounding.formats import FLOAT32, FLOAT64, Format, upward
from ctkd.rounding.rules import Model, State, advance, begin, flushed


class Rounding(NamedTuple):
    """How far rounding can move each margin ``logit[label] - logit[j]``, (batch, classes), float64, 0 at the label.

    Attributes:
        deployed: for every input of the box, exactly given: the network's computed logits are ordered as the exact ones
            where the exact margin exceeds this.
        bounds: a lower bound of the margin, computed by intervals or backward passes in float64, exceeds the least
            margin of the box by at most this.

    A margin whose computed lower bound exceeds the sum of both is positive in the deployed network, for every input
    of the box.
    """

    deployed: Tensor
    bounds: Tensor

    def largest(self) -> Rounding:
        """(batch,): over the classes."""
        return Rounding(self.deployed.amax(1), self.bounds.amax(1))


@torch.no_grad()
def rounding(
    network: Network, box: Box, labels: Tensor, *, deployed: Format = FLOAT32, bounds: Format = FLOAT64
) -> Rounding:
    """Bounds of rounding errors of margins over boxes, from weights, box and formats alone.

    They hold for any order of summation in every layer, with or without fused multiply-add, and with subnormal numbers
    kept or flushed. They do not hold for products that are computed otherwise: Winograd's or a Fourier transform's,
    and TF32, bfloat16, float16 or 8-bit arithmetic; nor for a runtime that changes weights.

    Args:
        network: with float32 values in its tensors, in any type.
        box: float32 values, in any type.
        labels: (batch,).
        deployed: arithmetic of the network.
        bounds: arithmetic of the stages. Intervals, and backward passes whose lines have slopes between 0 and 1 and
            touch the function at computed bounds, in any mixture: the stages ``ibp``, ``crown-ibp``, ``crown`` and
            ``alpha-crown``. Not branch and bound, whose multipliers are not bounded beforehand.

    Returns:
        Computed in float64, rounded upward throughout; infinite where a value may overflow. Sound.

    Raises:
        BadInput: an operator about whose rounding nothing is known.
    """
    network, box = network.to(torch.float64), box.to(torch.float64)
    model = Model(len(network.nodes), deployed, bounds)
    states: dict[int, State] = {0: begin(*centre_radius(box), model)}
    head, end = network.head, network.output if network.head is None else network.nodes[-1].inputs[0]
    underflow = box.lower.new_zeros(len(labels))
    for i, node in enumerate(network.nodes[1 : end + 1], start=1):
        underflow = underflow + flushed(node, states[node.inputs[0]], model)
        states[i] = advance(node, [states[source] for source in node.inputs], model)
        for source in node.inputs:
            if network.last_use[source] <= i and source != end:
                states.pop(source, None)
    last = states[end]
    if head is None:
        found = (_apart(last.deployed, last, labels, model.deployed), _apart(last.bound, last, labels, model.bounds))
    else:
        features = head.weight.shape[1]
        found = (
            _merged(head, last.deployed, last, labels, features + 1, model.deployed),
            _merged(head, last.bound, last, labels, features + network.classes + model.sums, model.bounds),
        )
    own, stages = (errors.scatter(1, labels[:, None], 0.0) for errors in (found[0], found[1] + underflow[:, None]))
    return Rounding(own, stages)


def _merged(head: Linear, error: Tensor, state: State, labels: Tensor, n: int, arithmetic: Format) -> Tensor:
    """Errors of features that both logits read cancel; what their own sums round off does not."""
    weight = head.weight
    passed = Spread.apply(weight[labels], weight, error)  # type: ignore[no-untyped-call]
    held = upward(state.size + error, 0)
    sums = held @ weight.abs().t() + head.bias.abs()
    flushed = 8 * n * arithmetic.tiny * (2 + weight.abs().max() + head.bias.abs().max() + held.amax(1, keepdim=True))
    sums, flushed = upward(sums + sums.gather(1, labels[:, None]), n), 2 * flushed
    total = upward(passed + arithmetic.gamma(n + 1) * sums + flushed, n)
    return torch.where(sums + total < arithmetic.largest, total, torch.inf)


def _apart(error: Tensor, state: State, labels: Tensor, arithmetic: Format) -> Tensor:
    own = error + arithmetic.gamma(8) * (state.size + error) + 8 * arithmetic.tiny
    return upward(own + own.gather(1, labels[:, None]), 0)
