# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ForwAbs (De Palma et al. 2024, arXiv 2410.01617): adversarial training, the interval loss replaced by a cheap sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step
    from ctkd.propagate import Network


class ForwAbsOptions(Options):
    """The regulariser's weight."""

    weight: NonNegative = 1e-4
    """Of the summed half-widths, per sample (λ of the source). The default is ctkd's own."""


class ForwAbs:
    """``loss(adversarial) + weight * R``, R the summed half-widths of the logits. An estimate, not a bound.

    R sends the half-widths of the input box through |W| of every affine operator and past every activation as if it
    were the identity. Activations here expand nothing, so R is never below the half-widths of interval propagation.

    Deviations: R is per sample and core takes the batch mean, where the source sums over the batch. Batch norm enters
    with the batch statistics of the step (an option of the source). Max pooling takes the largest half-width of each
    window. Objectives act on the adversarial point.
    """

    Options = ForwAbsOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False

    def __init__(self, options: ForwAbsOptions) -> None:
        self.options = options

    def check(self, network: Network) -> None:
        from ctkd.propagate.ops import Function

        others = sorted({node.op.name for node in network.nodes if isinstance(node.op, Function)})
        if others:
            raise BadInput(
                f"bound.name=forwabs knows no widths through {' and '.join(others)}; "
                "choose another bound method, such as --bound ibp"
            )

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        # The clean pass is there for batch norm anyway; a box would be propagated, which is what this method spares.
        return Needs(points=frozenset({"clean", "adversarial"}))

    def combine(self, step: Step) -> Tensor:
        from ctkd.boxes import centre_radius, perturbation_box

        _, radius = centre_radius(perturbation_box(step["clean"].inputs.lower, step.schedule.eps))
        width = step.record("forwabs/width", forward_widths(step.network, radius).sum(1))
        return step.loss(step["adversarial"]) + self.options.weight * width


def forward_widths(network: Network, radius: Tensor) -> Tensor:
    """Half-widths at the logits, (batch, classes), of boxes whose half-widths at the input are ``radius``."""
    from ctkd.propagate.ops import Activation, Add, Affine, Nonlinear

    radii = {0: radius}
    for i, node in enumerate(network.nodes[1:], start=1):
        found = [radii[source] for source in node.inputs]
        if isinstance(node.op, Affine):
            radii[i] = node.op.radius(found[0])
        elif isinstance(node.op, Add):
            radii[i] = found[0] + found[1]
        else:
            assert isinstance(node.op, Nonlinear)
            radii[i] = found[0] if isinstance(node.op, Activation) else node.op(found[0])
    return radii[network.output]
