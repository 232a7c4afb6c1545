# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One update of the parameters: gradients of a batch, clipped, and the optimiser's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctkd.api import Schedule
from ctkd.contract import check_claims
from ctkd.distributed import all_sum, sum_gradients, world
from ctkd.train.batch import Batch
from ctkd.train.optimise import Optimiser
from ctkd.train.options import TrainOptions
from ctkd.train.parts import Compute, backward_in_parts
from ctkd.train.step import Loss, Plan, TrainingStep, gradient_norms


class Updated(NamedTuple):
    """What an update did.

    Attributes:
        norms: of each term's gradient, where they were measured.
        names: what may have been not finite.
        flags: (names,), bool: what was; then nothing was updated. The host has not waited for them.
    """

    loss: Loss
    norms: dict[str, float]
    names: list[str]
    flags: Tensor


@dataclass(eq=False)
class Update:
    """Makes updates. ``who`` names the bound method in messages."""

    step: TrainingStep
    options: TrainOptions
    parameters: Sequence[Tensor]
    optimizer: Optimiser
    who: str

    def __call__(self, batch: Batch, schedule: Schedule, rate: float, *, measure: bool) -> Updated:
        """``measure``: also the terms' gradient norms, and whether bounds keep what they claim."""
        before = [] if self.options.edac == 0 else [self._lower_certainty(batch, schedule, rate)]
        plan = self.step.plan(schedule)
        loss, norms = self._gradients(batch, plan, self.step.loss, measure=measure)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        searched = [] if loss.attacked is None else [loss.attacked]
        flags = torch.cat([*before, _not_finite([*searched, *loss.terms.values(), loss.total, norm])])
        self.optimizer.step(rate, flags.any())
        names = ["the extra step of train.edac"] if before else []
        names += ["the attack's point"] if searched else []
        return Updated(loss, norms, [*names, *loss.terms, "total loss", "gradient"], flags)

    def _lower_certainty(self, batch: Batch, schedule: Schedule, rate: float) -> Tensor:
        """The extra step of EDAC; returns (1,), whether anything was not finite."""
        plan = self.step.plan(schedule, attacked=True)
        loss, _ = self._gradients(batch, plan, self.step.certainty, measure=False)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sizes = [gradient.detach().abs().max() for gradient in gradients]
        bad = _not_finite([loss.total, *sizes]).any()
        self.optimizer.step(rate, bad)
        return bad[None]

    def _gradients(self, batch: Batch, plan: Plan, compute: Compute, *, measure: bool) -> tuple[Loss, dict[str, float]]:
        """Fill the parameters' gradients."""
        self.optimizer.zero_grad()
        size = self.options.micro_batch
        if size is not None and size < len(batch):
            inspect = self._inspect if measure else lambda loss, part: None
            return backward_in_parts(self.step, batch, plan, compute, size, self.parameters, inspect), {}
        loss = compute(batch, plan, self.step.prepare(batch, plan))
        norms = gradient_norms(loss, self.parameters) if measure else {}
        if measure:
            self._inspect(loss, batch)
        # Every process computes the whole batch's loss, and sums in it add up the gradients of all of them.
        (loss.total / world() if world() > 1 else loss.total).backward()  # type: ignore[no-untyped-call]
        sum_gradients(self.parameters)
        return loss, norms

    def _inspect(self, loss: Loss, batch: Batch) -> None:
        if loss.clean is not None:
            check_claims(loss.claims, batch.x, loss.clean, batch.labels, self.who)


def _not_finite(values: Sequence[Tensor]) -> Tensor:
    """For each of them whether it is not finite in any process, (values,)."""
    return all_sum(torch.stack([~value.detach().isfinite().all() for value in values]).int()) > 0
