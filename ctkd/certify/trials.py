# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Trials of the search for radii: a table beside the results, one row for each radius at which a sample was tried."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from ctkd.certify.store import Store
from ctkd.errors import RunFailed

SCHEMA = """
CREATE TABLE IF NOT EXISTS radius_searches (
    id INTEGER PRIMARY KEY,
    network TEXT NOT NULL,       -- SHA-256 of the network
    split TEXT NOT NULL,
    details TEXT NOT NULL,       -- JSON: as in settings
    UNIQUE (network, split, details)
);
CREATE TABLE IF NOT EXISTS radius_trials (
    search INTEGER NOT NULL REFERENCES radius_searches (id),
    sample INTEGER NOT NULL,     -- index in the split
    eps REAL NOT NULL,           -- the radius tried
    label INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('certified', 'broken', 'undecided', 'unbroken')),
    stage TEXT NOT NULL,         -- as in samples
    lower_margin REAL,           -- as in samples
    attack_margin REAL NOT NULL, -- as in samples
    seconds REAL NOT NULL,
    device TEXT NOT NULL,        -- as in samples
    PRIMARY KEY (search, sample, eps)
);
"""
COLUMNS = "sample, eps, label, status, stage, lower_margin, attack_margin, seconds, device"


@dataclass(frozen=True)
class Trial:
    """One sample at one radius. ``unbroken``: only attacks were tried, and failed; else as in ``store.Row``."""

    sample: int
    eps: float
    label: int
    status: Literal["certified", "broken", "undecided", "unbroken"]
    stage: str
    lower_margin: float | None
    attack_margin: float
    seconds: float
    device: str = "cpu"


class Trials:
    """The trials of one network, split, attack and stages, in a results file. Every ``add`` is one transaction."""

    def __init__(self, path: Path, network: str, split: str, details: Mapping[str, Any]) -> None:
        self.store = Store(path)  # which makes the tables that results of `certify` are in
        self.connection = self.store.connection
        self.key = (network, split, json.dumps(details, sort_keys=True))
        try:
            self.connection.executescript(SCHEMA)
            with self.connection:
                self.connection.execute(
                    "INSERT OR IGNORE INTO radius_searches (network, split, details) VALUES (?, ?, ?)", self.key
                )
        except sqlite3.Error as error:
            self.connection.close()
            raise RunFailed(f"results file {path} cannot be written: {error}") from None

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.connection.close()

    def add(self, trials: Iterable[Trial]) -> None:
        """Raises: RunFailed if they cannot be written; those stored before stay."""
        rows = [(*self.key, *astuple(trial)) for trial in trials]
        try:
            with self.connection:
                self.connection.executemany(
                    "INSERT OR REPLACE INTO radius_trials SELECT id, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12 "
                    "FROM radius_searches WHERE network = ?1 AND split = ?2 AND details = ?3",
                    rows,
                )
        except sqlite3.Error as error:
            raise RunFailed(f"trials could not be written ({error}); those before them are kept") from None

    def adopt(self, samples: range) -> None:
        """Make trials of what `certify` found for these samples under the same settings."""
        try:
            with self.connection:
                self.connection.execute(
                    f"INSERT OR IGNORE INTO radius_trials SELECT radius_searches.id, {COLUMNS} "  # noqa: S608
                    "FROM samples JOIN settings ON settings.id = settings "
                    "JOIN radius_searches USING (network, split, details) "
                    "WHERE network = ? AND split = ? AND details = ? AND sample >= ? AND sample < ?",
                    (*self.key, samples.start, samples.stop),
                )
        except sqlite3.Error as error:
            raise RunFailed(f"trials could not be written ({error})") from None

    def trials(self, samples: range) -> list[Trial]:
        """Stored trials of the samples in the range, by sample and radius."""
        return [trial for trial in read_trials(self.connection, *self.key) if trial.sample in samples]


def has_trials(connection: sqlite3.Connection) -> bool:
    """Whether a results file has had a search for radii."""
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'radius_trials'").fetchone())


def read_trials(connection: sqlite3.Connection, network: str, split: str, details: str) -> list[Trial]:
    """Trials and rows of `certify` of one network, split and details, by sample and radius."""
    sources = ["samples JOIN settings ON settings.id = settings"]
    if has_trials(connection):
        sources.append("radius_trials JOIN radius_searches ON radius_searches.id = search")
    select = " UNION ".join(
        f"SELECT {COLUMNS} FROM {source} WHERE network = ?1 AND split = ?2 AND details = ?3"  # noqa: S608
        for source in sources
    )
    return [Trial(*row) for row in connection.execute(f"{select} ORDER BY sample, eps", (network, split, details))]
