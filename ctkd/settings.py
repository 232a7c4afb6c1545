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
        self.notices: list[str] = []

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


def nth(role: str, i: int) -> str:
    """The role of the i-th teacher: ``teacher``, ``teacher.2``, ..."""
    return role if i == 1 else f"{role}.{i}"


def teacher_numbers(layers: Layers) -> list[int]:
    """Numbers of the teachers that something is set for, in order; gaps are a mistake of the user's."""
    roles = {role for role, _ in layers.values if role.split(".")[0] == "teacher"}
    return sorted({1, *(int(role.partition(".")[2] or 1) for role in roles)})


def teacher_roles(layers: Layers) -> list[str]:
    """``teacher``, ``teacher.2``, ... up to the first gap."""
    return [nth("teacher", i) for i, found in enumerate(teacher_numbers(layers), start=1) if i == found]
