# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certification results of a run folder, read without changing it."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ctkd.certify.cascade import Certificate, count
from ctkd.certify.radii import Radii, bracket, radii_from
from ctkd.certify.store import Row, has_certificates
from ctkd.certify.trials import Trial, has_trials, read_trials
from ctkd.errors import BadInput
from ctkd.report.verifiers import Answered, read_answers


@dataclass(frozen=True)
class Result:
    """One radius under one setting: what ``ctkd certify`` stored.

    Attributes:
        protocol: JSON of all that determines the rows besides network, eps and split: attack, stages, data.
        complete: whether the samples are the whole split; None if the split's size is not known.
    """

    eps: float
    split: str
    protocol: str
    rows: tuple[Row, ...]
    complete: bool | None = None

    @cached_property
    def certificate(self) -> Certificate:
        """Counts, by core's own function."""
        return count(list(self.rows), self.complete is True)

    @cached_property
    def accuracies(self) -> dict[str, float]:
        """``natural``, ``adversarial`` and ``certified``, as fractions."""
        figures = self.certificate.summary()
        return {name: figures[f"{name}_accuracy"] for name in ("natural", "adversarial", "certified")}

    def error(self, accuracy: float) -> float | None:
        """Binomial standard error of an accuracy; None where the whole split was certified."""
        return None if self.complete else math.sqrt(accuracy * (1 - accuracy) / len(self.rows))

    @cached_property
    def details(self) -> dict[str, Any]:
        """The protocol's values."""
        found: dict[str, Any] = json.loads(self.protocol)
        return found

    @property
    def data(self) -> str:
        """Digest of the split that was certified."""
        return str(self.details.get("data", ""))

    @property
    def attack(self) -> str:
        """The attack in words."""
        attack = self.details.get("attack", {})
        steps, restarts = attack.get("attack_steps", "?"), attack.get("attack_restarts", "?")
        further = "".join(f", then {table.get('name')}" for table in self.details.get("further_attacks", ()))
        return f"PGD, {steps} steps, {restarts} restarts{further}"

    @property
    def stages(self) -> list[str]:
        """Names of the stages that were asked, in their order."""
        # Before stages had options they were stored by name.
        return [stage if isinstance(stage, str) else stage["name"] for stage in self.details.get("stages", ())]


@dataclass(frozen=True)
class Results:
    """All that is stored for one network.

    Attributes:
        found: by split, protocol and radius.
        radii: of each (split, protocol) that radii were searched for.
        answers: of external verifiers.
        foreign: how many other networks have results in the file.
    """

    found: tuple[Result, ...]
    radii: dict[tuple[str, str], Radii]
    answers: tuple[Answered, ...] = ()
    foreign: int = 0


def read_results(path: Path, network: str) -> Results:
    """Read what is stored for a network.

    Raises:
        BadInput: the file is no results file, or one of another version.
        Contradiction: a sample is proved at one radius and clearly broken at that one or a smaller one.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(path.resolve()))}?mode=ro", uri=True)) as connection:
            return _read(connection, network)
    except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"results in {path} cannot be read: {error}") from None


def _read(connection: sqlite3.Connection, network: str) -> Results:
    every = "SELECT id, network, eps, split, details FROM settings ORDER BY eps, id"
    settings = connection.execute(every).fetchall() if has_certificates(connection) else []
    found = []
    for number, of, eps, split, details in settings:
        rows = connection.execute(
            "SELECT sample, label, prediction, status, stage, lower_margin, attack_margin, seconds, device "
            "FROM samples WHERE settings = ? ORDER BY sample",
            (number,),
        )
        kept = tuple(Row(*row) for row in rows)
        if of == network and kept:
            found.append(Result(eps, split, details, kept))
    protocols = {(split, details) for _, of, _, split, details in settings if of == network}
    searched: dict[tuple[str, str], list[int]] = {}
    if has_trials(connection):
        for split, details, sample in connection.execute(
            "SELECT DISTINCT split, details, sample FROM radius_trials "
            "JOIN radius_searches ON radius_searches.id = search WHERE network = ? ORDER BY sample",
            (network,),
        ):
            searched.setdefault((split, details), []).append(sample)
    trials = {key: read_trials(connection, network, *key) for key in sorted({*protocols, *searched})}
    answers = read_answers(connection, network)
    _check_consistent(trials, answers)
    radii = {key: _radii(trials[key], samples) for key, samples in searched.items()}
    foreign = len({of for _, of, *_ in settings} - {network})
    return Results(tuple(found), radii, tuple(answers), foreign)


def _check_consistent(trials: dict[tuple[str, str], list[Trial]], answers: list[Answered]) -> None:
    """No sample is proved, by whatever stage or verifier, and clearly broken inside that box by whatever point."""
    by_sample: dict[tuple[str, str, int], list[Trial]] = {}
    for (split, details), found in trials.items():
        data = str(json.loads(details).get("data", ""))
        for trial in found:
            by_sample.setdefault((split, data, trial.sample), []).append(trial)
    for answered in answers:
        for trial in answered.trials():
            by_sample.setdefault((answered.split, answered.data, trial.sample), []).append(trial)
    for found in by_sample.values():
        bracket(found)


def _radii(trials: list[Trial], samples: list[int]) -> Radii:
    """Radii to the tolerance that the search has reached so far."""
    brackets = radii_from(trials, samples, 0.0, False).brackets.values()
    pairs = [(b.certified, b.refused) for b in brackets]
    gaps = [refused - certified for certified, refused in pairs if certified is not None and refused is not None]
    return radii_from(trials, samples, max(gaps, default=0.0), False)
