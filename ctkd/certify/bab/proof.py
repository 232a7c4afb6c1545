# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a search leaves behind so that others can check it. The form is described in docs/proofs.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.certify.bab.bounding import STEPS
from ctkd.certify.bab.problem import Problem, Subproblems


@dataclass(frozen=True, eq=False)
class Leaf:
    """A subproblem with a bound above zero: one row, and the units fixed on the way to it, ``unit + 1`` times sign."""

    part: Subproblems
    path: tuple[int, ...]


def proof_of(problem: Problem, leaves: list[Leaf]) -> dict[str, Tensor] | None:
    """The tensors of a proof for one sample; None where the network has other nonlinearities than rectifiers."""
    if not problem.rectified:
        return None
    part = Subproblems.cat([leaf.part for leaf in leaves])
    (sample,) = set(part.sample.tolist())
    used = ((problem.lower[sample] < 0) & (problem.upper[sample] > 0)).nonzero().squeeze(1)
    number = {int(unit): k for k, unit in enumerate(used.tolist())}
    paths = [[(1 if u > 0 else -1) * (number[abs(u) - 1] + 1) for u in leaf.path] for leaf in leaves]
    units = [[abs(u) - 1 for u in leaf.path] for leaf in leaves]
    multipliers = [leaf.part.multiplier[0, chosen] for leaf, chosen in zip(leaves, units, strict=True)]
    node = torch.cat([torch.full((len(place),), i) for i, place in problem.places.items()] or [torch.zeros(0)])
    place = torch.cat(list(problem.places.values()) or [torch.zeros(0)])
    return {
        "unit.node": node[used.cpu()].to(torch.int32),
        "unit.place": place[used].to(torch.int32),
        "leaf.rival": part.rival.to(torch.int32),
        "leaf.depth": torch.tensor([len(path) for path in paths], dtype=torch.int32),
        "leaf.slope": (part.slope[:, used] * STEPS).round().to(torch.uint8),
        "path.split": torch.tensor([u for path in paths for u in path], dtype=torch.int32),
        "path.multiplier": torch.cat(multipliers).to(torch.float32),
    }
