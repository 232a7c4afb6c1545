# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which unit to split: a cheap score picks candidates, and trying them picks one of these.

The score is the main part of BaBSR's (Bunel et al. 2020, arXiv 1909.06588); trying candidates is filtered smart
branching (De Palma et al. 2021, arXiv 2104.06718).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctkd.certify.bab.bounding import bound
from ctkd.certify.bab.problem import Problem, Subproblems


def free(problem: Problem, part: Subproblems) -> Tensor:
    """Which units are unstable and not fixed yet, (rows, units)."""
    return (part.sign == 0) & (problem.lower[part.sample] < 0) & (problem.upper[part.sample] > 0)


def scores(problem: Problem, part: Subproblems, weights: Tensor) -> Tensor:
    """How much a bound may gain by fixing each unit, (rows, units); below zero where it is not free.

    What the shifts of the lines above contribute to the bound. On the networks tried here it takes fewer subproblems
    than the whole score of the paper, which also counts biases.

    Args:
        weights: (rows, units), the coefficients of the units' outputs in the bound.
    """
    low, high = problem.lower[part.sample], problem.upper[part.sample]
    shift = -low * high / (high - low) * (1 - problem.leak)
    return torch.where(free(problem, part), -weights.clamp(max=0) * shift, -1)


def choose(problem: Problem, part: Subproblems, candidates: Tensor) -> Tensor:
    """For each row the candidate for which the worse of both parts has the largest bound, (rows,).

    Args:
        candidates: (rows, k), units, -1 for none; the first is one.
    """
    rows, count = candidates.shape
    if count == 1:
        return candidates[:, 0]
    where, which = (candidates >= 0).nonzero(as_tuple=True)
    children = part[where].split(candidates[where, which])
    value = bound(problem, children).value.reshape(2, -1).amin(0)
    worse = value.new_full((rows, count), -torch.inf)
    worse[where, which] = value
    return candidates.gather(1, worse.argmax(1, keepdim=True)).squeeze(1)
