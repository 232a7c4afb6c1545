# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Subproblems without a free unit: the network is affine there, and a linear program gives the best multipliers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ctkd.certify.bab.bounding import bound
from ctkd.certify.bab.problem import Problem, Subproblems
from ctkd.propagate.linear import rows_at_once
from ctkd.propagate.ops import Lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENOUGH = 1e-9
"""By how much the constraints must miss each other for a region to count as empty."""
SHORTEST = 0.1
"""Seconds that a linear program has at least: most take less."""


@dataclass(frozen=True, eq=False)
class Region:
    """The inputs of a box with ``rows @ x + shift >= 0``, and a margin ``cost @ x + constant`` on them."""

    rows: NDArray[Any]
    shift: NDArray[Any]
    cost: NDArray[Any]
    constant: float
    lower: NDArray[Any]
    upper: NDArray[Any]


def solve(problem: Problem, part: Subproblems, seconds: float) -> tuple[Subproblems, Tensor | None]:
    """One such subproblem with the multipliers of its linear program, and the point where the margin is least.

    The program's answer is trusted in nothing: any multipliers give a sound bound, and a point is replayed. There is
    no point where the region is empty or the solver fails. Where it is empty a second program proves that; both share
    the seconds.
    """
    end = time.monotonic() + seconds
    fixed = part.sign[0].nonzero().squeeze(1)
    region = _region(problem, part, fixed)
    found = _minimum(region, end)
    point = None
    if found.status == 2:  # infeasible
        multipliers = _emptiness(problem, part, fixed, region, end)
    elif found.status == 0:
        multipliers = -found.ineqlin.marginals if len(fixed) else np.zeros(0)
        point = torch.from_numpy(found.x).to(problem.lower).reshape(1, *problem.network.input_shape)
    else:
        return part, None
    return _with(part, fixed, multipliers), point


def _with(part: Subproblems, fixed: Tensor, multipliers: NDArray[Any]) -> Subproblems:
    values = torch.from_numpy(np.clip(multipliers, 0, None)).to(part.multiplier)
    return replace(part, multiplier=torch.zeros_like(part.multiplier).index_copy(1, fixed, values.unsqueeze(0)))


def _minimum(region: Region, end: float) -> Any:
    """``end`` is on the clock of ``time.monotonic``."""
    from scipy.optimize import linprog

    seconds = max(SHORTEST, end - time.monotonic())
    bounds = np.stack([region.lower, region.upper], 1)
    limits = {"A_ub": -region.rows, "b_ub": region.shift} if len(region.rows) else {}
    return linprog(region.cost, **limits, bounds=bounds, method="highs", options={"time_limit": seconds})


def _emptiness(problem: Problem, part: Subproblems, fixed: Tensor, region: Region, end: float) -> NDArray[Any]:
    """Multipliers that prove an empty region: of the least t with ``rows @ x + shift + t >= 0``, made large."""
    count, inputs = region.rows.shape
    slack = Region(
        np.concatenate([region.rows, np.ones((count, 1))], 1),
        region.shift,
        np.concatenate([np.zeros(inputs), np.ones(1)]),
        0.0,
        np.append(region.lower, -np.inf),
        np.append(region.upper, np.inf),
    )
    found = _minimum(slack, end)
    if found.status != 0 or found.fun <= ENOUGH:
        return np.zeros(count)
    unit: NDArray[Any] = np.clip(-found.ineqlin.marginals, 0, None)
    alone = float(bound(problem, _with(part, fixed, np.zeros(count))).value)
    scale = 2 * (1 + max(0.0, -alone)) / float(found.fun)
    return scale * unit


def _region(problem: Problem, part: Subproblems, fixed: Tensor) -> Region:
    """The affine pieces, read off at zero and at every unit vector."""
    network, size = problem.network, prod(problem.network.input_shape)
    points = torch.eye(size + 1, size, dtype=problem.lower.dtype, device=problem.lower.device).roll(1, 0)
    pieces = [_affine(problem, part, chunk) for chunk in torch.split(points, rows_at_once(network, network.output))]
    margin, inputs = (torch.cat(each).cpu().numpy() for each in zip(*pieces, strict=True))
    signed = inputs[:, fixed.cpu().numpy()] * part.sign[0, fixed].cpu().numpy()
    centre, radius = (each[part.sample[0]].flatten().cpu().numpy() for each in problem.box)
    cost, rows = margin[1:] - margin[0], (signed[1:] - signed[0]).T
    return Region(rows, signed[0], cost, float(margin[0]), centre - radius, centre + radius)


def _affine(problem: Problem, part: Subproblems, points: Tensor) -> tuple[Tensor, Tensor]:
    """The margin, (points,), and the units' inputs, (points, units), with the rectifiers as they are fixed."""
    network, sample, sign = problem.network, part.sample[0], part.sign[0]
    active = (sign > 0) | ((sign == 0) & (problem.lower[sample] >= 0))
    slopes = torch.where(active, 1, problem.leak)
    values: dict[int, Tensor] = {0: points.reshape(-1, *network.input_shape)}
    inputs = points.new_zeros(len(points), problem.units)
    for i, node in enumerate(network.nodes[1:], start=1):
        lines = problem.lines.get(i)
        if lines is None:
            values[i] = node.apply(values)
            continue
        assert isinstance(lines, Lines)
        entering = values[node.inputs[0]]
        slope = lines.upper_slope[sample].flatten().clone()  # exact where a neuron is stable
        if i in problem.columns:
            columns, places = problem.columns[i], problem.places[i]
            inputs[:, columns] = entering.flatten(1)[:, places]
            slope[places] = slopes[columns]
        values[i] = entering * slope.reshape(1, *node.shape)
    logits = values[network.output]
    return logits[:, int(problem.labels[sample])] - logits[:, int(part.rival[0])], inputs
