# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The radius and the learning rate as functions of the step."""

from __future__ import annotations

import math

from ctkd.api import Schedule
from ctkd.train.options import TrainOptions


def smooth_radius(step: int, start: int, end: int, target: float) -> float:
    """0 up to ``start``, a quartic quarter, then linear to ``target`` at ``end`` (Gowal et al. 2018's public code).

    The two pieces meet with equal value and slope at a quarter of the ramp.
    """
    if step >= end:
        return target
    if step <= start:
        return 0.0
    middle = start + int((end - start) / 4)
    rise, run = middle - start, end - middle
    scale = target / (4 * run * rise**3 + rise**4) if rise else target / run
    if step < middle:
        return scale * (step - start) ** 4
    slope = 4 * scale * rise**3 if rise else scale
    return scale * rise**4 * bool(rise) + slope * (step - middle)


def schedule_at(options: TrainOptions, step: int, steps_per_epoch: int) -> Schedule:
    """Where a global step stands in the schedule."""
    start = round(options.warmup * steps_per_epoch)
    end = round((options.warmup + options.ramp) * steps_per_epoch)
    target = options.eps * options.train_eps_factor
    eps = smooth_radius(step, start, end, target)
    phase = "full" if step >= end else "ramp" if eps > 0 else "warmup"
    return Schedule(eps, target, phase, step // steps_per_epoch, step)  # type: ignore[arg-type]


def learning_rate(options: TrainOptions, step: int, steps_per_epoch: int) -> float:
    """The rate of a global step: a function of it alone, so that a resumed run needs no state."""
    if options.lr_schedule == "milestones":
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in options.milestones)
        return options.lr * options.lr_decay**passed
    total = options.epochs * steps_per_epoch
    if options.lr_schedule == "cyclic":
        place = step * options.lr_cycles / total % 1
        rise = options.lr_rise
        height = place / rise if place <= rise else (1 - place) / (1 - rise)
        return options.lr * (options.lr_low + (1 - options.lr_low) * height)
    peak, last = options.lr_rise * total - 1, total - 1
    start = options.lr * options.lr_low
    if step < peak:
        return _half_cosine(start, options.lr, step / peak)
    return _half_cosine(options.lr, start * ONE_CYCLE_END, (step - peak) / (last - peak))


ONE_CYCLE_END = 1e-4
"""The last rate of ``one-cycle`` as a part of the first, as in PyTorch's OneCycleLR."""


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
