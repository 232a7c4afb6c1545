# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is to be proved, and the subproblems that it is split into."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ctkd.boxes import Box, centre_radius
from ctkd.propagate import Network, crown_pre_activation, margins_of
from ctkd.propagate.linear import Relaxations, relax
from ctkd.propagate.ops import LeakyRelu, Lines, Relaxation, Relu, Selection


@dataclass(frozen=True, eq=False)
class Problem:
    """The margins of some samples over their boxes, with bounds of all neurons: what all subproblems share.

    A *unit* is a rectifier (ReLU, leaky ReLU) that is unstable in some sample. Units are numbered through the network.

    Attributes:
        labels: (samples,).
        box: centre and radius, each (samples, *input_shape).
        lines: relaxations of the nonlinear nodes, (samples, ...). Those of units are replaced in subproblems.
        places: for each node with units their flat positions in it.
        columns: for each node with units their numbers.
        lower, upper: (samples, units), bounds of the units' inputs over the box.
        first: (samples, units), CROWN's slopes: a start.
        leak: (units,), a unit's slope where it is inactive.
    """

    network: Network
    labels: Tensor
    box: tuple[Tensor, Tensor]
    lines: Relaxations
    places: dict[int, Tensor]
    columns: dict[int, slice]
    lower: Tensor
    upper: Tensor
    first: Tensor
    leak: Tensor

    @staticmethod
    def of(network: Network, box: Box, labels: Tensor) -> Problem:
        """With intermediate bounds by CROWN."""
        known = crown_pre_activation(network, box)
        places, columns, lower, upper, leak = {}, {}, [], [], []
        count = 0
        for i, (low, high) in known.items():
            op = network.nodes[i].op
            if not isinstance(op, Relu | LeakyRelu):
                continue
            place = op.unstable(low, high).flatten(1).any(0).nonzero().squeeze(1)
            if len(place) == 0:
                continue
            places[i], columns[i] = place, slice(count, count + len(place))
            count += len(place)
            lower.append(low.flatten(1)[:, place])
            upper.append(high.flatten(1)[:, place])
            slope = op.negative_slope if isinstance(op, LeakyRelu) else low.new_zeros(())
            leak.append(slope.to(low.dtype).expand(len(place)))
        none = box.lower.new_zeros(len(labels), 0)
        low, high = torch.cat([none, *lower], 1), torch.cat([none, *upper], 1)
        first = (high > -low).to(low.dtype)
        leaks = torch.cat([none[0], *leak])
        return Problem(
            network, labels, centre_radius(box), relax(network, known), places, columns, low, high, first, leaks
        )

    @property
    def units(self) -> int:
        return len(self.leak)

    @property
    def rectified(self) -> bool:
        """Whether nothing in the network is nonlinear but rectifiers."""
        return all(isinstance(self.network.nodes[i].op, Relu | LeakyRelu) for i in self.network.nonlinear)

    def size(self) -> Tensor:
        """(samples,): the largest margin in absolute value at the centre of each box, at least 1."""
        margins = margins_of(self.network(self.box[0]), self.labels)
        return margins.abs().amax(1).clamp(min=1)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same in another type. Bounds in a narrower one are estimates: they guide, and prove nothing."""
        return replace(
            self,
            network=self.network.to(dtype),
            box=(self.box[0].to(dtype), self.box[1].to(dtype)),
            lines={i: _to(line, dtype) for i, line in self.lines.items()},
            lower=self.lower.to(dtype),
            upper=self.upper.to(dtype),
            first=self.first.to(dtype),
            leak=self.leak.to(dtype),
        )

    def roots(self, samples: Tensor, rivals: Tensor) -> Subproblems:
        """Nothing split: the whole box, for pairs of a sample and a rival class."""
        slope = self.first[samples]
        nothing = torch.zeros_like(slope)
        return Subproblems(samples, rivals, nothing.to(torch.int8), slope, nothing)


def _to(relaxation: Relaxation, dtype: torch.dtype) -> Relaxation:
    assert isinstance(relaxation, Lines | Selection)
    parts = {field.name: getattr(relaxation, field.name) for field in fields(relaxation)}
    floating = {k: v.to(dtype) for k, v in parts.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return type(relaxation)(**(parts | floating))


@dataclass(frozen=True, eq=False)
class Subproblems:
    """Parts of boxes in which some units are fixed, and the free numbers of a lower bound there. Rows go together.

    Attributes:
        sample: (rows,), whose box.
        rival: (rows,), which class the label is compared with.
        sign: (rows, units), int8: 1 where a unit is fixed active, -1 where inactive, 0 where it is free.
        slope: (rows, units) in [0, 1]: of the line below a free unit, from its leak (0) to one (1).
        multiplier: (rows, units), not negative: of the constraint ``sign * input >= 0`` of a fixed unit; 0 elsewhere.

    Whatever slopes and multipliers are within these ranges, the bound holds.
    """

    sample: Tensor
    rival: Tensor
    sign: Tensor
    slope: Tensor
    multiplier: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, rows: Tensor | slice) -> Subproblems:
        return Subproblems(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, dtype: torch.dtype) -> Subproblems:
        return replace(self, slope=self.slope.to(dtype), multiplier=self.multiplier.to(dtype))

    @staticmethod
    def cat(parts: list[Subproblems]) -> Subproblems:
        names = [field.name for field in fields(Subproblems)]
        return Subproblems(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def split(self, unit: Tensor) -> Subproblems:
        """Each row twice: first all rows with the unit (rows,) active, then all with it inactive."""
        children = []
        for sign in (1, -1):
            chosen = self.sign.scatter(1, unit[:, None], sign)
            children.append(replace(self, sign=chosen))
        return Subproblems.cat(children)
