# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""SABR (Mueller et al. 2023, arXiv 2210.04871, Section 3): intervals over a small box inside the full one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ctkd.bounds._small_box import Ratio, searched, shrinking, small_box
from ctkd.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step


class SABROptions(Options):
    """Size of the small box."""

    lam: Ratio = 0.4
    """Half-width of the small box relative to the full one (λ of the source); 1 is IBP. The default is CTBench's value
    for MNIST at 0.1; published ones go from 0.03 (CIFAR-10 at 2/255) to 0.9 (8/255)."""
    relu_shrink: Ratio = 1.0
    """Factor on the upper bounds of unstable ReLU inputs; 1 is off. The source has 0.8 for CIFAR-10 at 2/255."""


class SABR:
    """The loss of the interval margins of a small box near the attacked point. An estimate of the full box's loss.

    It bounds the loss over the small box (not with ``relu_shrink`` < 1), which is what its kind ``box`` says.

    Deviations: half-widths are ``lam (ub - lb) / 2`` elementwise over the box clipped to the pixel range, as in
    CTBench; other code takes ``lam * eps`` and shifts or cuts the small box at the border. Statistics of batch norm
    are the clean batch's (``train.statistics`` changes that).
    """

    Options = SABROptions
    evaluates: frozenset[Kind] = frozenset({"box"})
    sound = False

    def __init__(self, options: SABROptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        return Needs(
            searched=searched(self.options.lam),
            boxes={"small": functools.partial(small_box, lam=self.options.lam)},
            tighten=shrinking(self.options.relu_shrink),
        )

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["small"])
