# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Answers of external verifiers in SQLite: beside a run's results of ``ctkd certify``, or in a file of their own."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctkd.certify.store import has_certificates
from ctkd.errors import BadInput, Contradiction, RunFailed
from ctkd.verify.instances import Sample
from ctkd.verifying import Verdict

SCHEMA = """
CREATE TABLE IF NOT EXISTS verifiers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,          -- as registered
    options TEXT NOT NULL,       -- JSON
    versions TEXT NOT NULL,      -- JSON: of the plugin, the tool and what it runs on
    UNIQUE (name, options, versions)
);
CREATE TABLE IF NOT EXISTS verification_instances (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,         -- SHA-256 of the ONNX file
    specification TEXT NOT NULL, -- SHA-256 of the VNN-LIB file, unpacked
    name TEXT NOT NULL,          -- for people
    network TEXT,                -- these five for a sample of a run, as in settings and samples; else NULL
    eps REAL,
    split TEXT,
    data TEXT,                   -- digest of the split
    sample INTEGER,
    UNIQUE (model, specification)
);
CREATE TABLE IF NOT EXISTS verification_answers (
    instance INTEGER NOT NULL REFERENCES verification_instances (id),
    verifier INTEGER NOT NULL REFERENCES verifiers (id),
    timeout REAL NOT NULL,       -- seconds
    verdict TEXT NOT NULL CHECK (verdict IN ('verified', 'falsified', 'unknown', 'timeout', 'error')),
    said TEXT NOT NULL,          -- the tool's own verdict; differs where ctkd could not confirm it
    reason TEXT NOT NULL,        -- of an error that ctkd found: network-mismatch, refuted, ...; else ''
    message TEXT NOT NULL,
    seconds REAL NOT NULL,       -- of the call
    own_seconds REAL,            -- as the tool measured
    difference REAL,             -- largest difference of the tool's logits from onnxruntime's; NULL if not compared
    witness BLOB,                -- the replayed input: float64, little-endian
    outputs BLOB,                -- onnxruntime's outputs there, likewise
    log TEXT NOT NULL,
    asked TEXT NOT NULL,         -- UTC
    PRIMARY KEY (instance, verifier, timeout)
);
CREATE TABLE IF NOT EXISTS contradictions (
    id INTEGER PRIMARY KEY,
    instance INTEGER NOT NULL REFERENCES verification_instances (id),
    found TEXT NOT NULL,         -- UTC
    description TEXT NOT NULL,
    folder TEXT NOT NULL,        -- where the evidence lies
    UNIQUE (instance, description)
);
"""
WAIT = 60.0
"""Seconds to wait for another process that writes to the same file, such as another shard."""

Reason = Literal[
    "", "no-witness", "witness-malformed", "witness-outside", "witness-holds", "network-mismatch", "format", "refuted"
]


@dataclass(frozen=True, eq=False)
class Result:
    """An answer as it is booked. The fields are the columns of ``verification_answers``."""

    verdict: Verdict
    said: Verdict
    reason: Reason
    message: str
    seconds: float
    own_seconds: float | None
    difference: float | None
    witness: NDArray[np.float64] | None
    outputs: NDArray[np.float64] | None
    log: str
    asked: str


@dataclass(frozen=True, eq=False)
class Stored:
    """A result with the verifier that gave it."""

    verifier: int
    name: str
    versions: Mapping[str, str]
    timeout: float
    result: Result


COLUMNS = "verdict, said, reason, message, seconds, own_seconds, difference, witness, outputs, log, asked"


class Answers:
    """The tables of one file. Every ``add`` is one transaction: what was recorded before stays, whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.connection = sqlite3.connect(path, timeout=WAIT)
            self.connection.execute("PRAGMA foreign_keys = ON")
            self.connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise BadInput(f"results file {path} cannot be used ({error}); name another one with --out") from None

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.connection.close()

    def verifier(self, name: str, options: Mapping[str, Any], versions: Mapping[str, str]) -> int:
        """The id of a tool with these options and versions; new ones are recorded."""
        key = (name, json.dumps(options, sort_keys=True), json.dumps(versions, sort_keys=True))
        self._write("INSERT OR IGNORE INTO verifiers (name, options, versions) VALUES (?, ?, ?)", key)
        found = self.connection.execute("SELECT id FROM verifiers WHERE name = ? AND options = ? AND versions = ?", key)
        return int(found.fetchone()[0])

    def instance(self, model: str, specification: str, name: str, sample: Sample | None) -> int:
        """The id of an instance; a new one is recorded."""
        origin = (sample.network, sample.eps, sample.split, sample.data, sample.index) if sample else (None,) * 5
        self._write(
            "INSERT INTO verification_instances (model, specification, name, network, eps, split, data, sample) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET name = excluded.name",
            (model, specification, name, *origin),
        )
        found = self.connection.execute(
            "SELECT id FROM verification_instances WHERE model = ? AND specification = ?", (model, specification)
        )
        return int(found.fetchone()[0])

    def add(self, instance: int, verifier: int, timeout: float, result: Result) -> None:
        """Raises: RunFailed if it cannot be written; what was stored before stays."""
        values = (
            *(result.verdict, result.said, result.reason, result.message, result.seconds, result.own_seconds),
            *(result.difference, _packed(result.witness), _packed(result.outputs), result.log, result.asked),
        )
        self._write(
            f"INSERT OR REPLACE INTO verification_answers (instance, verifier, timeout, {COLUMNS}) "  # noqa: S608
            f"VALUES (?, ?, ?, {', '.join('?' * len(values))})",
            (instance, verifier, timeout, *values),
        )

    def answers(self, instance: int) -> list[Stored]:
        """All answers about an instance, of whatever tool, version and timeout, in the order in which they came."""
        found = self.connection.execute(
            f"SELECT verifier, name, versions, timeout, {COLUMNS} FROM verification_answers "  # noqa: S608
            "JOIN verifiers ON verifiers.id = verifier WHERE instance = ? ORDER BY asked, verifier",
            (instance,),
        )
        return [Stored(row[0], row[1], json.loads(row[2]), row[3], _result(row[4:])) for row in found]

    def forget(self, name: str) -> int:
        """Delete all answers of the tools of that name; returns how many."""
        return self._write(
            "DELETE FROM verification_answers WHERE verifier IN (SELECT id FROM verifiers WHERE name = ?)", (name,)
        )

    def contradiction(self, instance: int, found: str, description: str, folder: str) -> None:
        self._write(
            "INSERT OR IGNORE INTO contradictions (instance, found, description, folder) VALUES (?, ?, ?, ?)",
            (instance, found, description, folder),
        )

    def _write(self, statement: str, values: Sequence[Any]) -> int:
        try:
            with self.connection:
                return self.connection.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise RunFailed(
                f"{self.path} cannot be written ({error}); all answers before this one are kept, and the same command "
                "goes on from them"
            ) from None


def settled(path: Path, network: str, eps: float, split: str, data: str) -> dict[int, tuple[str, str]]:
    """By sample: what ``ctkd certify`` found, and by which stage; the most that is known under any settings.

    Raises:
        BadInput: the file cannot be read.
        Contradiction: under one setting a sample is certified, and broken under another.
    """
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(path, timeout=WAIT)) as connection:
            if not has_certificates(connection):  # other verifiers were asked before ctkd's stages
                return {}
            rows = connection.execute(
                "SELECT sample, status, stage, details FROM samples JOIN settings ON settings.id = samples.settings "
                "WHERE network = ? AND eps = ? AND split = ? ORDER BY status = 'undecided' DESC",
                (network, eps, split),
            ).fetchall()
    except sqlite3.Error as error:
        raise BadInput(f"results file {path} cannot be used: {error}") from None
    found: dict[int, tuple[str, str]] = {}
    for sample, status, stage, details in rows:
        if json.loads(details).get("data") != data:
            continue
        before, by = found.get(sample, ("undecided", ""))
        if before not in ("undecided", status):
            raise Contradiction(
                f"{path}: at eps={eps:g} sample {sample} is {before} by {by!r}, and {status} by {stage!r} under other "
                "settings; one of them is wrong, and nothing was asked"
            )
        found[sample] = status, stage
    return found


def _packed(values: NDArray[np.float64] | None) -> bytes | None:
    return None if values is None else values.astype("<f8").tobytes()


def _result(row: Sequence[Any]) -> Result:
    verdict, said, reason, message, seconds, own, difference, witness, outputs, log, asked = row
    x, y = (None if data is None else np.frombuffer(data, "<f8") for data in (witness, outputs))
    return Result(verdict, said, reason, message, seconds, own, difference, x, y, log, asked)
