# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Backward linear relaxation: CROWN (Zhang et al. 2018, arXiv 1811.00866), CROWN-IBP (2020, arXiv 1906.06316)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from ctkd.boxes import Box, centre_radius
from ctkd.propagate.interval import Bounds
from ctkd.propagate.network import Network
from ctkd.propagate.ops import Add, Affine, Nonlinear, Relaxation
from ctkd.propagate.ops.function import refuse_function

ELEMENTS = 2**25
"""How many coefficients one backward pass may hold at its widest layer; more rows are done in chunks."""

Relaxations = Mapping[int, Relaxation]
"""Of nonlinear nodes, by node index."""
WHOLE = slice(None)


def relax(network: Network, pre_activation: Bounds) -> dict[int, Relaxation]:
    """The linear relaxation of every nonlinear node whose input bounds are known."""
    relaxations = {}
    for i, (lower, upper) in pre_activation.items():
        op = network.nodes[i].op
        assert isinstance(op, Nonlinear)
        relaxations[i] = op.relax(lower, upper)
    return relaxations


def rows_at_once(network: Network, node: int) -> int:
    """How many rows a backward pass from a node may hold."""
    return max(1, ELEMENTS // max(prod(entry.shape) for entry in network.nodes[: node + 1]))


def backward_pass(
    network: Network,
    node: int,
    rows: Tensor,
    relaxations: Relaxations,
    box: tuple[Tensor, Tensor],
    samples: Tensor | slice = WHOLE,
) -> Tensor:
    """Lower bounds of functionals of one node by one pass, however many.

    Args:
        rows: (batch, specs, *shape of the node).
        box: centre and radius.
        samples: which boxes, and which part of every relaxation, the rows are about, in the order of the rows.

    Returns:
        (batch, specs).
    """
    at_input, constant = pulled_back(network, node, rows, relaxations, samples)
    centre, radius = box if _whole(samples) else (part[samples] for part in box)
    at_input = at_input.flatten(2).to(centre.dtype)
    value = at_input @ centre.flatten(1).unsqueeze(2) - at_input.abs() @ radius.flatten(1).unsqueeze(2)
    return value.squeeze(2) if constant is None else value.squeeze(2) + constant


def pulled_back(
    network: Network, node: int, rows: Tensor, relaxations: Relaxations, samples: Tensor | slice = WHOLE
) -> tuple[Tensor, Tensor | None]:
    """Linear functionals of the input below those of one node: (batch, specs, *input_shape), and constants or None."""
    whole = _whole(samples)
    pending: dict[int, Tensor] = {node: rows}
    constant: Tensor | None = None
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        current = pending.pop(i)
        entry = network.nodes[i]
        gained: Tensor | None = None
        if isinstance(entry.op, Affine):
            flat, gained = entry.op.backward(current.flatten(0, 1), network.nodes[entry.inputs[0]].shape)
            gained = None if gained is None else gained.reshape(current.shape[:2])
            current = flat.reshape(*current.shape[:2], *flat.shape[1:])
        elif isinstance(entry.op, Nonlinear):
            current, gained = (relaxations[i] if whole else relaxations[i][samples]).backward(current)
        else:
            refuse_function(entry.op, entry.path)
            assert isinstance(entry.op, Add)
        if gained is not None:
            constant = gained if constant is None else constant + gained
        for source in entry.inputs:
            pending[source] = pending[source] + current if source in pending else current
    return pending[0], constant


def _whole(samples: Tensor | slice) -> bool:
    """Whether nothing needs to be selected: a slice of everything would cost a copy of its gradient."""
    return isinstance(samples, slice) and samples == WHOLE


def lower_bounds(
    network: Network, node: int, rows: Tensor, sample: Tensor, relaxations: Relaxations, box: Box
) -> Tensor:
    """Lower bounds of linear functionals of one node, of any number for each sample and in any order.

    Args:
        node: the node whose output the rows act on.
        rows: (rows, *shape of the node), the functionals.
        sample: (rows,), which sample's box and relaxation each row is about.
        relaxations: of all nonlinear nodes before ``node``, from sound bounds of their inputs.

    Returns:
        (rows,) lower bounds; sound up to floating-point rounding, differentiable. A lower bound of the
        negated row, negated, is an upper bound. ``specified_bounds`` is faster for equally many rows a sample.
    """
    size, parts = rows_at_once(network, node), centre_radius(box)
    found = [
        backward_pass(network, node, rows[i : i + size].unsqueeze(1), relaxations, parts, sample[i : i + size])
        for i in range(0, rows.shape[0], size)
    ]
    return torch.cat(found).squeeze(1) if found else rows.new_zeros(0)


def specified_bounds(network: Network, node: int, specification: Tensor, relaxations: Relaxations, box: Box) -> Tensor:
    """Lower bounds for a specification matrix per sample, (batch, specs, *shape of the node) -> (batch, specs)."""
    return _in_chunks(
        network,
        node,
        specification.shape[:2],
        lambda samples, specs: specification[samples, specs] if specs != WHOLE else specification[samples],
        relaxations,
        box,
    )


def _in_chunks(
    network: Network,
    node: int,
    shape: tuple[int, ...],
    rows: Callable[[slice, slice], Tensor],
    relaxations: Relaxations,
    box: Box,
) -> Tensor:
    """Lower bounds, (batch, specs) as in ``shape``, of the rows that a function makes for a part of both."""
    (batch, specs), size, parts = shape, rows_at_once(network, node), centre_radius(box)
    if batch * specs <= size:
        return backward_pass(network, node, rows(WHOLE, WHOLE), relaxations, parts)
    found = []
    for samples in _steps(batch, max(1, size // specs)):
        some = [
            backward_pass(network, node, rows(samples, chosen), relaxations, parts, samples)
            for chosen in _steps(specs, size)
        ]
        found.append(torch.cat(some, 1))
    return torch.cat(found)


def _steps(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def rivals(labels: Tensor, classes: int) -> Tensor:
    """All classes other than the label, in order, (batch, classes - 1)."""
    others = torch.arange(classes - 1, device=labels.device).expand(labels.shape[0], -1)
    return others + (others >= labels[:, None])


def margin_specification(labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows ``e_label - e_j`` for all j other than the label, (batch, classes - 1, classes), and those j."""
    others = rivals(labels, classes)
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    return eye[labels].unsqueeze(1) - eye[others], others


def relaxed_lower(network: Network, pre_activation: Bounds, box: Box, rows: Tensor) -> Tensor:
    """Lower bounds of functionals of the logits by one backward pass, (batch, specs, classes) -> (batch, specs).

    With interval bounds as ``pre_activation`` this is CROWN-IBP; with those of ``crown_pre_activation``, CROWN.
    """
    return specified_bounds(network, network.output, rows, relax(network, pre_activation), box)


def relaxed_margins(network: Network, pre_activation: Bounds, box: Box, labels: Tensor) -> Tensor:
    """Lower bounds of the margins by one backward pass from the logits, (batch, classes), 0 at the label."""
    others, head, relaxations = rivals(labels, network.classes), network.head, relax(network, pre_activation)
    if head is None:
        specification, _ = margin_specification(labels, network.classes, box.lower.dtype)
        return at_classes(specified_bounds(network, network.output, specification, relaxations, box), others)
    # Merged into the last layer row by row: with many classes the specification is larger than anything behind it.
    weight, bias, features = head.weight, head.bias, network.nodes[-1].inputs[0]
    lower = _in_chunks(
        network,
        features,
        (*others.shape,),
        lambda samples, specs: weight[labels[samples]].unsqueeze(1) - weight[others[samples, specs]],
        relaxations,
        box,
    )
    return at_classes(lower + (bias[labels].unsqueeze(1) - bias[others]), others)


def at_classes(bounds: Tensor, others: Tensor) -> Tensor:
    """(batch, classes - 1) bounds of ``margin_specification``'s rows as (batch, classes) margins, 0 at the label."""
    return bounds.new_zeros(bounds.shape[0], bounds.shape[1] + 1).scatter(1, others, bounds)
