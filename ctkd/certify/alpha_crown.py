# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CROWN with optimised slopes: alpha-CROWN (Xu et al. 2021, arXiv 2011.13824)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ctkd.options import Count, Options, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Found
    from ctkd.boxes import Box
    from ctkd.propagate import Network


class AlphaCrownOptions(Options):
    """How long slopes are optimised."""

    iterations: Count = 50
    """Steps of projected Adam, from CROWN's slopes. A margin is left as soon as its bound is above zero."""
    rate: Positive = 0.1
    """Step size of slopes, which lie in [0, 1]."""
    timeout: Positive = 60.0
    """Seconds for the samples of one call; results that depend on it depend on the machine."""
    at_once: Count = 16
    """Samples optimised, and stored, together."""


class AlphaCrownStage:
    """The slopes of unstable ReLUs are optimised, for each sample and rival class; intermediate bounds are CROWN's.

    Slopes are optimised in float32, rounded to multiples of 1/255, and the bound with them is computed in the type of
    the network. Other activations keep CROWN's lines. Never looser than CROWN, up to rounding.
    """

    Options = AlphaCrownOptions

    def __init__(self, options: AlphaCrownOptions) -> None:
        self.options = options
        self.at_once = options.at_once

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        return self.search(network, box, labels, lambda: False).margins

    def search(self, network: Network, box: Box, labels: Tensor, stop: Callable[[], bool]) -> Found:
        """With proofs, and without points."""
        from ctkd.certify.bab.alone import alone

        return alone(network, box, labels, self.options, stop)
