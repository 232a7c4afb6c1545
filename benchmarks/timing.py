# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Samples of several things in turn, A B C A B C, and what is said about them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.machine import LIMIT, Others

LEAST = 0.5
"""Seconds. A sample holds as many repetitions as it takes to be this long: the kernel counts in hundredths."""
SETTLE = 0.3
"""Seconds before a sample: threads of the contender before it may wait actively for a while (OpenMP), and would take
cores away. Telling OpenMP to wait passively would slow down every contender, by a third on small networks."""
TRIES = 5
"""How often a sample is taken at most."""

Sample = dict[str, Any]


def interleave(
    things: Mapping[str, Callable[[int], list[float]]],
    rounds: int,
    own: Sequence[int] = (),
    *,
    warm_up: int = 2,
    least: float = LEAST,
    guard: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Sample]]:
    """Each thing is called with a number of repetitions and returns the seconds of each.

    A sample that others disturbed is taken again, at most ``TRIES`` times in all. All are returned; ``kept`` marks
    those that count: of one round the first that nobody disturbed, or else the least disturbed one.
    """
    counts = {}
    for name, thing in things.items():
        first = thing(1)  # builds, traces, compiles
        again = thing(max(1, warm_up - 1))
        counts[name] = max(1, math.ceil(least / max(min(again), 1e-9))) if least else 1
        say(f"{name}: first {first[0]:.3f} s, then {min(again):.3f} s; {counts[name]} a sample")
    samples: dict[str, list[Sample]] = {name: [] for name in things}
    others = Others(list(own))
    for number in range(rounds):
        for name, thing in things.items():
            tries: list[Sample] = []
            for _ in range(TRIES):
                time.sleep(SETTLE)
                others()
                seconds = thing(counts[name])
                used = others()
                tries.append({"round": number, "seconds": seconds, "others": used, "kept": False})
                if not guard or used is None or used <= LIMIT:
                    break
            min(tries, key=lambda sample: sample["others"] or 0.0)["kept"] = True
            samples[name] += tries
            say(f"round {number + 1} of {rounds}, {name}: {_value(tries[-1]):.4f} s{_disturbed(tries)}")
    return samples


def _value(sample: Sample) -> float:
    return statistics.fmean(sample["seconds"])


def _disturbed(tries: list[Sample]) -> str:
    return f" ({len(tries) - 1} taken again)" if len(tries) > 1 else ""


def kept(samples: list[Sample]) -> list[float]:
    """Seconds per repetition, one number a round."""
    return [_value(sample) for sample in samples if sample["kept"]]


def summary(samples: list[Sample]) -> dict[str, Any]:
    values = kept(samples)
    low, middle, high = quartiles(values)
    return {
        "median": middle,
        "min": min(values),
        "quartiles": [low, high],
        "rounds": len(values),
        "taken_again": len(samples) - len(values),
        "disturbed": sum(1 for s in samples if s["kept"] and (s["others"] or 0) > LIMIT),
    }


def ratio(slow: list[Sample], fast: list[Sample]) -> dict[str, Any]:
    """How many times faster: of the medians, and round by round."""
    a, b = kept(slow), kept(fast)
    low, middle, high = quartiles([x / y for x, y in zip(a, b, strict=True)])
    return {"of_medians": statistics.median(a) / statistics.median(b), "median": middle, "quartiles": [low, high]}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
