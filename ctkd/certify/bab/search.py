# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Branch and bound over rectifiers for one sample, all rivals together.

The scheme is that of beta-CROWN (Wang et al. 2021, arXiv 2103.06624): subproblems are bounded in batches, with the
slopes and multipliers of their parents as a start and the intermediate bounds of the whole box.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ctkd.boxes import Box
from ctkd.certify.bab import leaf
from ctkd.certify.bab.bounding import Bounds, Effort, bound, optimise, rounded
from ctkd.certify.bab.branching import choose, scores
from ctkd.certify.bab.descent import descend
from ctkd.certify.bab.problem import Problem, Subproblems
from ctkd.certify.bab.proof import Leaf
from ctkd.certify.bab.reduce import reduced
from ctkd.propagate import Network
from ctkd.propagate.linear import rivals
from ctkd.randomness import Noise

DESCENTS = 8
"""How many points of a batch a counterexample is searched from."""


@dataclass(frozen=True)
class Plan:
    """How to search.

    Attributes:
        nodes: how many subproblems may be bounded for one sample.
        batch: how many are bounded together.
        candidates: how many units are tried before one is split.
        root, inner: the effort for whole boxes and for subproblems.
        starts, steps: of the first search for a counterexample, for each rival.
    """

    nodes: int
    batch: int
    candidates: int
    root: Effort
    inner: Effort
    starts: int
    steps: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is known about one sample.

    Attributes:
        lower: (classes,), lower bounds of the margins, 0 at the label.
        point: (1, *input_shape), the input of the smallest margin met, in the type of the attacked network.
        leaves: of all rivals, where every subproblem has a bound above ``enough``; else None.
        nodes: how many subproblems were bounded.
    """

    lower: Tensor
    point: Tensor
    leaves: list[Leaf] | None
    nodes: int


@dataclass(frozen=True, order=True)
class _Open:
    """A subproblem that is not closed: one row, its path, and the units that may be split, best first."""

    value: float
    number: int
    part: Subproblems = field(compare=False)
    path: tuple[int, ...] = field(compare=False)
    candidates: Tensor = field(compare=False)


@dataclass(eq=False)
class Search:
    """The state of one sample's search.

    Attributes:
        problem: of one sample.
        attacked, box: the network, and the box, in the arithmetic in which counterexamples count.
        enough: a bound above it closes a subproblem.
        end: when to give up, on the clock of ``time.monotonic``.
        stop: asked between steps.
    """

    problem: Problem
    attacked: Network
    box: Box
    plan: Plan
    enough: float
    end: float
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self.problem = reduced(self.problem)
        self.estimates = self.problem.to(torch.float32)
        self.lower = self.problem.lower.new_full((self.problem.network.classes,), torch.inf)
        self.point = (self.box.lower + self.box.upper) / 2
        self.least = self.point.new_full((1,), torch.inf)
        self.nodes, self.stuck, self.numbers = 0, False, itertools.count()
        self.queue: list[_Open] = []
        self.leaves: list[Leaf] = []

    def run(self) -> Outcome:
        """Until all is closed, a counterexample is found, or a limit is met."""
        self._root()
        while self.queue and not self._over():
            batch = [heapq.heappop(self.queue) for _ in range(min(len(self.queue), max(1, self.plan.batch // 2)))]
            inner = [node for node in batch if len(node.candidates)]
            if inner:
                self._branch(inner)
            for node in batch:
                if len(node.candidates):
                    continue
                if self._over():
                    heapq.heappush(self.queue, node)
                else:
                    self._solve(node)
        for node in self.queue:
            self._lower_to(node.part, node.value)
        self.lower[self.problem.labels] = 0.0
        closed = not self.queue and not self.stuck and bool(self.least > 0)
        return Outcome(self.lower, self.point, self.leaves if closed else None, self.nodes)

    def _over(self) -> bool:
        return bool(self.least <= 0) or self.nodes >= self.plan.nodes or self._late()

    def _late(self) -> bool:
        return time.monotonic() > self.end or self.stop()

    def _root(self) -> None:
        """Bounds of the whole box for every rival, and a search for a counterexample where they do not suffice."""
        problem = self.problem
        others = rivals(problem.labels, problem.network.classes).squeeze(0)
        part = problem.roots(torch.zeros_like(others), others)
        found = bound(problem, part)
        closed = found.value > self.enough
        self._file(part, found, [()] * len(part))
        part = part[~closed]
        if len(part) == 0:
            return
        noise = self.point.new_empty(self.plan.starts * len(part), *problem.network.input_shape)
        noise = Noise(0, "counterexamples", samples=torch.arange(len(noise))).uniform(noise)
        start = self.box.lower + noise * (self.box.upper - self.box.lower)
        self._descend(start, part.rival.repeat(self.plan.starts), self.plan.steps)
        if self._over():
            return
        self.queue.clear()
        self._examine(self._improved(part, self.plan.root), [()] * len(part), found.value[~closed])

    def _branch(self, parents: list[_Open]) -> None:
        """Split each in two."""
        part = Subproblems.cat([node.part for node in parents])
        candidates = pad_sequence([node.candidates for node in parents], batch_first=True, padding_value=-1)
        unit = choose(self.estimates, part.to(torch.float32), candidates)
        units = (unit + 1).tolist()
        paths = [(*node.path, sign * u) for sign in (1, -1) for node, u in zip(parents, units, strict=True)]
        floor = part.slope.new_tensor([node.value for node in parents]).repeat(2)
        self._examine(self._improved(part.split(unit), self.plan.inner), paths, floor)

    def _improved(self, part: Subproblems, effort: Effort) -> Subproblems:
        better = optimise(self.estimates, part.to(torch.float32), effort, self.enough, self._late)
        return rounded(better.to(self.problem.lower.dtype))

    def _examine(self, part: Subproblems, paths: list[tuple[int, ...]], floor: Tensor) -> None:
        """Bound subproblems, file them, and look for counterexamples where their bounds are least.

        ``floor`` are bounds of their parents.
        """
        found = bound(self.problem, part)
        self.nodes += len(part)
        self._file(
            part,
            replace(found, value=torch.where(found.value > self.enough, found.value, floor.maximum(found.value))),
            paths,
        )
        order = found.value.argsort()[:DESCENTS]
        self._descend(found.weakest[order].to(self.point), part.rival[order], 10)

    def _file(self, part: Subproblems, found: Bounds, paths: list[tuple[int, ...]]) -> None:
        """Closed subproblems to the leaves, the others to the queue."""
        ranked = scores(self.problem, part, found.weights)
        value, units = ranked.topk(min(self.plan.candidates, ranked.shape[1]), dim=1)
        counts = (value >= 0).sum(1).tolist()
        for k, lower in enumerate(found.value.tolist()):
            row = part[k : k + 1]
            if lower > self.enough:
                self._close(row, paths[k], lower)
            else:
                node = _Open(lower, next(self.numbers), row, paths[k], units[k, : counts[k]])
                heapq.heappush(self.queue, node)

    def _solve(self, node: _Open) -> None:
        """Close a subproblem without a free unit, or find a counterexample in it; else it is stuck."""
        if self.problem.rectified:
            part, point = leaf.solve(self.problem, node.part, self.end - time.monotonic())
            part = rounded(part)
            lower = float(bound(self.problem, part).value)
            if lower > self.enough:
                self._close(part, node.path, lower)
                return
            if point is not None:
                self._descend(point.to(self.point), part.rival, 0)
        self.stuck = True
        self._lower_to(node.part, node.value)

    def _close(self, part: Subproblems, path: tuple[int, ...], lower: float) -> None:
        self.leaves.append(Leaf(part, path))
        self._lower_to(part, lower)

    def _lower_to(self, part: Subproblems, lower: float) -> None:
        self.lower[part.rival] = self.lower[part.rival].clamp(max=lower)

    def _descend(self, start: Tensor, towards: Tensor, steps: int) -> None:
        point, least = descend(self.attacked, self.box, self.problem.labels, towards, start, steps)
        if least < self.least:
            self.point, self.least = point, least
