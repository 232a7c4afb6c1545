# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Foreign programs: their output, their time, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from ctkd import programs
from ctkd.errors import RunFailed
from ctkd.programs import run_program, stopped_by

FAMILY = """
import os, subprocess, sys, time
child = "import time; time.sleep(600)"
one = subprocess.Popen([sys.executable, "-c", child])
two = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
open("pids", "w").write(f"{os.getpid()} {one.pid} {two.pid}")
print("begun", flush=True)
{end}
"""


def python(folder: Path, code: str, timeout: float = 60.0) -> programs.Finished:
    return run_program([sys.executable, "-c", code], timeout=timeout, folder=folder)


def gone(folder: Path) -> bool:
    numbers = [int(word) for word in (folder / "pids").read_text().split()]
    left = [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]
    return len(numbers) == 3 and all(each.status() == psutil.STATUS_ZOMBIE for each in left)


def test_output_errors_and_code_come_back(tmp_path: Path) -> None:
    code = "import sys, os; print(os.getcwd()); print('bad', file=sys.stderr); print(sys.stdin.read()); sys.exit(3)"
    done = python(tmp_path, code)
    assert (done.code, done.output.split(), done.errors, done.timed_out) == (3, [str(tmp_path)], "bad\n", False)
    assert done.seconds > 0


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    done = python(tmp_path, FAMILY.replace("{end}", "time.sleep(600)"), timeout=2.0)
    assert (done.code, done.timed_out, done.output) == (None, True, "begun\n")
    assert time.monotonic() - began < 60
    assert gone(tmp_path)


def test_children_without_an_environment_are_ended_at_the_timeout(tmp_path: Path) -> None:
    bare = FAMILY.replace("start_new_session=True", "start_new_session=True, env={}")
    assert python(tmp_path, bare.replace("{end}", "time.sleep(600)"), timeout=2.0).timed_out
    assert gone(tmp_path)


@pytest.mark.parametrize(("end", "code"), [("", 0), ("os._exit(7)", 7), ("os.kill(os.getpid(), 11)", -11)])
def test_children_do_not_outlive_a_program_that_ends_by_itself(tmp_path: Path, end: str, code: int) -> None:
    done = python(tmp_path, FAMILY.replace("{end}", end))
    assert (done.code, done.timed_out) == (code, False)
    assert gone(tmp_path)


@pytest.mark.parametrize(("hides", "looks"), [("environment", 3), ("listing", 1)])
def test_a_child_that_hides_for_a_moment_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hides: str, looks: int
) -> None:
    """As a process does that becomes another program, or whose parent starts it and ends during a look."""
    seen: Counter[int] = Counter()

    def hidden(pid: int) -> bool:
        pids = tmp_path / "pids"
        if pids.exists() and str(pid) in pids.read_text().split():
            seen[pid] += 1
        return 0 < seen[pid] <= looks

    environ, listing = psutil.Process.environ, psutil.process_iter
    if hides == "environment":
        monkeypatch.setattr(psutil.Process, "environ", lambda self: {} if hidden(self.pid) else environ(self))
    else:
        monkeypatch.setattr(psutil, "process_iter", lambda: (each for each in listing() if not hidden(each.pid)))
    python(tmp_path, FAMILY.replace("{end}", ""))
    assert gone(tmp_path)
    assert max(seen.values()) > looks


def test_a_request_to_stop_ends_it(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    with stopped_by(stop.is_set), pytest.raises(RunFailed, match="asked to stop"):
        python(tmp_path, FAMILY.replace("{end}", "time.sleep(600)"))
    assert gone(tmp_path)


def test_much_output_loses_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LIMIT", 1 << 16)
    done = python(tmp_path, "import sys\nfor i in range(200_000): print(i)\nsys.stderr.buffer.write(bytes([255, 10]))")
    assert done.output.startswith("0\n1\n")
    assert done.output.endswith("\n199999\n")
    assert "bytes left out" in done.output
    assert len(done.output) < 4 << 16
    assert done.errors == "\ufffd\n"


def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no-such-program cannot be started: No such file"):
        run_program(["no-such-program"], timeout=1, folder=tmp_path)
    with pytest.raises(RunFailed, match="cannot be started"):
        run_program([sys.executable, "a\0b"], timeout=1, folder=tmp_path)


def test_the_environment_is_the_given_one(tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('CTKD_TEST'), os.environ.get('HOME'))"
    command = [sys.executable, "-c", code]
    done = run_program(command, timeout=60, folder=tmp_path, environment={"CTKD_TEST": "yes"})
    assert done.output.split() == ["yes", "None"]
    assert programs.MARK not in os.environ


KILLED = """
import sys
from pathlib import Path
from ctkd.programs import run_program
run_program([sys.executable, "-c", {family!r}], timeout=600, folder=Path({folder!r}))
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the watchdog reads /proc")
def test_nothing_outlives_a_ctkd_that_is_killed(tmp_path: Path) -> None:
    family = FAMILY.replace("{end}", "time.sleep(600)").replace('"pids", "w"', '"pids.tmp", "w"')
    family = family.replace("print(", 'os.rename("pids.tmp", "pids"); print(')
    ctkd = subprocess.Popen([sys.executable, "-c", KILLED.format(family=family, folder=str(tmp_path))])
    end = time.monotonic() + 60
    while not (tmp_path / "pids").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not gone(tmp_path)
    ctkd.send_signal(signal.SIGKILL)
    ctkd.wait()
    while not gone(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(tmp_path)


def test_one_watchdog_is_enough_and_ends_with_its_process(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from ctkd import programs
for _ in range(2):
    programs.run_program([sys.executable, "-c", ""], timeout=60, folder=Path({folder!r}))
    print(programs._watchdog.process.pid if programs._watchdog.process else 0)
"""
    run = [sys.executable, "-W", "error", "-c", code.format(folder=str(tmp_path))]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert (first, done.stderr) == (second, "")
    assert first == 0 or not psutil.pid_exists(first)


def test_how_a_program_ended_and_its_last_words(tmp_path: Path) -> None:
    done = python(tmp_path, "import sys; print('out'); print(' no licence \\n\\n', file=sys.stderr); sys.exit(4)")
    assert (done.ending, done.last_line, done.log) == ("exit code 4", "no licence", "out\n no licence \n\n\n")
    done = python(tmp_path, "import os; print('x' * 300, end='', flush=True); os.kill(os.getpid(), 9)")
    assert (done.ending, done.last_line) == ("signal 9", "x" * 200)
    done = python(tmp_path, "import time; time.sleep(600)", timeout=0.5)
    assert (done.ending, done.last_line) == ("a timeout", "")


def test_another_python_gets_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "KEPT"):
        monkeypatch.setenv(name, "ours")
    assert {**os.environ, "KEPT": "ours"}.items() >= programs.other_python().items()
    found = programs.other_python([tmp_path, tmp_path / "b"])
    assert found["PYTHONPATH"] == f"{tmp_path}{os.pathsep}{tmp_path / 'b'}"
    for given in (programs.other_python(), found):
        assert given["KEPT"] == "ours"
        assert not {"PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"} & given.keys()
    assert "PYTHONPATH" not in programs.other_python()
