# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Settings from several places, the highest rank winning."""

from __future__ import annotations

from typing import Any

SHIPPED, FILE, FLAG = 1, 2, 3
"""Ranks of what ctkd ships for a data set, of a configuration file and of the command line; 0 is for defaults."""


class Layers:
    """Values by role and key, one per rank; the highest rank wins."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], dict[int, tuple[Any, str]]] = {}

    def put(self, rank: int, role: str, key: str, value: Any, source: str) -> None:
        self.values.setdefault((role, key), {})[rank] = (value, source)

    def top(self, role: str, key: str, below: int | None = None) -> tuple[int, Any, str] | None:
        """Rank, value and source of the winner, among ranks below a limit if one is given."""
        known = {r: v for r, v in self.values.get((role, key), {}).items() if below is None or r < below}
        return (max(known), *known[max(known)]) if known else None

    def get(self, role: str, key: str) -> Any:
        found = self.top(role, key)
        return None if found is None else found[1]

    def table(self, role: str) -> dict[str, Any]:
        return {key: self.get(role, key) for known, key in self.values if known == role}

    def sources(self) -> dict[str, str]:
        return {f"{role}.{key}": found[2] for role, key in self.values if (found := self.top(role, key))}
