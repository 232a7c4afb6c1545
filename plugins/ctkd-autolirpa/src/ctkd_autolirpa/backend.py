# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""auto_LiRPA as propagation backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ctkd import propagate as native
from ctkd.boxes import Box
from ctkd.propagate import Bounds, CleanPass, Flow, Graph, Network
from ctkd.propagate.ops import Function
from ctkd_autolirpa.engine import Engine
from ctkd_autolirpa.options import BackendOptions

if TYPE_CHECKING:
    from ctkd.api import Needs


class AutoLirpa:
    """Intervals and backward passes by auto_LiRPA. Sound up to floating-point rounding, differentiable.

    Tracing, folding and points are ctkd's own; so is the last step from the features' intervals to functionals of the
    logits. Operators that ctkd evaluates but has no bounds for are traced too, and bounded as far as auto_LiRPA can.
    """

    Options = BackendOptions

    def __init__(self, options: BackendOptions) -> None:
        self.options = options
        self.engine = Engine()

    def trace(self, module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        graph = native.trace(module, input_shape, functions=True)
        with torch.no_grad():
            network = graph.bind()
            point = torch.full(
                (1, *input_shape), 0.5, dtype=network.dtype, device=next(graph.module.parameters()).device
            )
            self.engine.intervals(network, Box(point, point), None)  # what it cannot bound is refused here
        return graph

    def clean_pass(self, graph: Graph, x: Tensor) -> CleanPass:
        return graph.clean_pass(x)

    def propagate(self, network: Network, points: Tensor | None, box: Box | None, needs: Needs) -> Flow:
        if box is None:
            return native.propagate(network, points, None)
        bounds, entering = self.engine.intervals(network, box, needs.tighten)
        tap, output = network.features_node, network.output
        wanted = {output, *(network.nodes[i].inputs[0] for i in entering), *([] if tap is None else [tap])}
        order = sorted(wanted)
        values = {} if points is None else dict(zip(order, network.evaluate(points, *order), strict=True))

        def joint(i: int, bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            lower, upper = bounds
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
            return (torch.cat([values[i], centre]) if values else centre), radius

        value, radius = joint(output, bounds[output])
        features = (None, None) if tap is None else joint(tap, bounds[tap])
        return Flow(
            network=network,
            points=0 if points is None else points.shape[0],
            value=value,
            radius=radius,
            features=features[0],
            feature_radius=features[1],
            entering={i: joint(network.nodes[i].inputs[0], found) for i, found in entering.items()},
            box=box,
        )

    def interval_margins(self, network: Network, flow: Flow, labels: Tensor) -> tuple[Tensor, Tensor]:
        return native.interval_margins(network, flow, labels)

    def interval_lower(self, network: Network, flow: Flow, rows: Tensor, boxes: slice) -> Tensor:
        return native.interval_lower(network, flow, rows, boxes)

    def relaxed_lower(self, network: Network, bounds: Bounds, box: Box, rows: Tensor) -> Tensor:
        if self.options.intermediate == "crown":
            return self.engine.lower(network, box, rows, "CROWN")
        # Where all bounds are given there is nothing left for intervals to do.
        inner = any(isinstance(node.op, Function) for node in network.nodes)
        return self.engine.lower(network, box, rows, "CROWN-IBP" if inner else "CROWN", bounds)
