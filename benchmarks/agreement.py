# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Whether two contenders compute the same loss and gradients. Nothing is said about speed where they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.process import Entrant, Worker

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Largest relative difference of the loss and of any parameter's gradient. Float32 is rounding: on untrained networks a
few pre-activations change sign by it. Float64 shows whether the two mean the same."""
BATCH = 16
SHARE = 0.01
"""Of the case's radius. At the full one the bounds of an untrained network are huge, and auto_LiRPA's small constants
(1e-8 in the slope of the exponential, at least 1e-6 for it) show in its gradients."""
SMALL = 1e-3
"""A parameter's gradient is compared with its own size, or with this part of the largest of all: a bias before batch
norm has no gradient but rounding."""


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """The worst relative difference and its parameter."""
    assert ours.keys() == theirs.keys()
    least = SMALL * max(float(g.abs().max()) for g in theirs.values())
    worst = {
        name: float((g - theirs[name]).abs().max()) / max(float(theirs[name].abs().max()), least)
        for name, g in ours.items()
    }
    name = max(worst, key=lambda key: worst[key] if worst[key] == worst[key] else float("inf"))
    return worst[name], name


def check(case: Case, ours: Entrant, theirs: Entrant, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Both rules for batch-norm statistics, both precisions, on a small batch. ``agree``: all within the tolerance."""
    small = replace(case, batch=min(BATCH, case.batch))
    rules = ("clean", "last-pass") if case.attack_steps else ("clean",)
    found = []
    with Worker(replace(ours, precision="fp32"), small, threads) as a, Worker(theirs, small, threads) as b:
        for dtype, tolerance in TOLERANCE.items():
            for rule in rules:
                loss, gradients = a.check(rule, dtype, SHARE * case.eps)
                other_loss, other_gradients = b.check(rule, dtype, SHARE * case.eps)
                relative = abs(loss - other_loss) / max(abs(other_loss), 1e-12)
                worst, where = differences(gradients, other_gradients)
                found.append(
                    {
                        "dtype": dtype,
                        "statistics": rule,
                        "eps": SHARE * case.eps,
                        "batch": small.batch,
                        "loss": loss,
                        "other_loss": other_loss,
                        "loss_difference": relative,
                        "gradient_difference": worst,
                        "parameter": where,
                        "tolerance": tolerance,
                        # Float32 gradients are shown, not judged: one sign that rounding turns moves them at will.
                        "agree": relative <= tolerance and (dtype == "float32" or worst <= tolerance),
                    }
                )
                say(f"{dtype}, {rule}: loss differs by {relative:.1e}, gradients by {worst:.1e} ({where})")
    return {"against": theirs.label, "agree": all(f["agree"] for f in found), "checks": found}
