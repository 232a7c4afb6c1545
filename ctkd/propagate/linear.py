# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Backward linear relaxation: CROWN (Zhang et al. 2018, arXiv 1811.00866), CROWN-IBP (2020, arXiv 1906.06316)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ctkd.boxes import Box, centre_radius
from ctkd.propagate.interval import Bounds, propagate
from ctkd.propagate.network import Network
from ctkd.propagate.ops import Activation, Add, Affine, Nonlinear, Relaxation, Reshape, Scale
from ctkd.propagate.ops.function import refuse_function

ELEMENTS = 2**25
"""How many coefficients one backward pass may hold at its widest layer; more rows are done in chunks."""


def relax(network: Network, pre_activation: Bounds) -> dict[int, Relaxation]:
    """The linear relaxation of every nonlinear node whose input bounds are known."""
    relaxations = {}
    for i, (lower, upper) in pre_activation.items():
        op = network.nodes[i].op
        assert isinstance(op, Nonlinear)
        relaxations[i] = op.relax(lower, upper)
    return relaxations


def lower_bounds(
    network: Network, node: int, rows: Tensor, sample: Tensor, relaxations: dict[int, Relaxation], box: Box
) -> Tensor:
    """Lower bounds of linear functionals of one node over each sample's box.

    Args:
        node: the node whose output the rows act on.
        rows: (rows, *shape of the node), the functionals.
        sample: (rows,), which sample's box and relaxation each row is about.
        relaxations: of all nonlinear nodes before ``node``, from sound bounds of their inputs.

    Returns:
        (rows,) lower bounds; sound up to floating-point rounding, differentiable. A lower bound of the
        negated row, negated, is an upper bound.
    """
    widest = max(prod(network.nodes[i].shape) for i in range(node + 1))
    size = max(1, ELEMENTS // widest)
    centre, radius = centre_radius(box)
    parts = [
        _one_pass(network, node, rows[i : i + size], sample[i : i + size], relaxations, centre, radius)
        for i in range(0, rows.shape[0], size)
    ]
    return torch.cat(parts) if parts else rows.new_zeros(0)


def _one_pass(
    network: Network,
    node: int,
    rows: Tensor,
    sample: Tensor,
    relaxations: dict[int, Relaxation],
    centre: Tensor,
    radius: Tensor,
) -> Tensor:
    pending: dict[int, Tensor] = {node: rows}
    constant = rows.new_zeros(rows.shape[0])
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        current = pending.pop(i)
        entry = network.nodes[i]
        gained: Tensor | None = None
        if isinstance(entry.op, Affine):
            current, gained = entry.op.backward(current, network.nodes[entry.inputs[0]].shape)
        elif isinstance(entry.op, Nonlinear):
            current, gained = relaxations[i].backward(current, sample)
        else:
            refuse_function(entry.op, entry.path)
            assert isinstance(entry.op, Add)
        if gained is not None:
            constant = constant + gained
        for source in entry.inputs:
            pending[source] = pending[source] + current if source in pending else current
    at_input = pending[0].flatten(1)
    value = (at_input * centre.flatten(1)[sample]).sum(1) - (at_input.abs() * radius.flatten(1)[sample]).sum(1)
    return constant + value


def specified_bounds(
    network: Network, node: int, specification: Tensor, relaxations: dict[int, Relaxation], box: Box
) -> Tensor:
    """Lower bounds for a specification matrix per sample, (batch, specs, *shape of the node) -> (batch, specs)."""
    batch, specs = specification.shape[:2]
    sample = torch.arange(batch, device=specification.device).repeat_interleave(specs)
    return lower_bounds(network, node, specification.flatten(0, 1), sample, relaxations, box).reshape(batch, specs)


def margin_specification(labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows ``e_label - e_j`` for all j other than the label, (batch, classes - 1, classes), and those j."""
    others = torch.arange(classes - 1, device=labels.device).expand(labels.shape[0], -1)
    others = others + (others >= labels[:, None])
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    return eye[labels].unsqueeze(1) - eye[others], others


def relaxed_lower(network: Network, pre_activation: Bounds, box: Box, rows: Tensor) -> Tensor:
    """Lower bounds of functionals of the logits by one backward pass, (batch, specs, classes) -> (batch, specs).

    With interval bounds as ``pre_activation`` this is CROWN-IBP; with those of ``crown_pre_activation``, CROWN.
    """
    return specified_bounds(network, network.output, rows, relax(network, pre_activation), box)


def relaxed_margins(network: Network, pre_activation: Bounds, box: Box, labels: Tensor) -> Tensor:
    """Lower bounds of the margins by one backward pass from the logits, (batch, classes), 0 at the label."""
    specification, others = margin_specification(labels, network.classes, box.lower.dtype)
    return at_classes(relaxed_lower(network, pre_activation, box, specification), others)


def at_classes(bounds: Tensor, others: Tensor) -> Tensor:
    """(batch, classes - 1) bounds of ``margin_specification``'s rows as (batch, classes) margins, 0 at the label."""
    return bounds.new_zeros(bounds.shape[0], bounds.shape[1] + 1).scatter(1, others, bounds)


def crown_pre_activation(network: Network, box: Box) -> Bounds:
    """Bounds of all nonlinear nodes' inputs by CROWN, each layer from the relaxations of the layers before it.

    Only neurons that are unstable under interval arithmetic (see ``Nonlinear.unstable``) are bounded again, and
    the result is the intersection of both, so it is never looser than intervals.
    """
    known: Bounds = {}
    relaxations: dict[int, Relaxation] = {}
    exact = _interval_is_exact(network)

    def tighten(i: int, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        entry = network.nodes[i]
        op, source = entry.op, entry.inputs[0]
        assert isinstance(op, Nonlinear)
        if source not in exact:
            lower, upper = _tighten(network, source, op.unstable(lower, upper), lower, upper, relaxations, box)
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
    box: Box,
) -> tuple[Tensor, Tensor]:
    width = prod(network.nodes[node].shape)
    sample, neuron = chosen.flatten(1).nonzero(as_tuple=True)
    low, high = lower.flatten(1).clone(), upper.flatten(1).clone()
    size = max(1, ELEMENTS // max(prod(entry.shape) for entry in network.nodes[: node + 1]))
    for start in range(0, sample.shape[0], size):
        s, n = sample[start : start + size], neuron[start : start + size]
        rows = torch.zeros(s.shape[0], width, dtype=lower.dtype, device=lower.device)
        rows[torch.arange(s.shape[0], device=s.device), n] = 1.0
        rows = rows.reshape(-1, *network.nodes[node].shape)
        low[s, n] = torch.maximum(low[s, n], lower_bounds(network, node, rows, s, relaxations, box))
        high[s, n] = torch.minimum(high[s, n], -lower_bounds(network, node, -rows, s, relaxations, box))
    # Rounding may cross two bounds of a neuron that hardly moves; keep the wider reading.
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    return low.reshape_as(lower), high.reshape_as(upper)


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
