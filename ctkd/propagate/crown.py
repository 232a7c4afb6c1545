# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bounds of all neurons by backward linear relaxation: CROWN (Zhang et al. 2018, arXiv 1811.00866)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ctkd.boxes import Box, centre_radius
from ctkd.propagate import linear
from ctkd.propagate.interval import Bounds, propagate
from ctkd.propagate.network import Network
from ctkd.propagate.ops import Activation, Add, Linear, Nonlinear, Relaxation, Reshape, Scale
from ctkd.propagate.windows import Path


def crown_pre_activation(network: Network, box: Box) -> Bounds:
    """Bounds of all nonlinear nodes' inputs by CROWN, each layer from the relaxations of the layers before it.

    Only neurons that are unstable under interval arithmetic (see ``Nonlinear.unstable``) are bounded again, and
    the result is the intersection of both, so it is never looser than intervals.
    """
    known: Bounds = {}
    relaxations: dict[int, Relaxation] = {}
    exact = _interval_is_exact(network)
    parts = centre_radius(box)

    def tighten(i: int, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        entry = network.nodes[i]
        op, source = entry.op, entry.inputs[0]
        assert isinstance(op, Nonlinear)
        if source not in exact:
            lower, upper = _tighten(network, source, op.unstable(lower, upper), lower, upper, relaxations, parts)
        known[i] = (lower, upper)
        relaxations[i] = op.relax(lower, upper)
        return lower, upper

    propagate(network, None, box, tighten=tighten)
    return known


def _tighten(
    network: Network,
    node: int,
    chosen: Tensor,
    lower: Tensor,
    upper: Tensor,
    relaxations: dict[int, Relaxation],
    box: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Sample by sample: a relaxation then serves many rows without being copied for each."""
    low, high = lower.flatten(1).clone(), upper.flatten(1).clone()
    path = Path.back_from(network, node, relaxations)
    size = max(1, linear.ELEMENTS // (2 * path.widest(network)))
    for b in range(low.shape[0]):
        one = slice(b, b + 1)
        own = {i: relaxation[one] for i, relaxation in relaxations.items() if i <= node}
        here = box[0][one], box[1][one]
        for neurons in torch.split(chosen[b].flatten().nonzero().squeeze(1), size):
            if len(neurons) == 0:
                continue
            stop, rows, constant = _begin(network, node, path, neurons, own, low.dtype)
            bounds = linear.backward_pass(network, stop, rows, own, here).reshape(-1, 2) + constant
            low[b, neurons] = torch.maximum(low[b, neurons], bounds[:, 0])
            high[b, neurons] = torch.minimum(high[b, neurons], -bounds[:, 1])
    # Rounding may cross two bounds of a neuron that hardly moves; keep the wider reading.
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    return low.reshape_as(lower), high.reshape_as(upper)


def _begin(
    network: Network, node: int, path: Path, neurons: Tensor, relaxations: dict[int, Relaxation], dtype: torch.dtype
) -> tuple[int, Tensor, Tensor]:
    """The functionals +neuron and -neuron of one sample, pulled back as far as there is a short way.

    Returns the node reached, rows there, (1, 2 * neurons, *shape), and constants, (neurons, 2).
    """
    entry = network.nodes[node]
    if path.nodes:
        return path.pull(network, neurons, relaxations, dtype)
    if isinstance(entry.op, Linear):  # a unit row times the weight is a row of it
        node, rows, constant = entry.inputs[0], entry.op.weight[neurons], entry.op.bias[neurons]
    else:
        rows = torch.zeros(len(neurons), prod(entry.shape), dtype=dtype, device=neurons.device)
        rows = rows.scatter_(1, neurons[:, None], 1.0).reshape(-1, *entry.shape)
        constant = rows.new_zeros(len(neurons))
    return node, torch.stack([rows, -rows], 1).flatten(0, 1).unsqueeze(0), torch.stack([constant, -constant], 1)


def _interval_is_exact(network: Network) -> set[int]:
    """Nodes whose interval bounds no relaxation can tighten: one affine map of a set that still is a box."""
    boxes, exact = {0}, {0}
    for i, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.op, Add) or node.inputs[0] not in boxes:
            continue
        exact.add(i)
        if isinstance(node.op, Activation | Reshape | Scale):
            boxes.add(i)
    return exact
