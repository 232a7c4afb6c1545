# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""AutoAttack and Auto-PGD (Croce and Hein 2020, arXiv 2003.01690), on the authors' code.

Each search is theirs (``attack_single_run`` of the package pyautoattack). What is ours is around it: which samples are
still to be broken, where randomness comes from, and what counts as broken: every point that is returned was clamped
to the box and evaluated again there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from ctkd.api import Box, Noise
from ctkd.errors import BadInput
from ctkd_attacks.options import FEWEST_CLASSES, APGDOptions, AutoAttackOptions, Part, standard

Logits = Callable[[Tensor], Tensor]
Search = Callable[[Logits, Tensor, Tensor, float], tuple[Tensor, ...]]
"""One run: logits, images and labels of the samples, radius -> points to look at, each like the images."""

log = logging.getLogger("ctkd_attacks")
log.addHandler(logging.NullHandler())
"""Receives the authors' remarks, such as samples without a gradient."""


class AutoAttack:
    """Per sample the point of smallest margin among those that its searches return; a broken sample is left alone."""

    Options = AutoAttackOptions

    def __init__(self, options: AutoAttackOptions) -> None:
        self.options = options

    def perturb(
        self,
        logits: Logits,
        x: Tensor,
        labels: Tensor,
        box: Box,
        noise: Noise,
        reference: Tensor | None = None,
    ) -> Tensor:
        """(batch, *input_shape) inside the box.

        Raises:
            BadInput: a part was asked for whose loss is undefined for so few classes.
        """
        best, margin = _replayed(logits, x, labels, box)
        with _isolated(noise):
            for search in self._searches(_classes_of(logits, x)):
                rows = margin > 0
                if not rows.any():
                    break
                found = _run(search, logits, x[rows], labels[rows], box[rows])
                best[rows], margin[rows] = _keep(best[rows], margin[rows], found)
        return best

    def _searches(self, classes: int) -> Iterator[Search]:
        options = self.options
        parts = options.parts or standard(classes)
        for part in parts:
            _check_classes(part, classes, f"autoattack: part {part}", "apgd-ce, fab-t or square")
        for part in parts:
            if part == "square":
                yield partial(_square, queries=options.queries)
                continue
            if part in ("apgd-ce", "apgd-dlr"):
                yield partial(_apgd, loss=part.removeprefix("apgd-"), steps=options.steps)
                continue
            targeted = _apgd_targeted if part == "apgd-t" else _fab_targeted
            for rank in range(2, 2 + min(options.targets, classes - 1)):
                yield partial(targeted, rank=rank, steps=options.steps)


class APGD:
    """Per sample the point of smallest margin among the one of largest loss and the last misclassified one."""

    Options = APGDOptions

    def __init__(self, options: APGDOptions) -> None:
        self.options = options

    def perturb(
        self,
        logits: Logits,
        x: Tensor,
        labels: Tensor,
        box: Box,
        noise: Noise,
        reference: Tensor | None = None,
    ) -> Tensor:
        """(batch, *input_shape) inside the box.

        Raises:
            BadInput: the loss is undefined for so few classes.
        """
        loss = "ce" if self.options.loss == "cross-entropy" else self.options.loss
        if loss == "dlr":
            _check_classes("apgd-dlr", _classes_of(logits, x), "apgd: loss=dlr", "loss=cross-entropy")
        best, margin = _replayed(logits, x, labels, box)
        with _isolated(noise):
            for _ in range(self.options.restarts):
                found = _run(partial(_apgd, loss=loss, steps=self.options.steps), logits, x, labels, box)
                best, margin = _keep(best, margin, found)
        return best


# The authors' searches -----------------------------------------------------------------------------------


def _apgd(logits: Logits, x: Tensor, labels: Tensor, radius: float, *, loss: str, steps: int) -> tuple[Tensor, ...]:
    return _ascend(APGDAttack(logits, steps, eps=radius, loss=loss, device=x.device, logger=log), x, labels)


def _apgd_targeted(
    logits: Logits, x: Tensor, labels: Tensor, radius: float, *, rank: int, steps: int
) -> tuple[Tensor, ...]:
    attack = APGDAttack_targeted(logits, steps, eps=radius, device=x.device, logger=log)
    with torch.no_grad():
        attack.y_target = logits(x).sort(dim=1).indices[:, -rank]
    return _ascend(attack, x, labels)


def _ascend(attack: Any, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    attack.init_hyperparam(x)
    largest, _, _, misclassified = attack.attack_single_run(x, labels)
    return largest.detach(), misclassified.detach()


def _fab_targeted(
    logits: Logits, x: Tensor, labels: Tensor, radius: float, *, rank: int, steps: int
) -> tuple[Tensor, ...]:
    attack = FABAttack_PT(logits, n_iter=steps, eps=radius, device=x.device, targeted=True)
    attack.target_class = rank
    return (attack.attack_single_run(x, labels, is_targeted=True).detach(),)


def _square(logits: Logits, x: Tensor, labels: Tensor, radius: float, *, queries: int) -> tuple[Tensor, ...]:
    # It needs images; anything else becomes an image of one row.
    images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
    attack = SquareAttack(
        lambda points: logits(points.reshape(-1, *x.shape[1:])),
        n_queries=queries,
        eps=radius,
        device=x.device,
        resc_schedule=False,
    )
    attack.init_hyperparam(images)
    _, found = attack.attack_single_run(images, labels)
    return (found.reshape(x.shape),)


# Around them ---------------------------------------------------------------------------------------------


def _run(search: Search, logits: Logits, x: Tensor, labels: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """(batch, *input_shape) and (batch,): the best point of one search inside the box, and its margin."""
    # The searches know one radius around x and clip to [0, 1]. Clamping costs the last bit for a box of one radius,
    # and strength for a box that is much narrower on one side.
    radius = float(torch.maximum(box.upper - x, x - box.lower).max()) if len(x) else 0.0
    if radius == 0:
        return _replayed(logits, x, labels, box)
    best, margin = _replayed(logits, x, labels, box)
    for point in search(_in_float32(logits, x.dtype), x.detach().float(), labels, radius):
        # What is not a number is no point of the box and must break nothing.
        whole = torch.where(point.isnan(), x, point.to(x.dtype))
        best, margin = _keep(best, margin, _replayed(logits, whole, labels, box))
    return best, margin


def _replayed(logits: Logits, point: Tensor, labels: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """The point, clamped to the box, and its smallest margin over the other classes, (batch,)."""
    point = box.clamp(point.detach())
    with torch.no_grad():
        values = logits(point)
    others = values.scatter(1, labels[:, None], -torch.inf).amax(1)
    return point, values.gather(1, labels[:, None]).squeeze(1) - others


def _keep(best: Tensor, margin: Tensor, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    better = ~(found[1] >= margin)  # what is not a number breaks a sample, too
    chosen = torch.where(better.reshape(-1, *[1] * (best.dim() - 1)), found[0], best)
    return chosen, torch.where(better, found[1], margin)


def _classes_of(logits: Logits, x: Tensor) -> int:
    """How many classes there are."""
    with torch.no_grad():
        return logits(x[:1]).shape[1]


def _check_classes(part: Part, classes: int, what: str, instead: str) -> None:
    fewest = FEWEST_CLASSES.get(part, 2)
    if classes < fewest:
        raise BadInput(f"{what} needs at least {fewest} classes, and there are {classes}: use {instead}")


@contextmanager
def _isolated(noise: Noise) -> Iterator[None]:
    """The authors draw from torch's global CPU generator, on every device: seed it from ours, then put it back."""
    seed = int(torch.randint(2**62, (), generator=noise.generator))
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield


def _in_float32(logits: Logits, dtype: torch.dtype) -> Logits:
    """The searches work in float32, write into what they are given, and call ``backward``."""

    def wrapped(points: Tensor) -> Tensor:
        if torch.is_grad_enabled() and points.requires_grad:
            found: Tensor = _InputOnly.apply(points.to(dtype), logits)  # type: ignore[no-untyped-call]
            return found.float()
        with torch.no_grad():
            return logits(points.to(dtype)).to(torch.float32, copy=True)

    return wrapped


class _InputOnly(torch.autograd.Function):
    """Logits whose gradient reaches the input alone: FAB's ``backward`` would add to ``.grad`` of the parameters."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, logits: Logits) -> Tensor:
        with torch.enable_grad():
            ctx.points = points.detach().requires_grad_()
            ctx.values = logits(ctx.points)
        values: Tensor = ctx.values.detach()
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (found,) = torch.autograd.grad(ctx.values, ctx.points, gradient, retain_graph=True)
        return found, None
