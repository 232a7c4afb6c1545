# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Branch and bound over ReLUs: beta-CROWN (Wang et al. 2021, arXiv 2103.06624) with linear programs at the leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ctkd.options import Count, Options, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Found
    from ctkd.boxes import Box
    from ctkd.propagate import Network


class CompleteOptions(Options):
    """How long, and how, each sample is searched."""

    timeout: Positive = 30.0
    """Seconds for one sample; what is not settled then is undecided, so results depend on the machine."""
    nodes: Count = 100_000
    """Subproblems that may be bounded for one sample."""
    batch_size: Count = 256
    """Subproblems bounded together. A GPU likes thousands."""
    iterations: Count = 20
    """Steps of projected Adam for each subproblem, from its parent's slopes and multipliers."""
    root_iterations: Count = 50
    """The same for the whole box, before anything is split."""
    candidates: Count = 2
    """Neurons that are tried, by the bounds of both parts, before one is split."""
    enough: Positive = 1e-6
    """A subproblem is closed where its bound is above this, times the size of the sample's margins at the centre."""
    attack_starts: Count = 4
    """Random starting points of the first search for a counterexample, for each rival class."""
    attack_steps: Count = 40
    """Gradient steps from each."""


class CompleteStage:
    """Decides every sample of a ReLU network, given the time: certified, or broken with a counterexample.

    Splits unstable ReLUs and leaky ReLUs. Other activations are bounded and not split, so that a sample may stay
    undecided where all else is fixed. A time limit makes results depend on the machine; without it, equal calls give
    equal results.
    """

    Options = CompleteOptions
    at_once = 1

    def __init__(self, options: CompleteOptions) -> None:
        self.options = options

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        return self.search(network, box, labels, lambda: False).margins

    def search(self, network: Network, box: Box, labels: Tensor, stop: Callable[[], bool]) -> Found:
        """With proofs, and with the input of the smallest margin met."""
        from ctkd.certify.bab.whole import whole

        return whole(network, box, labels, self.options, stop)
