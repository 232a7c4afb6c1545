# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The built-in propagation backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ctkd import propagate as engine
from ctkd.boxes import Box
from ctkd.options import Options
from ctkd.propagate import Bounds, CleanPass, Flow, Graph, Network
from ctkd.propagate.ops import Nonlinear

if TYPE_CHECKING:
    from ctkd.api import Needs


class Native:
    """ctkd's own engine; it has no options."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def trace(self, module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        return engine.trace(module, input_shape)

    def clean_pass(self, graph: Graph, x: Tensor) -> CleanPass:
        return graph.clean_pass(x)

    def propagate(self, network: Network, points: Tensor | None, box: Box | None, needs: Needs) -> Flow:
        tighten = needs.tighten

        def at(i: int, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
            op = network.nodes[i].op
            assert isinstance(op, Nonlinear)
            assert tighten is not None
            return tighten(op, lower, upper)

        return engine.propagate(network, points, box, tighten=None if tighten is None else at)

    def interval_margins(self, network: Network, flow: Flow, labels: Tensor) -> tuple[Tensor, Tensor]:
        return engine.interval_margins(network, flow, labels)

    def interval_lower(self, network: Network, flow: Flow, rows: Tensor, boxes: slice) -> Tensor:
        return engine.interval_lower(network, flow, rows, boxes)

    def relaxed_lower(self, network: Network, bounds: Bounds, box: Box, rows: Tensor) -> Tensor:
        return engine.relaxed_lower(network, bounds, box, rows)
