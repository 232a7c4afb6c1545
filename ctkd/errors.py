# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The errors that reach a user, each with the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CtkdError(Exception):
    """Base of all errors that ctkd explains itself; anything else is a defect."""

    exit_code = 1


class BadInput(CtkdError):
    """The user's input cannot be used. Holds one message per mistake, so that all are reported at once."""

    exit_code = 2

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class RunFailed(CtkdError):
    """A run or a plugin failed: non-finite training, a plugin that raised."""


class Contradiction(CtkdError):
    """A certificate and an attack disagree about one sample. No report may be written from such a run."""

    exit_code = 3


class Interrupted(CtkdError):
    """A signal stopped the run after its state was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class Elsewhere(CtkdError):
    """Another process of the same run failed first, and says why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed first; its message says why")
        self.exit_code = exit_code


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped name: the closest choice first, then all of them."""
    names = sorted(choices)
    if not names:
        return "there is none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}accepted: {', '.join(names)}"
