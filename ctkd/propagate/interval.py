# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Interval bounds in centre/radius form, points and boxes in one joint pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ctkd.boxes import Box, centre_radius
from ctkd.propagate.network import Network
from ctkd.propagate.ops import Add, Affine, Function, Nonlinear, Op
from ctkd.propagate.ops.function import refuse_function
from ctkd.propagate.spread import Spread

Bounds = dict[int, tuple[Tensor, Tensor]]
"""Lower and upper bounds of nodes' outputs, by node index."""


def step(op: Op, values: list[Tensor], radii: list[Tensor], boxes: int) -> tuple[Tensor, Tensor]:
    """One operator on stacked rows: the last ``boxes`` rows of each value are the centres of boxes.

    The image of every box is contained in centre +- radius of the result (up to floating-point rounding).
    """
    if isinstance(op, Affine):
        return op(values[0]), op.radius(radii[0]) if boxes else radii[0]
    if isinstance(op, Add):
        return op(*values), radii[0] + radii[1]
    if isinstance(op, Function):  # of points alone
        return op(*values), radii[0]
    assert isinstance(op, Nonlinear)
    return op.joint(values[0], radii[0], values[0].shape[0] - boxes) if boxes else (op(values[0]), radii[0])


@dataclass(frozen=True, eq=False)
class Flow:
    """What one joint pass computed.

    Attributes:
        points: number of rows that are points; the remaining rows are boxes.
        value: (points + boxes, ...) at the last node visited: points first, then centres.
        radius: (boxes, ...) at the last node visited.
        features, feature_radius: the same at the network's features node, None where it has none.
        entering: for each nonlinear node the value and the radius of its input.
        box: the input boxes, None when the pass began inside the network.
    """

    network: Network
    points: int
    value: Tensor
    radius: Tensor
    features: Tensor | None
    feature_radius: Tensor | None
    entering: dict[int, tuple[Tensor, Tensor]] = field(repr=False)
    box: Box | None

    @cached_property
    def pre_activation(self) -> Bounds:
        """For each nonlinear node the (lower, upper) of its input over the boxes. Computed when first read.

        What a relaxation needs. Those of elementwise activations alone are at ``network.activations``.
        """
        bounds = {}
        for i, (value, radius) in self.entering.items():
            wide = torch.promote_types(value.dtype, torch.float32)
            centre, radius = value[self.points :].to(wide), radius.to(wide)
            bounds[i] = (centre - radius, centre + radius)
        return bounds


def propagate(
    network: Network,
    points: Tensor | None,
    box: Box | tuple[Tensor, Tensor] | None,
    *,
    start: int = 0,
    stop: int | None = None,
    tighten: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Flow:
    """Points and boxes through the network, or through the piece of it between two nodes, in one pass.

    Args:
        points: (points, *shape of ``start``) or None.
        box: boxes at ``start``, as a Box or as (centre, radius), each (boxes, *shape); or None.
        start, stop: nodes to begin after and to end at (default: input and logits). Every path to ``stop``
            must lead through ``start``.
        tighten: called with a nonlinear node and the (lower, upper) of its input; returns tighter ones.

    Raises:
        BadInput: a box meets an operator that has no bounds here (``ops.Function``).

    Returns:
        A Flow. Its box bounds are sound up to floating-point rounding (see docs/soundness.md), and
        differentiable with respect to the network's tensors.
    """
    stop = network.output if stop is None else stop
    centre, radius = (box if isinstance(box, tuple) else centre_radius(box)) if box is not None else (None, None)
    rows = [part for part in (points, centre) if part is not None]
    value = torch.cat(rows) if len(rows) == 2 else rows[0]
    boxes = 0 if radius is None else radius.shape[0]
    count = value.shape[0] - boxes
    values: dict[int, Tensor] = {start: value}
    radii: dict[int, Tensor] = {start: value.new_empty(0) if radius is None else radius}
    entering: dict[int, tuple[Tensor, Tensor]] = {}
    kept = {stop, network.features_node}
    for i in range(start + 1, stop + 1):
        node = network.nodes[i]
        if not node.inputs or any(source not in values for source in node.inputs):
            continue  # lies beside the piece asked for
        assert node.op is not None
        if boxes:
            refuse_function(node.op, node.path)
        given = [values[source] for source in node.inputs], [radii[source] for source in node.inputs]
        if boxes and isinstance(node.op, Nonlinear):
            (value,), (radius,) = given
            if tighten is not None:  # for this operator alone: other readers of the node keep what it computed
                lower, upper = tighten(i, value[count:] - radius, value[count:] + radius)
                value, radius = torch.cat([value[:count], (lower + upper) / 2]), (upper - lower) / 2
                given = [value], [radius]
            entering[i] = (value, radius)
        values[i], radii[i] = step(node.op, *given, boxes)
        for source in node.inputs:
            if network.last_use[source] <= i and source not in kept:
                values.pop(source, None)
                radii.pop(source, None)
    tap, head = network.features_node, network.head
    features, feature_radius = (
        (values[tap].to(head.weight.dtype), radii[tap].to(head.weight.dtype))
        if tap is not None and head is not None and tap in values
        else (None, None)
    )
    return Flow(
        network=network,
        points=count,
        value=values[stop],
        radius=radii[stop],
        features=features,
        feature_radius=feature_radius,
        entering=entering,
        box=box if isinstance(box, Box) else None,
    )


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """``logit[label] - logit[j]`` for every class j, (batch, classes); the entry at the label is 0."""
    return logits.gather(1, labels[:, None]) - logits


def interval_margins(network: Network, flow: Flow, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of the margins over the flow's boxes, (boxes, classes); the entries at the label are 0.

    The specification is merged into the last affine layer, so what ``logit[label]`` and ``logit[j]`` share cancels.
    """
    centre, label = margins_of(flow.value[flow.points :], labels), labels[:, None]
    if network.head is None:
        spread = flow.radius + flow.radius.gather(1, label)
        return (centre - spread).scatter(1, label, 0.0), (centre + spread).scatter(1, label, 0.0)
    assert flow.feature_radius is not None
    weight = network.head.weight
    spread = Spread.apply(weight[labels], weight, flow.feature_radius)  # type: ignore[no-untyped-call]
    return centre - spread, centre + spread


def interval_lower(network: Network, flow: Flow, rows: Tensor, boxes: slice = slice(None)) -> Tensor:
    """Lower bounds of linear functionals of the logits over some of the flow's boxes.

    Args:
        rows: (boxes, specs, classes), the functionals of each box.
        boxes: which boxes of the flow.

    Returns:
        (boxes, specs), sound up to rounding; the rows are merged into the last affine layer.
    """
    if network.head is None:
        centre, radius, constant = flow.value[flow.points :][boxes], flow.radius[boxes], None
    else:
        assert flow.features is not None
        assert flow.feature_radius is not None
        centre, radius = flow.features[flow.points :][boxes], flow.feature_radius[boxes]
        rows, constant = rows @ network.head.weight, rows @ network.head.bias
    value = rows @ centre.unsqueeze(2) - rows.abs() @ radius.unsqueeze(2)
    return value.squeeze(2) if constant is None else value.squeeze(2) + constant
