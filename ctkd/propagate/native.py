# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The built-in propagation backend."""

from __future__ import annotations

from torch import Tensor, nn

from ctkd import propagate as engine
from ctkd.boxes import Box
from ctkd.options import Options
from ctkd.propagate import Bounds, CleanPass, Flow, Graph, Network


class Native:
    """ctkd's own engine; it has no options."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def trace(self, module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        return engine.trace(module, input_shape)

    def clean_pass(self, graph: Graph, x: Tensor) -> CleanPass:
        return graph.clean_pass(x)

    def propagate(self, network: Network, points: Tensor | None, box: Box | None) -> Flow:
        return engine.propagate(network, points, box)

    def interval_margins(self, network: Network, flow: Flow, labels: Tensor) -> Tensor:
        return engine.interval_margins(network, flow, labels)

    def relaxed_margins(self, network: Network, bounds: Bounds, box: Box, labels: Tensor) -> Tensor:
        return engine.relaxed_margins(network, bounds, box, labels)
