# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""IBP-R (De Palma et al. 2022, arXiv 2206.14772): adversarial training that keeps branch and bound cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import NonNegative, Options

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Needs, Schedule, Step
    from ctkd.propagate import Network


class IBPROptions(Options):
    """The regulariser's weight."""

    weight: NonNegative = 1e-4
    """Of the summed relaxation areas, per sample."""


class IBPR:
    """``loss(adversarial) + weight * sum over unstable ReLUs of -lower * upper / 2``. An estimate, not a bound.

    The sum runs over the interval bounds [lower, upper] of ReLU inputs over the full box; each summand is the area of
    the ReLU's triangle relaxation there. The attack of the source has an enlarged radius: set
    ``train.attack_eps_factor`` (published 2.1 at 2/255 and 1.7 at 8/255 on CIFAR-10).

    The source itself could not be read here: the regulariser's exact published form, and its masked variant with weight
    5e-3, are unchecked and the latter is left out. Objectives act on the adversarial point.
    """

    Options = IBPROptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False

    def __init__(self, options: IBPROptions) -> None:
        self.options = options

    def check(self, network: Network) -> None:
        if not _relus(network):
            raise BadInput("bound.name=ibp-r regularises the inputs of ReLUs, and this network has none")

    def needs(self, schedule: Schedule) -> Needs:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        self.check(step.network)
        bounds = step.bounds("full")
        areas = [_area(*bounds[i]) for i in _relus(step.network)]
        regulariser = step.record("ibp-r/area", sum(areas[1:], areas[0]))
        return step.loss(step["adversarial"]) + self.options.weight * regulariser


def _relus(network: Network) -> list[int]:
    from ctkd.propagate.ops import Relu

    return [i for i in network.activations if isinstance(network.nodes[i].op, Relu)]


def _area(lower: Tensor, upper: Tensor) -> Tensor:
    """Area between the chord and ReLU, summed per sample; 0 where the ReLU is stable."""
    return ((-lower).relu() * upper.relu() / 2).flatten(1).sum(1)
