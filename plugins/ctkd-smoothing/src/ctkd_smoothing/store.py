# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certificates by sample, in ``smoothing.sqlite`` beside a run's own results and apart from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ctkd.errors import BadInput
from ctkd_smoothing.certificate import SmoothedCertificate

NAME = "smoothing.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (
    id INTEGER PRIMARY KEY, threat_model TEXT NOT NULL, network TEXT NOT NULL, split TEXT NOT NULL, data TEXT NOT NULL,
    sigma REAL NOT NULL, selection INTEGER NOT NULL, draws INTEGER NOT NULL, alpha REAL NOT NULL, seed INTEGER NOT NULL,
    UNIQUE (threat_model, network, split, data, sigma, selection, draws, alpha, seed)
);
CREATE TABLE IF NOT EXISTS certificates (
    settings INTEGER NOT NULL REFERENCES settings (id), sample INTEGER NOT NULL, label INTEGER NOT NULL,
    predicted INTEGER, count INTEGER NOT NULL, probability REAL NOT NULL, l2_radius REAL NOT NULL,
    PRIMARY KEY (settings, sample)
);
"""
THREAT_MODEL = "L2, Gaussian smoothing, probabilistic"


class SmoothingStore:
    """The database of one run; each certificate is on disk when ``add`` returns."""

    def __init__(self, connection: sqlite3.Connection, settings: int) -> None:
        self.connection, self.settings = connection, settings

    def known(self) -> dict[int, SmoothedCertificate]:
        """By sample, what was found under these settings before."""
        query = "SELECT sample, predicted, count, probability, l2_radius FROM certificates WHERE settings = ?"
        return {row[0]: SmoothedCertificate(*row[1:]) for row in self.connection.execute(query, (self.settings,))}

    def add(self, sample: int, label: int, found: SmoothedCertificate) -> None:
        values = (self.settings, sample, label, found.predicted, found.count, found.probability, found.radius)
        with self.connection:
            self.connection.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)", values)


@contextmanager
def opened(folder: Path, settings: Mapping[str, str | float]) -> Iterator[SmoothingStore]:
    """The store of a run folder, for all that determines a certificate besides the sample.

    Raises: BadInput if the file is damaged or cannot be written.
    """
    path = folder / NAME
    values = {"threat_model": THREAT_MODEL, **settings}
    columns = ", ".join(values)
    marks = ", ".join("?" * len(values))
    try:
        connection = sqlite3.connect(path, timeout=60)
        try:
            connection.executescript(SCHEMA)
            with connection:
                insert = f"INSERT OR IGNORE INTO settings ({columns}) VALUES ({marks})"  # noqa: S608
                connection.execute(insert, tuple(values.values()))
            where = f"SELECT id FROM settings WHERE ({columns}) = ({marks})"  # noqa: S608
            (number,) = connection.execute(where, tuple(values.values())).fetchone()
            yield SmoothingStore(connection, number)
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise BadInput(f"{path} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise BadInput(f"{path} is damaged ({error}); move it away, and the certificates are computed again") from None
