# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The radius and the learning rate as functions of the step."""

from __future__ import annotations

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
    passed = sum(step >= round(milestone * steps_per_epoch) for milestone in options.milestones)
    return options.lr * options.lr_decay**passed
