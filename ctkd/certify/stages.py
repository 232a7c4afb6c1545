# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The built-in certification stages: lower bounds of the margins, cheap to tight. All are sound up to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.boxes import Box
    from ctkd.propagate import Network


class IBPStage:
    """Interval bounds, the specification merged into the last layer."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        from ctkd.propagate import interval_margins, propagate

        return interval_margins(network, propagate(network, None, box), labels)[0]


class CrownIBPStage:
    """One backward linear relaxation from the margins; intermediate bounds by intervals."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        from ctkd.propagate import propagate, relaxed_margins

        return relaxed_margins(network, propagate(network, None, box).pre_activation, box, labels)


class CrownStage:
    """Backward linear relaxation for every layer, intersected with intervals."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        from ctkd.propagate import crown_pre_activation, relaxed_margins

        return relaxed_margins(network, crown_pre_activation(network, box), box, labels)
