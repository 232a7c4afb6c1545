# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The search, for the samples of one call one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctkd.api import Found
from ctkd.boxes import Box
from ctkd.certify.bab.bounding import Effort
from ctkd.certify.bab.problem import Problem
from ctkd.certify.bab.proof import proof_of
from ctkd.certify.bab.search import Plan, Search
from ctkd.propagate import Network

if TYPE_CHECKING:
    from ctkd.certify.complete import CompleteOptions


@torch.no_grad()
def whole(network: Network, box: Box, labels: Tensor, options: CompleteOptions, stop: Callable[[], bool]) -> Found:
    """What ``CompleteStage.search`` returns."""
    plan = Plan(
        nodes=options.nodes,
        batch=options.batch_size,
        candidates=options.candidates,
        root=Effort(options.root_iterations),
        inner=Effort(options.iterations),
        starts=options.attack_starts,
        steps=options.attack_steps,
    )
    # Certified networks and their boxes are float32 numbers: counterexamples count in that arithmetic.
    attacked, inside = network.to(torch.float32), Box(box.lower.float(), box.upper.float())
    margins, points, proofs = [], [], []
    for k in range(len(labels)):
        one, end = slice(k, k + 1), time.monotonic() + options.timeout
        problem = Problem.of(network, box[one], labels[one])
        enough = options.enough * float(problem.size())
        found = Search(problem, attacked, inside[one], plan, enough, end, stop).run()
        margins.append(found.lower)
        points.append(found.point)
        proofs.append(None if found.leaves is None else proof_of(problem, found.leaves))
    return Found(torch.stack(margins), torch.cat(points), proofs)
