# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A program of its own, on Linux: when ctkd is killed without a word, what it had started is killed, too.

``ctkd.programs`` starts it. Its standard input is a pipe that nobody writes to, and that ends when ctkd does. It runs
without ctkd's packages, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

PATIENCE = 10.0
"""Seconds for killed processes to vanish."""
LOOKS = 5
"""How often to find none: a process has no environment for a moment while it becomes another program."""


def marked(mark: bytes) -> list[int]:
    """Processes that have it in their environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        # Another user's cannot be read; one that has ended is not there, or has no environment any more.
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def main(mark: str) -> None:
    """Wait for the end of standard input; then kill whatever has the mark, until none is found any more."""
    sys.stdin.buffer.read()
    end = time.monotonic() + PATIENCE
    clean = 0
    while clean < LOOKS and time.monotonic() < end:
        left = marked(mark.encode())
        clean = 0 if left else clean + 1
        for number in left:
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
