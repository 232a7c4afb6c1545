# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the numbers were measured on, and whether other processes were in the way."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

LIMIT = 0.1
"""Cores. A sample during which others used more is taken again."""


def facts() -> dict[str, Any]:
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": properties.name, "memory_bytes": properties.total_memory}
    return found


def versions() -> dict[str, str | None]:
    names = ("torch", "numpy", "ctkd")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "cuda": torch.version.cuda,
        "ctkd_revision": _revision(),
    }


def _revision() -> str | None:
    """The commit, with ``+`` where tracked files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Others:
    """Cores that processes other than this one and ``own`` used since the last call; None where it cannot be told."""

    def __init__(self, own: list[int]) -> None:
        self.own = [os.getpid(), *own]
        self.ticks = os.sysconf("SC_CLK_TCK")
        self.before = self._read()

    def __call__(self) -> float | None:
        now, then = self._read(), self.before
        self.before = now
        if now is None or then is None or now[0] <= then[0]:
            return None
        return max(0.0, (now[1] - then[1]) / (now[0] - then[0]))

    def _read(self) -> tuple[float, float] | None:
        """Time, and seconds that others have used so far."""
        try:
            # user nice system idle iowait irq softirq steal; guest time is part of user time
            fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            ours = 0
            for pid in self.own:
                after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ours += int(after_name[11]) + int(after_name[12])
        except (OSError, ValueError, IndexError):
            return None
        busy = sum(fields[:3]) + sum(fields[5:8])
        return time.monotonic(), (busy - ours) / self.ticks


def command_line() -> str:
    return " ".join(["python -m benchmarks", *sys.argv[1:]])
