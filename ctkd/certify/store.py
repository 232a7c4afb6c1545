# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certification results: one row per sample in SQLite, under the settings that produced it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctkd.errors import BadInput, RunFailed

Status = Literal["certified", "broken", "undecided"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (
    id INTEGER PRIMARY KEY,
    network TEXT NOT NULL,       -- SHA-256 of the network
    eps REAL NOT NULL,
    split TEXT NOT NULL,
    details TEXT NOT NULL,       -- JSON: attack, stages, precision, data
    UNIQUE (network, eps, split, details)
);
CREATE TABLE IF NOT EXISTS samples (
    settings INTEGER NOT NULL REFERENCES settings (id),
    sample INTEGER NOT NULL,     -- index in the split
    label INTEGER NOT NULL,
    prediction INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('certified', 'broken', 'undecided')),
    stage TEXT NOT NULL,         -- what settled it: natural, attack, a certification stage; '' for undecided
    lower_margin REAL,           -- best lower bound of the smallest margin over the box
    attack_margin REAL NOT NULL, -- smallest margin found by the attack, replayed
    seconds REAL NOT NULL,       -- this sample's share of its batch's time
    device TEXT NOT NULL,        -- where attack and bounds were computed: 'cpu', or the GPU's name
    PRIMARY KEY (settings, sample)
);
"""


@dataclass(frozen=True)
class Row:
    """What is known about one sample."""

    sample: int
    label: int
    prediction: int
    status: Status
    stage: str
    lower_margin: float | None
    attack_margin: float
    seconds: float
    device: str = "cpu"


def has_certificates(connection: sqlite3.Connection) -> bool:
    """Whether a results file has the tables of certification: others may have been there first."""
    found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('settings', 'samples')")
    return int(found.fetchone()[0]) == 2


class Store:
    """A results file. Every ``add`` is one transaction: a killed process loses at most one batch."""

    def __init__(self, path: Path) -> None:
        try:
            self.connection = sqlite3.connect(path)
            self.connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise BadInput(f"results file {path} cannot be used: {error}") from None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.connection.close()

    def settings(self, network: str, eps: float, split: str, details: Mapping[str, Any]) -> int:
        """The id of these settings; new ones are recorded. Raises: RunFailed if they cannot be written."""
        key = (network, eps, split, json.dumps(details, sort_keys=True))
        try:
            with self.connection:
                self.connection.execute(
                    "INSERT OR IGNORE INTO settings (network, eps, split, details) VALUES (?, ?, ?, ?)", key
                )
        except sqlite3.Error as error:
            raise RunFailed(f"results could not be written ({error}); what was stored before is kept") from None
        found = self.connection.execute(
            "SELECT id FROM settings WHERE network = ? AND eps = ? AND split = ? AND details = ?", key
        )
        return int(found.fetchone()[0])

    def add(self, settings: int, rows: Iterable[Row]) -> None:
        """Raises: RunFailed if the rows cannot be written; those stored before stay."""
        try:
            self._insert(settings, rows)
        except sqlite3.Error as error:
            raise RunFailed(f"results could not be written ({error}); finished samples before them are kept") from None

    def _insert(self, settings: int, rows: Iterable[Row]) -> None:
        with self.connection:
            self.connection.executemany(
                "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        settings,
                        r.sample,
                        r.label,
                        r.prediction,
                        r.status,
                        r.stage,
                        r.lower_margin,
                        r.attack_margin,
                        r.seconds,
                        r.device,
                    )
                    for r in rows
                ],
            )

    def rows(self, settings: int, samples: range) -> list[Row]:
        """Stored rows of the samples in the range, in order."""
        found = self.connection.execute(
            "SELECT sample, label, prediction, status, stage, lower_margin, attack_margin, seconds, device "
            "FROM samples WHERE settings = ? AND sample >= ? AND sample < ? ORDER BY sample",
            (settings, samples.start, samples.stop),
        )
        return [Row(*row) for row in found]

    def certified(self, network: str, eps: float, split: str, data: str) -> set[int]:
        """Samples that are certified under any settings for this network, radius, split and digest of its data."""
        found = self.connection.execute(
            "SELECT sample, details FROM samples JOIN settings ON settings.id = samples.settings "
            "WHERE network = ? AND eps = ? AND split = ? AND status = 'certified'",
            (network, eps, split),
        )
        return {int(sample) for sample, details in found if json.loads(details).get("data") == data}

    def matching(self, network: str, eps: float, split: str, data: str) -> dict[int, dict[str, Any]]:
        """All settings for this network, radius, split and digest of its data: id and details."""
        found = self.connection.execute(
            "SELECT id, details FROM settings WHERE network = ? AND eps = ? AND split = ? ORDER BY id",
            (network, eps, split),
        )
        every = {int(key): json.loads(details) for key, details in found}
        return {key: details for key, details in every.items() if details.get("data") == data}

    def with_proofs(self, network: str, split: str) -> list[tuple[int, float, dict[str, Any]]]:
        """All settings for this network and split under which proofs are stored: id, eps and details."""
        found = self.connection.execute(
            "SELECT id, eps, details FROM settings WHERE network = ? AND split = ? ORDER BY id", (network, split)
        )
        every = [(int(key), float(eps), json.loads(details)) for key, eps, details in found]
        return [entry for entry in every if entry[2].get("proofs")]
