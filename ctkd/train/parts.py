# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A step of a large batch in parts, with the gradient of the whole.

The whole batch goes through the network once in training mode, with its graph: batch norm sees all of it. Everything
behind that pass - attack, bounds, losses - is computed part by part, from the pass's statistics, logits and features as
constants; what their gradients add up to is sent back through the one pass in the end.

Losses that mix samples beyond batch norm sum over the batch by ``ctkd.distributed.all_sum``, as in several processes.
Before any gradient the parts are therefore computed without one until all such sums T are known, and the slopes G of
the whole loss by them; both are unknown where sums depend on sums, so it is repeated until nothing changes. Then

    sum over parts of (share of samples * loss(T as constants) + G * part's own share of T)

has the gradient of the whole. Where no loss sums over the batch there is nothing to settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctkd.distributed import in_parts, world
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import CleanPass, Moments, Statistics
from ctkd.train.batch import Batch
from ctkd.train.options import TrainOptions
from ctkd.train.step import Found, Loss, Plan, Prepared, TrainingStep

Compute = Callable[[Batch, Plan, Prepared], Loss]
"""``TrainingStep.loss`` or another loss of a step."""
LIMIT = 100
"""Repetitions after which it is given up: far more than sums depend on one another."""


def check_whole(options: TrainOptions) -> None:
    """Raises: BadInput where several processes have parts of the batch already."""
    if options.micro_batch is not None and world() > 1:
        raise BadInput(
            f"train.micro_batch={options.micro_batch} works in one process, and {world()} share the batch already; "
            "leave it out"
        )


@dataclass(eq=False)
class Sums:
    """The batch's sums, in the order in which they are asked for.

    Attributes:
        totals: over all parts, as far as they are known.
        slopes: those of the whole loss by them.
        settling: whether slopes are still looked for.
        leaves: the totals as the part at hand sees them.
        own: the part's summands.
    """

    totals: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    settling: bool = True
    leaves: list[Tensor] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)

    def begin(self) -> None:
        """The next part."""
        self.leaves, self.own = [], []

    def __call__(self, value: Tensor) -> Tensor:
        place = len(self.own)
        known = self.totals[place] if place < len(self.totals) else value
        self.own.append(value)
        self.leaves.append(known.detach().clone().requires_grad_(self.settling and value.is_floating_point()))
        return self.leaves[-1]

    def through(self) -> list[Tensor]:
        """What the part's summands move in the whole loss."""
        pairs = zip(self.own, self.slopes, strict=False)
        return [(own * slope).sum() for own, slope in pairs if own.requires_grad]


class _Pass:
    """A pass of the whole batch, and its results as constants that collect gradients."""

    def __init__(self, clean: CleanPass | None, statistics: Sequence[Statistics]) -> None:
        self.links: list[tuple[Tensor, Tensor]] = []
        self.clean = clean
        self.logits = None if clean is None else self._constant(clean.logits)
        self.features = None if clean is None or clean.features is None else self._constant(clean.features)
        self.first = list(statistics[:-1])
        self.last = {
            i: Moments(self._constant(m.mean), self._constant(m.variance), m.size) for i, m in statistics[-1].items()
        }

    def _constant(self, value: Tensor) -> Tensor:
        leaf = value.detach().requires_grad_(value.requires_grad)
        self.links.append((value, leaf))
        return leaf

    def prepared(self, step: TrainingStep, rows: slice, found: Found, *, gradients: bool) -> Prepared:
        """What a part computes its loss from."""
        clean, last = None, self.last
        if not gradients:
            last = {i: Moments(m.mean.detach(), m.variance.detach(), m.size) for i, m in last.items()}
        if self.logits is not None:
            logits, features = self.logits[rows], None if self.features is None else self.features[rows]
            if not gradients:
                logits, features = logits.detach(), None if features is None else features.detach()
            clean = CleanPass(logits, features, last)
        return Prepared(clean, [*self.first, last], step.graph.bind(last), found)

    def backward(self) -> None:
        """Send what was collected back through the pass."""
        used = [(value, leaf.grad) for value, leaf in self.links if leaf.grad is not None]
        torch.autograd.backward([value for value, _ in used], [gradient for _, gradient in used])


def backward_in_parts(
    step: TrainingStep,
    batch: Batch,
    plan: Plan,
    compute: Compute,
    size: int,
    parameters: Sequence[Tensor],
    inspect: Callable[[Loss, Batch], None] = lambda loss, part: None,
) -> Loss:
    """Does to the parameters' gradients what ``compute(...).total.backward()`` does, by parts of ``size`` images.

    Args:
        inspect: called with each part's loss before it is differentiated.

    Returns:
        The loss of the whole batch, without gradient; it holds no claims.
    """
    rows = [slice(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
    shares = [(part.stop - part.start) / len(batch) for part in rows]
    parts = [batch.part(part) for part in rows]
    clean = step.clean(batch.x, plan)
    statistics: list[Statistics] = [clean.statistics if clean else {}]
    with torch.no_grad():
        victim = step.victim(step.graph.bind(statistics[0]), statistics[0])
    found = [step.search(part, plan, victim) for part in parts]
    attacked = torch.cat([each.points["adversarial"] for each in found]) if plan.attacked else None
    last = step.last_pass(attacked)
    whole = _Pass(clean, statistics + ([] if last is None else [last]))
    carried: list[Any] = [part for part in (step.method, step.objective) if hasattr(part, "state_dict")]
    states = [part.state_dict() for part in carried]
    sums = Sums()

    def loss_of(i: int, *, gradients: bool) -> Loss:
        sums.begin()
        part = parts[i] if gradients else parts[i].again()
        for one, state in zip(carried, states, strict=True):
            one.load_state_dict(state)
        with in_parts(sums):
            return compute(part, plan, whole.prepared(step, rows[i], found[i], gradients=gradients))

    with _frozen(parameters):
        _settle(sums, loss_of, shares)
    sums.settling = False
    losses, kept = [], False
    for i, share in enumerate(shares):
        loss = loss_of(i, gradients=True)
        inspect(loss, parts[i])
        value = _total([share * loss.total, *sums.through()])
        if not value.requires_grad:
            raise RunFailed("the loss is detached from the network, so nothing would be trained")
        value.backward()  # type: ignore[no-untyped-call]
        losses.append((loss.total.detach(), {name: term.detach() for name, term in loss.terms.items()}))
        kept = len(loss.statistics) > 0
        del loss, value
    whole.backward()
    batch.noise.follow(parts[0].noise)
    total = _total([share * value for share, (value, _) in zip(shares, losses, strict=True)])
    terms = {name: _joined([each[name] for _, each in losses], shares) for name in losses[0][1]}
    passes = statistics + ([] if last is None else [last])
    return Loss(total, terms, [update for update in passes if update and kept], None, attacked)


def _settle(sums: Sums, loss_of: Callable[..., Loss], shares: Sequence[float]) -> None:
    """Find the totals and the slopes of the whole loss by them."""
    for _ in range(LIMIT):
        totals: list[Tensor] = []
        slopes: list[Tensor] = []
        for i, share in enumerate(shares):
            value = _total([share * loss_of(i, gradients=False).total, *sums.through()])
            if not sums.own:
                return
            found: Sequence[Tensor | None] = [None] * len(sums.leaves)
            if value.requires_grad:
                found = torch.autograd.grad(value, sums.leaves, allow_unused=True)
            own = [part.detach() for part in sums.own]
            by = [torch.zeros_like(part) if slope is None else slope for part, slope in zip(own, found, strict=True)]
            totals = [a + b for a, b in zip(totals, own, strict=True)] if i else own
            slopes = [a + b for a, b in zip(slopes, by, strict=True)] if i else by
        settled = _same(totals, sums.totals) and _same(slopes, sums.slopes)
        sums.totals, sums.slopes = totals, slopes
        if settled:
            return
    raise RunFailed(
        f"train.micro_batch: the batch's sums still change after {LIMIT} repetitions; a method or objective is not "
        "the same function of them each time. Leave train.micro_batch out"
    )


def _same(found: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Bit for bit; NaN is what it was, and reported as such when the loss is."""
    return len(found) == len(before) and all(
        bool(torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num()))
        for a, b in zip(found, before, strict=True)
    )


def _total(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _joined(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """A term of the whole batch."""
    if values[0].dim() > 0:
        return torch.cat(list(values))
    return _total([share * value for share, value in zip(shares, values, strict=True)])


@contextmanager
def _frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters as constants."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
