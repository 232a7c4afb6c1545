# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Stopped at any moment, in parts, or several at a time: every instance is asked about exactly once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.verify.instances import Instance, Shard

from .conftest import fill

Verify = Callable[..., tuple[int, Any, str]]
ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from tests.verify.conftest import register; register(); from ctkd.cli.main import run; "


def start(*arguments: object) -> subprocess.Popen[str]:
    """``ctkd verify`` with the fakes, in a process of its own."""
    code = f"{SCRIPT}sys.exit(run(['verify', *sys.argv[1:]]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "CTKD_LOAD_PLUGINS": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def count(folder: Path) -> int:
    path = folder / "verification.sqlite"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(path) as connection:
            (found,) = connection.execute("SELECT count(*) FROM verification_answers").fetchone()
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
    return int(found)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happened within a minute")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_where_it_was(tmp_path: Path, verify: Verify, number: signal.Signals) -> None:
    bench = fill(tmp_path / "bench", 3, 3)
    process = start(bench, "--verifier", "Slow")
    wait_for(lambda: count(bench) >= 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    before = count(bench)
    assert 2 <= before < 6
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "interrupted; all answers so far are stored. The same command goes on" in errors
    code, found, _ = verify(bench, "--verifier", "Slow")
    assert (code, found["asked"]) == (0, 6 - before)
    assert (found["verified"], found["falsified"]) == (3, 3)


def test_an_interrupt_ends_the_programs_that_run(bench: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    process = start(bench, "--verifier", "Hangs", "--set", f"Hangs.pids='{pids}'", "--timeout", "300", "--jobs", "2")
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    numbers = [int(word) for word in pids.read_text().split()]
    alive = [n for n in numbers if psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE]
    assert not alive
    assert count(bench) == 0  # what was cut short is no answer


@given(st.integers(0, 50), st.integers(1, 12))
def test_parts_together_are_all_instances_once_each(size: int, parts: int) -> None:
    instances = [Instance(("a", str(k)), Path("a"), Path("b"), 1.0) for k in range(size)]
    found = [each for k in range(parts) for each in Shard.parse(f"{k + 1}/{parts}").of(instances)]
    assert sorted(found, key=lambda each: int(each.row[1])) == instances


def test_parts_share_one_results_file(tmp_path: Path, verify: Verify) -> None:
    bench = fill(tmp_path / "bench", 3, 2)
    processes = [start(bench, "--verifier", "Slow", "--set", "Slow.seconds=0.1", "--shard", f"{k}/2") for k in (1, 2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert count(bench) == 5
    code, found, _ = verify(bench, "--verifier", "Slow", "--set", "Slow.seconds=0.1")
    assert (code, found["asked"], found["verified"], found["falsified"]) == (0, 0, 3, 2)


def test_several_at_a_time_find_the_same(tmp_path: Path, verify: Verify) -> None:
    bench = fill(tmp_path / "bench", 4, 4)
    one = verify(bench, "--verifier", "Honest,Second")[1]
    many = verify(bench, "--verifier", "Honest,Second", "--jobs", 6, "--out", tmp_path / "many.sqlite")[1]
    for found in (one, many):
        found.pop("results")
        for tool in found["verifiers"].values():
            tool.pop("seconds"), tool.pop("median_seconds")
    assert one == many
