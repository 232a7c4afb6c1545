# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A trained student as a whole competition benchmark, its difficulty taken from recorded results."""

from __future__ import annotations

import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ctkd.api import Split
from ctkd.attribution import attributed
from ctkd.certify.attack import attack_again, search_again
from ctkd.certify.options import BenchmarkOptions
from ctkd.certify.store import Row, Store
from ctkd.cite import bibtex, papers
from ctkd.config import RunConfig, resolve
from ctkd.errors import BadInput, Contradiction, Interrupted
from ctkd.export.benchmark import OUTCOMES, Candidate, Text, parse_mix, write_benchmark
from ctkd.export.generate_properties import draw
from ctkd.exporting import file_name
from ctkd.interrupt import stop_request
from ctkd.machine import prepared
from ctkd.options import validate
from ctkd.progress import Reporter, Silent
from ctkd.propagate import Network
from ctkd.session import Session, split_digest
from ctkd.trained import open_run, parse_radius

STRENGTH = ("cheap", "tight", "broken", "undecided", "misclassified")
"""Outcomes of one sample under several settings: the first of these counts."""


@attributed()
@prepared()
def export_benchmark(
    run: Path,
    folder: Path,
    *,
    eps: float | str | None = None,
    data_dir: Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a student as a competition benchmark: what ``ctkd export --format vnncomp`` does.

    Difficulty is taken from what ``ctkd certify`` recorded for this radius, whatever its settings were.

    Args:
        run: a run folder.
        folder: must be absent or empty; gets the repository.
        eps: radius in pixel units, also as ``"2/255"``; None is the run's.
        data_dir: where the data set's files lie, if not where the run found them.
        reporter: receives progress; None is silent.
        options: ``samples``, ``seed``, ``mix``, ``budget``, ``pool``, ``cheap``, ``name``: those of the command.

    Returns:
        What was written, by outcome: instances (``mix``), seconds (``timeouts``), images to draw from (``pool``).
    """
    problems: list[str] = []
    chosen = validate(BenchmarkOptions, options, "", problems)
    if chosen is None:
        raise BadInput(*problems)
    mix = None if chosen.mix is None else parse_mix(chosen.mix)
    with stop_request() as stop:
        session, network = open_run(run, data_dir, {}, reporter or Silent(), stop)
        radius = parse_radius(eps, session.config.train.eps)
        command = f"`ctkd certify {run} --eps {radius!r}`"
        records = recorded(session, network, radius, chosen.cheap)
        if not records:
            raise BadInput(f"{run} has no results of this student at eps={radius!r}; run {command} first")
        pool = _pool(records, chosen.pool)
        if not pool:
            raise BadInput(f"{run}: none of the {len(records)} images with results is classified correctly")
        report = write_benchmark(
            network,
            [record.candidate() for record in pool],
            _split(session).images[[record.row.sample for record in pool]],
            _found(session, network, radius, pool),
            radius,
            folder,
            name=chosen.name or file_name(session),
            seed=chosen.seed,
            budget=chosen.budget,
            text=_text(session, records, chosen.cheap),
            samples=chosen.samples,
            mix=mix,
            hint=f"; {command} with more samples or other stages finds more",
        )
    return {
        "folder": str(folder),
        "instances": report.instances,
        "eps": radius,
        "seed": chosen.seed,
        "mix": report.mix,
        "timeouts": report.timeouts,
        "total_timeout": report.total,
        "pool": report.pool,
        "certified": report.replayed,
        "without_witness": report.unproved,
        "largest_difference": report.difference,
    }


@dataclass(frozen=True)
class Record:
    """The result that counts for one sample, and the details of the settings that gave it."""

    row: Row
    outcome: str
    details: Mapping[str, Any]

    def candidate(self) -> Candidate:
        """The same for the pool."""
        row = self.row
        return Candidate(
            row.sample, row.label, self.outcome, row.stage, row.lower_margin, row.attack_margin, row.seconds
        )


def recorded(session: Session, network: Network, eps: float, cheap: Sequence[str]) -> list[Record]:
    """One record for each sample that has results, under any settings, in the order of the samples.

    Raises: Contradiction if a sample is certified under some settings and broken under others.
    """
    if not session.folder.results.exists():
        return []
    split = _split(session)
    found = defaultdict(list)
    with Store(session.folder.results) as store:
        part = session.config.certify.split
        for key, details in store.matching(network.sha256(), eps, part, split_digest(split)).items():
            for row in store.rows(key, range(len(split))):
                found[row.sample].append(Record(row, outcome_of(row, cheap), details))
    for sample, records in found.items():
        if {"certified", "broken"} <= {record.row.status for record in records}:
            raise Contradiction(
                f"sample {sample} is certified at eps={eps!r} under some settings of `ctkd certify` and broken under "
                "others; a bound is wrong, and nothing was written"
            )
    return [min(found[sample], key=lambda record: STRENGTH.index(record.outcome)) for sample in sorted(found)]


def outcome_of(row: Row, cheap: Sequence[str]) -> str:
    """One of ``OUTCOMES``, or "misclassified"."""
    if row.status == "certified":
        return "cheap" if row.stage in cheap else "tight"
    return "misclassified" if row.stage == "natural" else row.status


def _split(session: Session) -> Split:
    split: Split = getattr(session.data, session.config.certify.split)
    return split


def _pool(records: Sequence[Record], size: int) -> list[Record]:
    """At most ``size`` of each outcome, whatever the order of the data set; misclassified ones are no instances."""
    kept: list[Record] = []
    for outcome in OUTCOMES:
        known = {record.row.sample: record for record in records if record.outcome == outcome}
        kept += [known[sample] for sample in draw(known, size, "pool")]
    return sorted(kept, key=lambda record: record.row.sample)


def _found(session: Session, network: Network, eps: float, pool: Sequence[Record]) -> Tensor:
    """The images, and for those that are broken the attack's points instead."""
    split = _split(session)
    found = split.images[[record.row.sample for record in pool]].clone()
    broken = [k for k, record in enumerate(pool) if record.outcome == "broken"]
    batch = session.config.certify.batch_size
    given = network, split, eps
    groups = defaultdict(list)
    for k in broken:
        groups[id(pool[k].details), pool[k].row.stage].append(k)
    session.reporter.begin("finding counterexamples again", len(broken))
    try:
        for (_, stage), same in groups.items():
            details = pool[same[0]].details
            for rows in (same[start : start + batch] for start in range(0, len(same), batch)):
                samples = [pool[k].row.sample for k in rows]
                found[rows] = (
                    attack_again(*given, samples, details)
                    if stage == "attack"
                    else search_again(*given, samples, details, stage)
                )
                session.reporter.advance(len(rows))
                if session.stop.signal_number:
                    raise Interrupted("interrupted; nothing was written", session.stop.signal_number)
    finally:
        session.reporter.end()
    return found


def _text(session: Session, records: Sequence[Record], cheap: Sequence[str]) -> Text:
    stages = list(dict.fromkeys(table["name"] for record in records for table in record.details["stages"]))
    outcomes = Counter(record.outcome for record in records)
    config = _whole_config(session)
    counts = {
        "samples": len(records),
        "natural": len(records) - outcomes["misclassified"],
        "certified": outcomes["cheap"] + outcomes["tight"],
        "undecided": outcomes["undecided"],
        "broken": outcomes["broken"],
    }
    return Text(
        data=session.data.name,
        split=session.config.certify.split,
        training=_training(config) if config else "as its own configuration says",
        cheap=[name for name in stages if name in cheap],
        tight=[name for name in stages if name not in cheap],
        counts=counts,
        bibtex=bibtex(papers(config) if config else ()),
        version=importlib.metadata.version("ctkd"),
    )


def _whole_config(session: Session) -> RunConfig | None:
    """With the plugins that trained the network, which the session left out; None if one is no longer there."""
    try:
        return resolve(file=session.folder.config)
    except BadInput as problem:
        reason = problem.messages[0]
        session.reporter.warn(f"README.md and CITATION.bib do not say how the network was trained: {reason}")
        return None


def _training(config: RunConfig) -> str:
    teachers = " and ".join(f"`{choice.name}`" for choice in config.teachers)
    taught = f", with a teacher from {teachers} and the objective `{config.distill.name}`" if config.taught else ""
    return f"by `{config.bound.name}` at an L-infinity radius of {config.train.eps!r}{taught}"
