# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Optimised slopes over whole boxes, without any split."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctkd.api import Found
from ctkd.boxes import Box
from ctkd.certify.bab.bounding import Effort, bound, optimise, rounded
from ctkd.certify.bab.problem import Problem
from ctkd.certify.bab.proof import Leaf, proof_of
from ctkd.propagate import Network, at_classes
from ctkd.propagate.linear import rivals

if TYPE_CHECKING:
    from ctkd.certify.alpha_crown import AlphaCrownOptions

ENOUGH = 1e-6
"""A bound above this, times the size of the sample's margins at the centre, is not improved."""


@torch.no_grad()
def alone(network: Network, box: Box, labels: Tensor, options: AlphaCrownOptions, stop: Callable[[], bool]) -> Found:
    """What ``AlphaCrownStage.search`` returns."""
    end = time.monotonic() + options.timeout
    problem = Problem.of(network, box, labels)
    others = rivals(labels, network.classes)
    count = others.shape[1]
    part = problem.roots(torch.arange(len(labels), device=labels.device).repeat_interleave(count), others.flatten())
    value = bound(problem, part).value
    enough = ENOUGH * problem.size()[part.sample]
    left = (~(value > enough)).nonzero().squeeze(1)
    if len(left) and not stop():
        effort = Effort(options.iterations, rate=options.rate)
        estimates, few = problem.to(torch.float32), part[left].to(torch.float32)
        better = optimise(estimates, few, effort, enough[left], lambda: stop() or time.monotonic() > end)
        better = rounded(better.to(value.dtype))
        found = bound(problem, better).value
        raised = found > value[left]
        value[left[raised]] = found[raised]
        part.slope[left[raised]] = better.slope[raised]
    margins = at_classes(value.reshape(-1, count), others)
    leaves = [Leaf(part[k : k + 1], ()) for k in range(len(part))]
    proofs = [
        proof_of(problem, leaves[k * count : (k + 1) * count])
        if bool((value[k * count : (k + 1) * count] > enough[k * count]).all())
        else None
        for k in range(len(labels))
    ]
    return Found(margins, proofs=proofs)
