# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Starts processes that work together: by torchrun, or one by one to signal them and see how each of them ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

PATIENCE = 600
"""Seconds; processes that hang fail their test."""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Two processes, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )


def start(*arguments: str | Path, count: int = 2, **more: str) -> list[subprocess.Popen[str]]:
    """The same processes without torchrun around them; the first one is process 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=PATIENCE)
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found
