# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""SingleProp (Boopathy et al. 2021, arXiv 2102.01208): margins estimated in one extra forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from ctkd.errors import BadInput
from ctkd.options import Options, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Enclosure, Kind, Needs, Schedule, Step
    from ctkd.propagate import Network

Variant = Literal["fast-lin", "zero-slope", "crown"]


class SinglePropOptions(Options):
    """The rule for unstable ReLUs, and how the nominal loss is mixed in."""

    variant: Variant = "fast-lin"
    """Which linear relaxation the width behind an unstable ReLU imitates."""
    nominal_start: Unit = 1.0
    """Weight of the clean loss (K of the source) where the ramp begins."""
    nominal_end: Unit = 0.5
    """K from the end of the ramp on."""


class SingleProp:
    """``K loss(clean) + (1 - K) loss(surrogate)``. The surrogate margins are estimates, not bounds.

    Beside the nominal value z an error width V is carried: V = eps at the input, |W| V behind an affine operator, and
    behind a ReLU 0 where z + V <= 0, V where z - V >= 0, else by the variant ``3V/4 + z/2 - z^2/(4V)`` (fast-lin),
    ``(z + V)/2`` (zero-slope), or V for z >= 0 and ``(z + V)/2`` below (crown). Surrogate logits are z - V for the
    label and z + V for the others, without merging the specification into the last layer, as in the source.

    Deviations: K goes linearly with eps, and the source's adaptive K is left out. V = eps also at the border of the
    pixel range (as in the source), since it belongs to the image and not to a clipped box. A slip that the
    published code of the crown rule appears to have is not followed.

    Objectives act on both: the clean point, and an estimated enclosure with centre z and radius V at the features.
    """

    Options = SinglePropOptions
    evaluates: frozenset[Kind] = frozenset({"point", "mixed"})
    sound = False
    point: Literal["adversarial", "clean"] = "clean"

    def __init__(self, options: SinglePropOptions) -> None:
        self.options = options

    def check(self, network: Network) -> None:
        from ctkd.propagate.ops import Function, Relu

        others = {type(network.nodes[i].op).__name__ for i in network.nonlinear} - {Relu.__name__}
        others |= {node.op.name for node in network.nodes if isinstance(node.op, Function)}
        if others:
            raise BadInput(
                f"bound.name=singleprop has rules for ReLUs only, and this network has {' and '.join(sorted(others))}; "
                "choose another bound method, such as --bound ibp"
            )

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs

        return Needs(points=frozenset({"clean"}))

    def combine(self, step: Step) -> Tensor:
        self.check(step.network)
        k = step.schedule.between(self.options.nominal_start, self.options.nominal_end)  # K
        if k == 1:
            return step.loss(step["clean"])
        surrogate = step.loss(self.surrogate(step))
        return surrogate if k == 0 else k * step.loss(step["clean"]) + (1 - k) * surrogate

    def surrogate(self, step: Step) -> Enclosure:
        """The estimated enclosure."""
        network, labels, clean = step.network, step.labels, step["clean"]
        known = _pass(network, clean.inputs.lower, step.schedule.eps, self.options.variant)
        centre, radius = known[network.output]
        own = labels[:, None]
        margins = (centre - radius).gather(1, own) - (centre + radius)
        tap = network.features_node
        features, spread = (None, None) if tap is None else known[tap]
        return replace(
            clean,
            kind="mixed",
            centre=features,
            radius=spread,
            margins=margins.scatter(1, own, 0.0),
            logits=None,
            lower=lambda rows: (rows @ centre.unsqueeze(2) - rows.abs() @ radius.unsqueeze(2)).squeeze(2),
        )


def _pass(network: Network, x: Tensor, eps: float, variant: Variant) -> dict[int, tuple[Tensor, Tensor]]:
    """Nominal value and width at every node."""
    import torch

    from ctkd.propagate.ops import Add, Affine

    known = {0: (x, torch.full_like(x, eps))}
    for i, node in enumerate(network.nodes[1:], start=1):
        values, widths = zip(*(known[source] for source in node.inputs), strict=True)
        assert node.op is not None
        if isinstance(node.op, Affine):
            width = node.op.radius(widths[0])
        elif isinstance(node.op, Add):
            width = widths[0] + widths[1]
        else:
            width = _behind_relu(values[0], widths[0], variant)
        known[i] = (node.op(*values), width)
    return known


def _behind_relu(z: Tensor, width: Tensor, variant: Variant) -> Tensor:
    import torch

    active, inactive = z - width >= 0, z + width <= 0
    if variant == "fast-lin":
        # The denominator is replaced where it is not used, so that no gradient becomes 0 * inf.
        safe = torch.where(active | inactive, torch.ones_like(width), width)
        unstable = 0.75 * width + z / 2 - z * (z / safe) / 4
    elif variant == "zero-slope":
        unstable = (z + width) / 2
    else:
        unstable = torch.where(z >= 0, width, (z + width) / 2)
    return torch.where(inactive, torch.zeros_like(width), torch.where(active, width, unstable))
