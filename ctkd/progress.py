# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How long work reports itself: a live display on a terminal, one plain line an epoch elsewhere, silence in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """Receives progress. Every method may be called often and must be cheap."""

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        """A phase of ``total`` steps starts, ``done`` of which were done before."""
        ...

    def advance(self, steps: int = 1, note: str = "") -> None: ...

    def end(self) -> None: ...

    def epoch(self, network: str, metrics: Mapping[str, Any]) -> None: ...

    def say(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


class Silent:
    """Reports nothing but warnings, which become Python warnings."""

    def begin(self, phase: str, total: int, done: int = 0) -> None: ...

    def advance(self, steps: int = 1, note: str = "") -> None: ...

    def end(self) -> None: ...

    def epoch(self, network: str, metrics: Mapping[str, Any]) -> None: ...

    def say(self, message: str) -> None: ...

    def warn(self, message: str) -> None:
        import warnings

        warnings.warn(message, stacklevel=2)


class Mute(Silent):
    """Reports nothing at all: a process whose leader speaks for it."""

    def warn(self, message: str) -> None: ...
