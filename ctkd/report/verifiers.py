# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What external verifiers said about a run's samples: answers of ``ctkd verify`` in the same file."""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctkd.certify.trials import Trial

if TYPE_CHECKING:
    from ctkd.report.results import Result

QUERY = """
SELECT verifiers.name, versions, eps, split, data, sample, verdict, seconds FROM verification_answers
JOIN verification_instances ON verification_instances.id = instance JOIN verifiers ON verifiers.id = verifier
WHERE network = ? AND sample IS NOT NULL ORDER BY eps, verifiers.name, versions, sample, timeout
"""


@dataclass(frozen=True)
class Answered:
    """One tool's answers at one radius.

    Attributes:
        versions: as the tool told them, in words.
        verdicts: by sample; the answer with the longest timeout.
        seconds: the median.
    """

    tool: str
    versions: str
    eps: float
    split: str
    data: str
    verdicts: Mapping[int, str]
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        """How often each verdict."""
        return Counter(self.verdicts.values())

    def trials(self) -> list[Trial]:
        """The answers as evidence about samples; an attacked point stands for a witness, which ctkd has replayed."""
        status = {"verified": "certified", "falsified": "broken"}
        return [
            Trial(sample, self.eps, 0, status[verdict], self.tool, None, -1.0, 0.0)  # type: ignore[arg-type]
            for sample, verdict in self.verdicts.items()
            if verdict in status
        ]


def read_answers(connection: sqlite3.Connection, network: str) -> list[Answered]:
    """All answers about samples of a network, by radius and tool."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'verification_answers'").fetchone():
        return []
    found: dict[tuple[str, str, float, str, str], dict[int, tuple[str, float]]] = {}
    for *key, sample, verdict, seconds in connection.execute(QUERY, (network,)):
        found.setdefault((key[0], key[1], key[2], key[3], key[4]), {})[sample] = verdict, seconds
    return [
        Answered(
            tool,
            ", ".join(f"{name} {version}" for name, version in json.loads(versions).items()),
            eps,
            split,
            data,
            {sample: verdict for sample, (verdict, _) in answers.items()},
            statistics.median(seconds for _, seconds in answers.values()),
        )
        for (tool, versions, eps, split, data), answers in found.items()
    ]


def together(result: Result, found: Sequence[Result], answers: Sequence[Answered]) -> dict[str, int] | None:
    """Samples of a result that ctkd or a tool ``proved`` or ``broke``, and the ``open`` ones; None without answers.

    Args:
        found: of ctkd, under whatever settings; those about the same boxes count, as they do in ``ctkd verify``.
    """
    about = result.eps, result.split, result.data
    mine = [a for a in answers if (a.eps, a.split, a.data) == about]
    if not mine:
        return None
    own = [row for each in found if (each.eps, each.split, each.data) == about for row in each.rows]

    def settled(status: str, verdict: str) -> int:
        known = {row.sample for row in own if row.status == status}
        known |= {sample for answered in mine for sample, said in answered.verdicts.items() if said == verdict}
        return sum(row.sample in known for row in result.rows)

    proved, broke = settled("certified", "verified"), settled("broken", "falsified")
    return {"proved": proved, "broke": broke, "open": len(result.rows) - proved - broke}
