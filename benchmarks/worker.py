# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The process of one contender, ``python -m benchmarks.worker``: JSON lines in, JSON lines out. No ctkd in here."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from benchmarks.cases import Case

T = TypeVar("T")
CONTENDERS = {
    "ctkd": "benchmarks.contenders.ctkd:Ctkd",
    "autolirpa": "benchmarks.contenders.autolirpa:AutoLirpa",
    "autolirpa-backend": "benchmarks.contenders.ctkd:CtkdOnAutoLirpa",
    "ctrain": "benchmarks.contenders.ctrain:Ctrain",
}


class Unavailable(Exception):
    """The contender cannot run here or cannot do what is asked; the message says what to do."""


class Contender(Protocol):
    """One way to train."""

    def __init__(self, case: Case, settings: dict[str, Any]) -> None: ...

    def facts(self) -> dict[str, Any]:
        """Versions and how the step is done."""
        ...

    def step(self) -> float:
        """One training step on the next batch; seconds."""
        ...

    def finite(self) -> bool:
        """Whether all weights are still numbers."""
        ...

    def check(self, statistics: str, dtype: str, eps: float) -> tuple[float, dict[str, Any]]:
        """Loss and gradients by parameter of one step on the first batch, with ``nets.some_point`` as the attack's.

        ``statistics``: of batch norm for points and boxes, ``clean`` or ``last-pass`` (the attacked batch's).
        """
        ...


class Driven:
    """A training loop of somebody else's, one step at a time: it runs in a thread that waits where it fetches a batch.

    What it does between two batches is a step: forward and backward passes, the optimiser, its own bookkeeping.
    """

    def __init__(self, loop: Callable[[Driven], None]) -> None:
        self.go: queue.Queue[None] = queue.Queue()
        self.came: queue.Queue[BaseException | None] = queue.Queue()
        self.spoilt = False
        """Set by the loop where an interval also held something else, such as the end of an epoch."""
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()
        self._wait()

    def _run(self, loop: Callable[[Driven], None]) -> None:
        try:
            loop(self)
            self.came.put(RuntimeError("the training loop ended by itself"))
        except BaseException as error:
            self.came.put(error)

    def fetching(self) -> None:
        """To be called by the loop where it fetches a batch."""
        self.came.put(None)
        self.go.get()

    def _wait(self) -> None:
        error = self.came.get()
        if error is not None:
            raise error

    def step(self, synchronise: Callable[[], None]) -> float:
        while True:
            self.spoilt = False
            began = time.perf_counter()
            self.go.put(None)
            self._wait()
            synchronise()
            seconds = time.perf_counter() - began
            if not self.spoilt:
                return seconds


def synchroniser(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize
    return wait


def peak_memory(device: str) -> int:
    """Bytes. On a GPU what torch allocated there, else the largest resident set of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:  # ru_maxrss would also count the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(contender: Contender | None, message: dict[str, Any]) -> tuple[Contender | None, dict[str, Any]]:
    command = message.pop("do")
    if command == "prepare":
        return _apart(lambda: _prepare(**message))
    assert contender is not None
    if command == "step":
        return contender, {"seconds": [contender.step() for _ in range(message["count"])]}
    if command == "check":
        import torch

        folder = Path(message.pop("folder"))
        checked = contender
        loss, gradients = _apart(lambda: checked.check(**message))
        torch.save({name: gradient.detach().cpu() for name, gradient in gradients.items()}, folder)
        return contender, {"loss": loss}
    assert command == "end"
    return contender, {"peak": peak_memory(message["device"]), "finite": contender.finite()}


def _apart(work: Callable[[], T]) -> T:
    """In a thread of its own, which ends.

    A thread that computed keeps its OpenMP threads; once there are more of them than cores, none waits actively for the
    next piece of work any more, and steps of small networks take half as long again.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _prepare(contender: str, case: dict[str, Any], settings: dict[str, Any]) -> tuple[Contender, dict[str, Any]]:
    import torch

    torch.set_num_threads(settings["threads"])
    module, _, name = CONTENDERS[contender].partition(":")
    made: Contender = getattr(importlib.import_module(module), name)(Case(**case), settings)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), **made.facts()}
    return made, {"facts": facts, "memory_before": peak_memory(case["device"])}


def main() -> None:
    _one_arena()
    # Standard output belongs to the protocol: whatever a peer prints goes to standard error.
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)
        serve(out)


def _one_arena() -> None:
    """Loops run in a thread here; they get their memory from where the main thread of a training would get it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX


def serve(out: TextIO) -> None:
    contender: Contender | None = None
    for line in sys.stdin:
        try:
            contender, reply = answer(contender, json.loads(line))
        except Unavailable as error:
            reply = {"unavailable": str(error)}
        except Exception as error:  # whatever a peer raises is reported, not swallowed
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(reply), file=out)


if __name__ == "__main__":
    main()
