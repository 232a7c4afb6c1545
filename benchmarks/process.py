# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The parent's side of a contender's process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.worker import Unavailable

ROOT = Path(__file__).parent.parent


class ContenderFailed(Exception):
    """A contender's process died or its code raised."""


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A contender with its settings, and the interpreter that runs it: a peer may need another environment."""

    contender: str
    precision: str = "fp32"
    python: str = sys.executable
    path: tuple[str, ...] = ()
    """Folders that its interpreter also imports from."""
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Training options of ctkd."""

    @property
    def label(self) -> str:
        return f"{self.contender} {self.precision}"


class Worker:
    """A contender's process, prepared for one case. Use it in a ``with`` block."""

    def __init__(self, entrant: Entrant, case: Case, threads: int) -> None:
        self.entrant, self.case = entrant, case
        paths = [*entrant.path, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONWARNINGS": "ignore",
        }
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.scratch = tempfile.TemporaryDirectory(prefix="ctkd-benchmark-")  # its checkpoints
        command = [entrant.python, "-m", "benchmarks.worker"]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                cwd=tempfile.gettempdir(),
                env=environment,
            )
        except OSError as error:
            self.log.close()
            self.scratch.cleanup()
            raise Unavailable(f"{entrant.contender}: {entrant.python} cannot be started: {error.strerror}") from None
        settings = {
            "threads": threads,
            "precision": entrant.precision,
            "set": entrant.given,
            "scratch": self.scratch.name,
        }
        try:
            reply = self.ask("prepare", contender=entrant.contender, case=dataclasses.asdict(case), settings=settings)
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, Any] = reply["facts"]
        self.memory_before: int = reply["memory_before"]

    def ask(self, command: str, **message: Any) -> dict[str, Any]:
        """Raises: Unavailable as the contender says, ContenderFailed with the end of its log."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps({"do": command, **message}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": f"its process ended ({self.process.wait()})"}
        if "unavailable" in reply:
            raise Unavailable(f"{self.entrant.contender}: {reply['unavailable']}")
        if "error" in reply:
            self.log.seek(0)
            end = self.log.read().splitlines()[-12:]
            raise ContenderFailed("\n".join([f"{self.entrant.label}, {command}: {reply['error']}", *end]))
        return reply

    def step(self, count: int = 1) -> list[float]:
        """Seconds of each step."""
        seconds: list[float] = self.ask("step", count=count)["seconds"]
        return seconds

    def check(self, statistics: str, dtype: str, eps: float) -> tuple[float, dict[str, Tensor]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gradients.pt"
            loss = self.ask("check", statistics=statistics, dtype=dtype, eps=eps, folder=str(path))["loss"]
            return loss, torch.load(path, weights_only=True)

    def end(self) -> dict[str, Any]:
        """``peak``: bytes so far; ``finite``: whether all weights are still numbers."""
        return self.ask("end", device=self.case.device)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()  # nothing of it is needed any more, and an interpreter may take seconds to end by itself
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # what was still to be written goes nowhere
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()
        self.scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
