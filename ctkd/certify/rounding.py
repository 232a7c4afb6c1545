# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which certificates also hold for the network as it computes in float32. A pass over what the cascade stored."""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctkd.api import Split
from ctkd.boxes import perturbation_box
from ctkd.certify.options import CertifyOptions
from ctkd.certify.store import Row, Store
from ctkd.errors import BadInput, RunFailed
from ctkd.progress import Reporter
from ctkd.propagate import Network
from ctkd.rounding import rounding

COVERED = ("ibp", "crown-ibp", "crown", "alpha-crown")
"""Stages whose own rounding is bounded: intervals and backward passes, see ``ctkd.rounding.rounding``."""
METHOD = 1
"""Changes with the bounds' derivation: what another one stored is computed again."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS rounding (
    network TEXT NOT NULL,       -- SHA-256 of the network
    eps REAL NOT NULL,
    split TEXT NOT NULL,
    data TEXT NOT NULL,          -- digest of the split
    method INTEGER NOT NULL,
    sample INTEGER NOT NULL,     -- index in the split
    deployed REAL,               -- most that float32 moves a margin of the network, over the box; NULL for unbounded
    bounds REAL,                 -- most that float64 moves a computed lower bound of a margin; NULL for unbounded
    PRIMARY KEY (network, eps, split, data, method, sample)
);
"""


@dataclass(frozen=True)
class Key:
    """What rounding bounds are about."""

    network: str
    eps: float
    split: str
    data: str

    def parts(self) -> tuple[str, float, str, str, int]:
        return self.network, self.eps, self.split, self.data, METHOD


class RoundingStore:
    """A table of its own in a results file, so that a resumed run has what an earlier one computed."""

    def __init__(self, path: Path) -> None:
        try:
            self.connection = sqlite3.connect(path)
            self.connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise BadInput(f"results file {path} cannot be used: {error}") from None

    def __enter__(self) -> RoundingStore:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.connection.close()

    def get(self, key: Key) -> dict[int, tuple[float, float]]:
        """``deployed`` and ``bounds`` by sample; infinite where there is no bound."""
        found = self.connection.execute(
            "SELECT sample, deployed, bounds FROM rounding "
            "WHERE network = ? AND eps = ? AND split = ? AND data = ? AND method = ?",
            key.parts(),
        )
        return {sample: (_read(deployed), _read(bounds)) for sample, deployed, bounds in found}

    def add(self, key: Key, errors: dict[int, tuple[float, float]]) -> None:
        """Raises: RunFailed if they cannot be written; those stored before stay."""
        rows = [(*key.parts(), sample, _write(a), _write(b)) for sample, (a, b) in errors.items()]
        try:
            with self.connection:
                self.connection.executemany("INSERT OR REPLACE INTO rounding VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise RunFailed(f"rounding bounds could not be written ({error}); certificates are kept") from None


def _read(value: float | None) -> float:
    return math.inf if value is None else value


def _write(value: float) -> float | None:
    return value if math.isfinite(value) else None


def deployed_certificates(
    network: Network,
    split: Split,
    rows: Sequence[Row],
    store: RoundingStore,
    key: Key,
    *,
    stages: Sequence[str],
    batch: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """How many certificates speak about the network as it computes in float32, on any machine that sums plainly.

    Args:
        rows: what the cascade stored; only certified samples matter.
        stages: of the cascade, in order. A sample's bounds may come from all up to the one that certified it.
        batch: samples bounded together; what is done is stored after each batch.

    Returns:
        ``float32_certified``: certified samples whose lower margin exceeds the rounding of network and bounds; and
        ``float32``, with ``fallen`` (certified samples whose lower margin does not), ``uncovered`` (certified by a
        stage about whose rounding nothing is known), ``largest_deployed_error``, ``largest_bound_error`` (None without
        a bound, or a covered sample), and ``smallest_margin`` among the certified. ``float32_certified`` is None, with
        ``reason``, where the network has operators without a rounding bound.
    """
    certified = [row for row in rows if row.status == "certified"]
    known = list(itertools.takewhile(COVERED.__contains__, stages))
    covered = [row for row in certified if row.stage in known]
    errors = store.get(key)
    todo = [row for row in covered if row.sample not in errors]
    reporter.begin("bounding float32 rounding", len(covered), len(covered) - len(todo))
    try:
        for start in range(0, len(todo), batch):
            some = todo[start : start + batch]
            fresh = _errors(network, split, some, key.eps)
            store.add(key, fresh)
            errors |= fresh
            reporter.advance(len(some))
    except BadInput as problem:
        return {"float32_certified": None, "float32": {"reason": problem.messages[0]}}
    finally:
        reporter.end()
    fallen = [row.sample for row in covered if not _holds(row, *errors[row.sample])]
    own = [errors[row.sample] for row in covered]
    margins = [row.lower_margin for row in certified if row.lower_margin is not None]
    return {
        "float32_certified": len(covered) - len(fallen),
        "float32": {
            "fallen": len(fallen),
            "uncovered": len(certified) - len(covered),
            "largest_deployed_error": _write(max((deployed for deployed, _ in own), default=math.inf)),
            "largest_bound_error": _write(max((bounds for _, bounds in own), default=math.inf)),
            "smallest_margin": min(margins, default=None),
        },
    }


def described(summary: Mapping[str, Any]) -> list[str]:
    """For people, what a summary says about float32: a sentence, or none where it says nothing."""
    facts = summary.get("float32")
    if isinstance(facts, dict) and "reason" in facts:
        return [f"how many certificates hold for the deployed network is not known: {facts['reason']}"]
    if not isinstance(facts, dict):
        return []
    held, fallen, unknown = summary.get("float32_certified"), facts.get("fallen"), facts.get("uncovered")
    error = facts.get("largest_deployed_error")
    if not (isinstance(held, int) and isinstance(fallen, int) and isinstance(unknown, int)):
        return []  # of an earlier version, or damaged
    if not isinstance(error, float | None):
        return []
    most = f" (a margin moves by at most {error:.2g})" if error is not None else " (no bound)" * bool(held + fallen)
    said = f"{held} certificates hold for the deployed network, too{most}; {fallen} fall"
    if unknown:
        total = held + fallen + unknown
        said += f"; for {unknown} of {total} it is not computed: they need a stage whose rounding is not bounded"
    return [said]


def of_results(
    path: Path,
    network: Network,
    split: Split,
    samples: range,
    eps: float,
    options: CertifyOptions,
    details: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """What ``deployed_certificates`` says about a results file, under the settings that ``details`` completes."""
    key = Key(network.sha256(), eps, options.split, details["data"])
    with Store(path) as store:
        rows = store.rows(store.settings(key.network, eps, options.split, details), samples)
    stages, batch = [table["name"] for table in options.stages], options.batch_size
    with RoundingStore(path) as errors:
        return deployed_certificates(network, split, rows, errors, key, stages=stages, batch=batch, reporter=reporter)


def _holds(row: Row, deployed: float, bounds: float) -> bool:
    # Rounded so that nothing is gained: all three are doubles, and the sum of the errors is rounded up.
    return row.lower_margin is not None and row.lower_margin > math.nextafter(deployed + bounds, math.inf)


def _errors(network: Network, split: Split, rows: Sequence[Row], eps: float) -> dict[int, tuple[float, float]]:
    indices = [row.sample for row in rows]
    box, labels = perturbation_box(split.images[indices], eps), split.labels[indices]
    found = rounding(network, box.to(network.device), labels.to(network.device)).largest()
    own = torch.stack([found.deployed, found.bounds], 1).tolist()
    return {index: (deployed, bounds) for index, (deployed, bounds) in zip(indices, own, strict=True)}
