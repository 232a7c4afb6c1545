# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""TAPS (Mao et al. 2023, arXiv 2305.04574): intervals through a first block, attacks through the second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.bounds._small_box import Ratio, shrinking
from ctkd.options import Count, Index, Options, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step
    from ctkd.propagate import Network


class TAPSOptions(Options):
    """Where the network is cut, and how its second block is attacked."""

    split: Index = 1
    """Activations in the second block; the cut is right behind the one before them. Published blocks "17 + 4",
    "13 + 8", "10 + 11" and "4 + 17" of CNN-7 are 1, 2, 3 and 5. With 0 interval margins stand for the attacks."""
    steps: Count = 8
    """Gradient steps of each attack in the latent box."""
    restarts: Count = 1
    """Random starting points of each attack. Published scripts have 3."""
    step_size: Positive | None = None
    """Relative to the latent box's width; None is max(0.2, 2 / steps), which reaches an edge from anywhere."""
    product: bool = True
    """Multiply the loss by the interval loss of the same box (the source)."""
    gradient_scale: Positive = 5.0
    """Factor on the gradient of the attacks' loss against that of the interval loss, in the product. Published scripts
    have 2 to 8."""
    relu_shrink: Ratio = 1.0
    """Factor on the upper bounds of unstable ReLU inputs; 1 is off. Published: 0.8 for CIFAR-10 at 2/255."""


class TAPS:
    """``mean(L_TAPS) * mean(L_IBP)`` over the batch, on the full box. An estimate, not a bound.

    L_TAPS is the cross entropy of margins that attacks find in the box at the cut, one attack for each class but the
    label; L_IBP is that of the interval margins. While the radius grows the loss is L_IBP alone. Objectives are
    carried once, on the box's features with the combined loss (on the plain box while the radius grows).

    Attacks start uniformly and follow the gradient's sign; with 10 steps or more the step shrinks to a fifth at the
    published moments (70 %; 40 and 70 % above 50 steps; 30, 60 and 80 % above 80). The best of all points counts. They
    are made for all samples and classes at once, so memory grows with the number of classes.

    Deviations: ``gradient_scale`` acts in the product only; alone it would but rescale the whole loss. Where the box
    at the cut has no width, both of its edges get half of the gradient. Any network can be cut where all its paths
    meet.
    """

    Options = TAPSOptions
    evaluates: frozenset[Kind] = frozenset({"box", "mixed"})
    sound = False

    def __init__(self, options: TAPSOptions) -> None:
        self.options = options
        self.own_loss = options.product or options.split > 0

    def check(self, network: Network) -> None:
        from ctkd.bounds._latent import cut_node

        cut_node(network, self.options.split)

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(boxes={"full": full_box}, tighten=shrinking(self.options.relu_shrink))

    def combine(self, step: Step) -> Tensor:
        from ctkd.bounds._latent import split_loss

        return split_loss(step, "full", self.options)
