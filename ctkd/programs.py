# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Foreign programs: run with a time limit, their output kept within a size limit, and ended with all their children."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from ctkd import watchdog
from ctkd.errors import RunFailed

MARK = "CTKD_PROGRAM"
"""Environment variable by which the descendants of a program are found, also those in a session of their own."""
LIMIT = 1 << 20
"""Bytes of each output stream that are kept: half from the beginning, half from the end."""
POLL = 0.02
"""Seconds between two looks at the clock and at a request to stop."""
LOOKS = 10
"""How often, at most, to look for processes that may be hidden for a moment."""
PATIENCE = 5.0
"""Seconds for killed processes to vanish, and for their output to end."""

_stop: ContextVar[Callable[[], bool]] = ContextVar("ctkd_stop", default=lambda: False)


@dataclass(frozen=True)
class Finished:
    """What became of a program.

    Attributes:
        code: exit status, negative for a signal; None if it was ended because of the time.
        output, errors: what it wrote to standard output and standard error, at most about 1 MiB of each; more loses
            its middle.
        seconds: wall-clock time.
        timed_out: True if the time was over.
    """

    code: int | None
    output: str
    errors: str
    seconds: float
    timed_out: bool

    @property
    def log(self) -> str:
        """Both streams, standard output first."""
        return self.output + self.errors

    @property
    def ending(self) -> str:
        """``exit code 3``, ``signal 9``, or ``a timeout``."""
        if self.code is None:
            return "a timeout"
        return f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"

    @property
    def last_line(self) -> str:
        """The last line with anything in it, which often says what went wrong; at most 200 characters, may be empty."""
        lines = [line.strip() for line in f"{self.output}\n{self.errors}".splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


def other_python(path: Sequence[Path] = ()) -> dict[str, str]:
    """The environment for a program with a Python of its own: ctkd's, without what belongs to ctkd's Python.

    Args:
        path: folders that it finds before its own packages.
    """
    own = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, path))} if path else kept


@contextlib.contextmanager
def stopped_by(stop: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, programs of this thread are ended as soon as ``stop()`` is true."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def run_program(
    command: Sequence[str | Path], *, timeout: float, folder: Path, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a program to its end; none of its processes outlives the call, however it returns, nor ctkd (on Linux).

    Args:
        command: the program and its arguments; no shell is involved. Standard input is empty.
        timeout: seconds, after which it is killed.
        folder: its working directory.
        environment: all its variables; None is ctkd's own.

    Raises:
        RunFailed: it cannot be started, or ctkd is asked to stop.
    """
    mark = f"{_watched()}.{uuid.uuid4().hex}"
    variables = {**(os.environ if environment is None else environment), MARK: mark}
    born, began = time.time(), time.monotonic()
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise RunFailed(f"{command[0]} cannot be started: {error.strerror}") from None
    except ValueError as error:  # such as a zero byte in an argument
        raise RunFailed(f"{command[0]} cannot be started: {error}") from None
    streams = [_Kept(process.stdout), _Kept(process.stderr)]
    stop = _stop.get()
    timed_out = False
    try:
        while process.poll() is None:
            timed_out = time.monotonic() - began > timeout
            if timed_out:
                break
            if stop():
                raise RunFailed(f"{command[0]} was ended because ctkd was asked to stop")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
        seconds = time.monotonic() - began
    finally:
        _end(process, mark, born)
        output, errors = (stream.text() for stream in streams)
    return Finished(None if timed_out else process.returncode, output, errors, seconds, timed_out)


class _Watchdog:
    """Kills this process's programs after it where it cannot do so itself: on a SIGKILL, or for lack of memory."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        with self.lock:
            if not Path("/proc/self/environ").exists() or (self.process and self.process.poll() is None):
                return
            with contextlib.suppress(OSError):  # the program itself cannot be started either, and that is said
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", watchdog.__file__, f"{MARK}={self.mark}."],
                    env={key: value for key, value in os.environ.items() if not key.startswith("CTKD_")},
                    cwd="/",
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                atexit.register(self._dismiss, self.process)

    @staticmethod
    def _dismiss(process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)


_watchdog = _Watchdog()


def _watched() -> str:
    """The beginning of this process's marks, with a watchdog that looks for them."""
    _watchdog.ensure()
    return _watchdog.mark


def _end(process: subprocess.Popen[bytes], mark: str, born: float) -> None:
    """Kill what is left: the group and descendants first, then by the mark, until no process has it."""
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):  # some start theirs without an environment, and so without the mark
        below = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel cannot be waited for
        process.wait(PATIENCE)
    for each in below:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(below, timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while left := marked(MARK, mark, born):
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(left, timeout=POLL)
        if time.monotonic() > deadline:
            break


def marked(variable: str, value: str, since: float) -> list[psutil.Process]:
    """Living processes that were started with this environment variable.

    One look is not enough to say that there are none: a process that starts another one and ends in the middle of it
    hides both, and one that is becoming another program has no environment for that moment. So it takes two looks, and
    more while a young process shows no environment.

    Args:
        since: when the first of them may have started, seconds of ``time.time()``.
    """
    for look in range(LOOKS):
        found, hidden = _look(variable, value, since)
        if found or (look > 0 and not hidden):
            return found
        time.sleep(POLL)
    return []


def _look(variable: str, value: str, since: float) -> tuple[list[psutil.Process], bool]:
    """The processes with the variable, and whether a young one shows no environment."""
    found, hidden = [], False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            has = variables.get(variable) == value
            conceals = not variables and process.create_time() > since - 1  # the clocks are coarse
            if (has or conceals) and process.status() != psutil.STATUS_ZOMBIE:
                found += [process] if has else []
                hidden |= conceals
    return found, hidden


class _Kept:
    """Reads a stream to its end in a thread of its own, so that the program never waits for us."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self.stream = stream
        self.head = b""
        self.tail: deque[bytes] = deque()
        self.held = self.dropped = 0
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while chunk := os.read(self.stream.fileno(), 1 << 16):
            room = LIMIT // 2 - len(self.head)
            self.head += chunk[:room]
            self.tail.append(chunk[room:])
            self.held += len(chunk[room:])
            while self.held - len(self.tail[0]) >= LIMIT // 2:
                self.held -= len(self.tail[0])
                self.dropped += len(self.tail.popleft())

    def text(self) -> str:
        self.thread.join(PATIENCE)
        if not self.thread.is_alive():
            self.stream.close()
        gap = b"\n[... %d bytes left out ...]\n" % self.dropped if self.dropped else b""
        return (self.head + gap + b"".join(self.tail)).decode(errors="replace")
