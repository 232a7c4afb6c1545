# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified radius per sample: the largest radius at which a stage certified it, and the smallest that breaks it.

Nothing is interpolated: each end is the radius of a trial, an ordinary run of the cascade on this sample. Between
trials only what sets imply is used. A certificate holds for every smaller radius, whose box lies inside; a point that
breaks a sample does so at every larger one. That a stage which certifies at one radius also certifies at a smaller one
is not assumed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ctkd.api import Split
from ctkd.certify.cascade import Cascade
from ctkd.certify.trials import Trial, Trials
from ctkd.distributed import from_leader, gathered, greatest, rank, world
from ctkd.errors import BadInput, Contradiction, Interrupted
from ctkd.interrupt import StopRequest
from ctkd.progress import Reporter

CLEARLY = 1e-3
"""An attacked point with a margin below minus this is broken in any arithmetic; a smaller violation may be rounding of
float32, which a certificate at a larger radius does not contradict."""
FINEST = 1e-6
"""Smallest tolerance: below it neighbouring radii make the same float32 box."""


@dataclass(frozen=True)
class Bracket:
    """What trials say about one sample; None where no trial says anything.

    Attributes:
        certified: largest radius at which a stage certified it.
        refused: smallest radius above it at which no stage did.
        survived: largest radius at which it was not broken, below the one that breaks it. No guarantee.
        broken: smallest radius at which a replayed point broke it; 0 for a misclassified sample.
        by: what found that point: ``natural``, ``attack``, or a stage that searches for points; "" without one.
    """

    certified: float | None
    refused: float | None
    survived: float | None
    broken: float | None
    by: str = ""


def bracket(trials: Iterable[Trial]) -> Bracket:
    """The bracket of one sample.

    Raises: Contradiction if it is certified at a radius that is not below one at which it is clearly broken.
    """
    known = list(trials)
    broken = min((_breaks_at(t) for t in known if t.status == "broken"), default=None)
    proved = [t.eps for t in known if t.status == "certified"]
    for trial in known:
        if trial.status == "broken" and trial.attack_margin < -CLEARLY and _breaks_at(trial) <= max(proved, default=-1):
            by = next(t.stage for t in known if t.status == "certified" and t.eps == max(proved))
            raise Contradiction(
                f"sample {trial.sample} is certified at eps={max(proved):g} by {by!r} and broken at eps={trial.eps:g} "
                f"by {trial.stage!r}, which lies inside; one of them is wrong"
            )
    # As in the cascade: what any replayed point breaks is not certified.
    certified = max((eps for eps in proved if broken is None or eps < broken), default=None)
    above = -1.0 if certified is None else certified
    refused = [_breaks_at(t) for t in known if t.status == "broken"] + [t.eps for t in known if t.status == "undecided"]
    survived = [t.eps for t in known if t.status != "broken" and (broken is None or t.eps < broken)]
    return Bracket(
        certified,
        min((eps for eps in refused if eps > above), default=None),
        max(survived, default=None),
        broken,
        next((t.stage for t in known if t.status == "broken" and _breaks_at(t) == broken), ""),
    )


def _breaks_at(trial: Trial) -> float:
    return 0.0 if trial.stage == "natural" else trial.eps


def next_trial(known: Bracket, tolerance: float, start: float) -> tuple[float, bool] | None:
    """The radius to try next, a multiple of ``tolerance`` (1 at most), and whether the stages are asked there.

    First the certified end: up from ``start`` by doubling until a trial is refused, then halving the gap until no
    multiple lies inside. Then the same for the broken end, by attacks alone. None when both are found.
    """
    if known.refused is None:
        up = _above(known.certified, tolerance, start)
        if up is not None:
            return up, True
    else:
        middle = _between(known.certified, known.refused, tolerance)
        if middle is not None:
            return middle, True
    if known.broken is None:
        up = _above(known.survived, tolerance, start)
        return None if up is None else (up, False)
    middle = _between(known.survived, known.broken, tolerance)
    return None if middle is None else (middle, False)


def _above(low: float | None, tolerance: float, start: float) -> float | None:
    """``start``, or twice the largest radius so far; None above 1, where the box is everything."""
    if low is not None and low >= 1:
        return None
    wanted = start if low is None else max(start, 2 * low)
    return min(max(1, math.ceil(wanted / tolerance)) * tolerance, 1.0)


def _between(low: float | None, high: float, tolerance: float) -> float | None:
    """The multiple of the tolerance in the middle of those strictly between; None if there is none."""
    first = 0 if low is None else math.floor(low / tolerance) + 1
    last = math.ceil(high / tolerance) - 1
    # Divisions round: what is not strictly between is left out.
    while low is not None and first <= last and first * tolerance <= low:
        first += 1
    while first <= last and last * tolerance >= high:
        last -= 1
    return (first + last) // 2 * tolerance if first <= last else None


@dataclass(frozen=True)
class Radii:
    """Brackets of the samples asked for, by index, and their labels.

    Attributes:
        tolerance: ``refused - certified``, and ``broken - survived``, are at most this, where both are known.
        complete: False if the samples are a part of the split.
    """

    brackets: Mapping[int, Bracket]
    labels: Mapping[int, int]
    tolerance: float
    complete: bool
    seconds: float

    def certified_accuracy(self, eps: float) -> float:
        """Share of samples certified at ``eps`` or a larger radius: a lower bound of the robust accuracy there."""
        return (len(self._certified) - bisect_left(self._certified, eps)) / len(self.brackets)

    def adversarial_accuracy(self, eps: float) -> float:
        """Share of samples not broken at ``eps`` or a smaller radius: an upper bound of the robust accuracy there."""
        return (len(self.brackets) - bisect_right(self._broken, eps)) / len(self.brackets)

    @cached_property
    def _certified(self) -> list[float]:
        return sorted(b.certified for b in self.brackets.values() if b.certified is not None)

    @cached_property
    def _broken(self) -> list[float]:
        return sorted(b.broken for b in self.brackets.values() if b.broken is not None)

    def steps(self) -> list[float]:
        """0 and all radii where one of the accuracies changes, in order."""
        return sorted({0.0, *self._certified, *self._broken})

    def average(self) -> float:
        """Average certified radius; a sample without one counts as 0, as in the literature."""
        return sum(self._certified) / len(self.brackets)

    def summary(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "average_certified_radius": self.average(),
            "curve": [
                {
                    "eps": eps,
                    "adversarial_accuracy": self.adversarial_accuracy(eps),
                    "certified_accuracy": self.certified_accuracy(eps),
                }
                for eps in self.steps()
            ],
            "radii": [
                {"sample": i, "label": self.labels[i], "certified": b.certified, "broken": b.broken}
                for i, b in self.brackets.items()
            ],
            "tolerance": self.tolerance,
            "samples": len(self.brackets),
            "complete": self.complete,
            "seconds": self.seconds,
        }


def radii_from(trials: Iterable[Trial], samples: Iterable[int], tolerance: float, complete: bool) -> Radii:
    """Brackets from stored trials."""
    by_sample = _grouped(trials)
    chosen = {i: by_sample[i] for i in samples}
    return Radii(
        {i: bracket(found) for i, found in chosen.items()},
        {i: found[0].label for i, found in chosen.items()},
        tolerance,
        complete,
        sum(trial.seconds for found in chosen.values() for trial in found),
    )


def _grouped(trials: Iterable[Trial]) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.sample, []).append(trial)
    return found


@dataclass(frozen=True, eq=False)
class Search:
    """Searches the radii of samples; its trials are stored batch by batch, and known ones are not done again.

    Attributes:
        cascade: attack and stages; its ``eps`` is the radius to start from.
        tolerance: distance of the grid's radii.
        batch: samples tried together, all at one radius.
    """

    cascade: Cascade
    tolerance: float
    batch: int

    def run(
        self, split: Split, samples: range, store: Trials | None, reporter: Reporter, stop: StopRequest, hint: str
    ) -> Radii:
        """Both ends for all samples. Several processes try a batch each; the leader alone has a store.

        Raises:
            BadInput: the tolerance makes no grid.
            Contradiction: a sample is certified and broken. Where one batch says both, its trials are not stored.
            Interrupted: a signal came; finished batches are stored.
        """
        if not FINEST <= self.tolerance <= 1:
            raise BadInput(
                f"tolerance={self.tolerance:g} is outside [{FINEST:g}, 1]; it is in raw pixel units, like eps"
            )
        known = from_leader(lambda: _grouped(_stored(store, samples)))
        number = 0
        while tasks := self._tasks(known, samples):
            number += 1
            reporter.begin(f"searching radii, round {number}", sum(len(rows) for _, _, rows in tasks))
            try:
                for start in range(0, len(tasks), world()):
                    mine = tasks[start + rank() : start + rank() + 1]
                    found = [trial for part in gathered(self._try(split, mine, stop)) for trial in part]
                    if store is not None:
                        store.add(found)
                    for trial in found:
                        known.setdefault(trial.sample, []).append(trial)
                    reporter.advance(len(found))
                    (signal,) = greatest(stop.signal_number or 0)
                    if signal:
                        raise Interrupted(f"interrupted in round {number}; finished trials are stored. {hint}", signal)
            finally:
                reporter.end()
        for name in sorted(self.cascade.nonsense):
            reporter.warn(f"stage {name!r} returned NaN for some samples; such bounds prove nothing")
        trials = [trial for i in samples for trial in known[i]]
        return radii_from(trials, samples, self.tolerance, len(samples) == len(split))

    def _tasks(self, known: Mapping[int, list[Trial]], samples: range) -> list[tuple[float, bool, list[int]]]:
        """Batches of samples to try at one radius each, with or without the stages."""
        wanted: dict[tuple[float, bool], list[int]] = {}
        for i in samples:
            found = next_trial(bracket(known.get(i, ())), self.tolerance, self.cascade.eps)
            if found is not None:
                wanted.setdefault(found, []).append(i)
        return [
            (eps, stages, rows[start : start + self.batch])
            for (eps, stages), rows in sorted(wanted.items())
            for start in range(0, len(rows), self.batch)
        ]

    def _try(self, split: Split, tasks: list[tuple[float, bool, list[int]]], stop: StopRequest) -> list[Trial]:
        found = []
        for eps, stages, rows in tasks:
            cascade = replace(self.cascade, eps=eps, stages=self.cascade.stages if stages else {})
            for row in cascade.settle(split, rows, lambda: bool(stop)):
                status = row.status if stages or row.status == "broken" else "unbroken"
                found.append(
                    Trial(
                        row.sample,
                        eps,
                        row.label,
                        status,
                        row.stage,
                        row.lower_margin,
                        row.attack_margin,
                        row.seconds,
                        row.device,
                    )
                )
        return found


def _stored(store: Trials | None, samples: range) -> list[Trial]:
    assert store is not None  # the leader's
    store.adopt(samples)
    return store.trials(samples)
