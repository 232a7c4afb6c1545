# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""STAPS (Mao et al. 2023, arXiv 2305.04574): TAPS that starts from SABR's small box."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ctkd.bounds._small_box import Ratio, searched, shrinking, small_box
from ctkd.bounds.taps import TAPSOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step
    from ctkd.propagate import Network


class STAPSOptions(TAPSOptions):
    """Size of the small box, where the network is cut, and how its second block is attacked."""

    lam: Ratio = 0.4
    """Half-width of the small box relative to the full one (λ of SABR); 1 is TAPS. The default is CTBench's value for
    MNIST at 0.1; published ones go from 0.1 to 0.9."""


class STAPS:
    """TAPS' loss over SABR's small box (see both for the details and deviations). An estimate, not a bound.

    While the radius grows it is SABR's loss. With ``split = 0`` and ``product = false`` it always is.
    """

    Options = STAPSOptions
    evaluates: frozenset[Kind] = frozenset({"box", "mixed"})
    sound = False

    def __init__(self, options: STAPSOptions) -> None:
        self.options = options
        self.own_loss = options.product or options.split > 0

    def check(self, network: Network) -> None:
        from ctkd.bounds._latent import cut_node

        cut_node(network, self.options.split)

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        return Needs(
            searched=searched(self.options.lam),
            boxes={"small": functools.partial(small_box, lam=self.options.lam)},
            tighten=shrinking(self.options.relu_shrink),
        )

    def combine(self, step: Step) -> Tensor:
        from ctkd.bounds._latent import split_loss

        return split_loss(step, "small", self.options)
