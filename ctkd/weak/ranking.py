# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Samples of certified runs, weakest first: by certified margin at one radius, or by certified radius."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ctkd.certify.radii import Radii
from ctkd.certify.store import Row
from ctkd.config import RunConfig, resolve
from ctkd.errors import BadInput, Contradiction
from ctkd.propagate import Network
from ctkd.report.results import Result, Results, read_results
from ctkd.runfolder import RunFolder
from ctkd.trained import parse_radius

Measure = Literal["margin", "radius"]
Combination = Literal["mean", "worst"]


@dataclass(frozen=True)
class Standing:
    """How one run does on one sample.

    Attributes:
        value: certified margin (best lower bound of the smallest margin over the box) or certified radius; None where
            no stage found one.
        broken: smallest margin that the attack found, or smallest radius that breaks it (None: nothing does).
        verdict: ``certified``, ``broken`` or ``undecided`` at the radius of the margin.
        stage: what settled that; of radii, what broke it.
        prediction: at the image itself; None where only radii were searched for.
    """

    label: int
    value: float | None
    broken: float | None
    verdict: str
    stage: str
    prediction: int | None

    @property
    def correct(self) -> bool:
        """Whether the image itself is classified correctly."""
        return self.stage != "natural"


@dataclass(frozen=True, eq=False)
class Standings:
    """How one run does on all samples that it has results of.

    Attributes:
        eps: of the margins; None for radii.
        data: digest of the split.
        settings: what the results were computed with.
    """

    path: Path
    config: RunConfig
    network: str
    by: Measure
    eps: float | None
    split: str
    data: str
    samples: dict[int, Standing]
    settings: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def key(self, sample: int) -> tuple[float, float]:
        """Orders samples, weakest first; of equal values that which is broken sooner."""
        standing = self.samples[sample]
        if self.by == "radius":  # a sample without a certified radius counts as 0, as in the literature
            return standing.value or 0.0, math.inf if standing.broken is None else standing.broken
        return _or(standing.value, -math.inf), _or(standing.broken, -math.inf)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


@dataclass(frozen=True)
class Place:
    """A sample among all that were ranked.

    Attributes:
        rank: 1 is the weakest; samples that are equally weak share the mean of their ranks. Over several runs combined.
        standings: in the order of the runs.
    """

    sample: int
    label: int
    rank: float
    standings: tuple[Standing, ...]


def read_standings(path: Path, by: Measure, eps: float | str | None, split: str | None) -> Standings:
    """What a run's results say about its samples; the folder is only read.

    Results of several settings at the same radius are taken together: a margin is the best that any of them certified.

    Args:
        eps: radius of the margins; None is the run's.
        split: None is the one that the run's configuration names.

    Raises:
        BadInput: it is no run, has no student, or no such results; the message has the command that computes them.
        Contradiction: its results contradict each other.
    """
    folder = RunFolder.open(path)
    if not folder.network.exists():
        raise BadInput(f"{path} has no trained student yet; go on with `ctkd train --resume {path}`")
    config = resolve(file=folder.config, trained=True)
    network = Network.load(folder.network).sha256()
    try:
        results = read_results(folder.results, network) if folder.results.exists() else Results((), {})
    except Contradiction as problem:
        raise Contradiction(f"{path}: {problem}; nothing is ranked") from None
    wanted = split or config.certify.split
    own = config.certify.split
    empty = Standings(path, config, network, by, None, wanted, "", {}, [])
    if by == "radius":
        return _of_radii(empty, results, "" if wanted == own else f" --set certify.split={wanted}")
    radius = parse_radius(eps, config.train.eps)
    more = ("" if radius == config.train.eps else f" --eps {radius!r}") + (
        "" if wanted == own else f" --set certify.split={wanted}"
    )
    return _of_margins(replace(empty, eps=radius), results, more)


def _of_margins(empty: Standings, results: Results, more: str) -> Standings:
    found = [result for result in results.found if result.split == empty.split and result.eps == empty.eps]
    if not found:
        known = ", ".join(f"{r.split} at eps={r.eps:g}" for r in _first_of_each(results.found))
        raise BadInput(
            f"{empty.path} has no results of its student at eps={empty.eps:g} on the {empty.split} split "
            f"(found: {known or 'none'}): run `ctkd certify {empty.path}{more}` first"
        )
    by_data: dict[str, dict[int, list[Row]]] = {}
    for result in found:
        rows = by_data.setdefault(result.data, {})
        for row in result.rows:
            rows.setdefault(row.sample, []).append(row)
    data = max(by_data, key=lambda digest: len(by_data[digest]))
    samples = {sample: _joined(rows) for sample, rows in sorted(by_data[data].items())}
    settings = [result.details for result in found if result.data == data]
    return replace(empty, data=data, samples=samples, settings=settings)


def _first_of_each(found: Sequence[Result]) -> list[Result]:
    return list({(result.split, result.eps): result for result in found}.values())


def _joined(rows: Sequence[Row]) -> Standing:
    """One sample's rows: as in the cascade, what any point breaks is broken, what any stage proves is certified."""
    order = ("broken", "certified", "undecided")
    telling = min(rows, key=lambda row: order.index(row.status))
    bounds = [row.lower_margin for row in rows if row.lower_margin is not None]
    return Standing(
        telling.label,
        max(bounds, default=None),
        min(row.attack_margin for row in rows),
        telling.status,
        telling.stage,
        telling.prediction,
    )


def _of_radii(empty: Standings, results: Results, more: str) -> Standings:
    found = {key: radii for key, radii in results.radii.items() if key[0] == empty.split}
    if not found:
        raise BadInput(
            f"{empty.path} has no certified radii on the {empty.split} split: run `ctkd radii {empty.path}{more}` first"
        )
    key = max(found, key=lambda one: len(found[one].brackets))
    details = json.loads(key[1])
    radii, data = found[key], str(details.get("data", ""))
    seen = {
        row.sample: row.prediction
        for result in results.found
        if (result.split, result.data) == (empty.split, data)
        for row in result.rows
    }
    samples = {
        i: Standing(radii.labels[i], b.certified, b.broken, "", b.by, seen.get(i)) for i, b in radii.brackets.items()
    }
    return replace(empty, data=data, samples=samples, settings=[details], notes=_unfinished(empty.path, radii))


def _unfinished(path: Path, radii: Radii) -> list[str]:
    left = sum(b.refused is None and (b.certified is None or b.certified < 1) for b in radii.brackets.values())
    if not left:
        return []
    return [f"the search for radii was not finished for {left} samples of {path}; `ctkd radii` goes on"]


# Ranks ---------------------------------------------------------------------------------------------------------


def check_comparable(runs: Sequence[Standings]) -> None:
    """Raises: BadInput unless all are about the same images at the same radius."""
    first = runs[0]
    for other in runs[1:]:
        if other.split != first.split:
            what, do = f"on the {first.split} and on the {other.split} split", "choose one with --split"
        elif other.data != first.data:
            what, do = "on different images", "rank them one by one"
        elif other.eps != first.eps:
            what, do = f"at eps={first.eps:g} and at eps={other.eps:g}", "choose one with --eps, or rank --by radius"
        else:
            continue
        raise BadInput(f"{first.path} and {other.path} were certified {what}: {do}")


def ranked(runs: Sequence[Standings], combination: Combination, *, correct: bool) -> list[Place]:
    """The samples that all runs have results of, weakest first.

    Args:
        combination: of a sample's ranks in the runs: their ``mean``, or the ``worst`` of them, which is the smallest.
        correct: only samples that all runs classify correctly.

    Raises: BadInput if there are none.
    """
    common = sorted(set.intersection(*(set(run.samples) for run in runs)))
    if not common:
        raise BadInput(f"{', '.join(str(run.path) for run in runs)} have no results of the same samples")
    if correct:
        common = [i for i in common if all(run.samples[i].correct for run in runs)]
    if not common:
        raise BadInput("no sample is classified correctly; leave out --correct")
    each = [ranks([run.key(i) for i in common]) for run in runs]
    places = []
    for i, found in zip(common, zip(*each, strict=True), strict=True):
        mean = sum(found) / len(found)
        standings = tuple(run.samples[i] for run in runs)
        rank = mean if combination == "mean" else min(found)
        places.append((rank, mean, Place(i, standings[0].label, rank, standings)))
    return [place for *_, place in sorted(places, key=lambda one: (*one[:2], one[2].sample))]


def ranks(keys: Sequence[tuple[float, float]]) -> list[float]:
    """Places from 1 on, in ascending order; equal keys share the mean of their places."""
    ordered = sorted(keys)
    return [(bisect_left(ordered, key) + bisect_right(ordered, key) + 1) / 2 for key in keys]
