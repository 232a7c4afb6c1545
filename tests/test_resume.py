# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Real processes, killed at random moments and resumed: the weights must come out bit for bit the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctkd.propagate import Network
from ctkd.storage import read_tensors
from ctkd.train import checkpoint

SETTINGS = {
    "train.epochs": 4,
    "train.ramp": 2.0,
    "train.warmup": 0.5,
    "train.checkpoint_seconds": 0.05,
    "train.batch_size": 64,
    "teacher.epochs": 2,
    "teacher.batch_size": 64,
    "attack.steps": 1,
    "bound.name": "cc-ibp",
    "certify.attack_steps": 4,
    "certify.attack_restarts": 1,
    "certify.batch_size": 30,
    "export.samples": 2,
}


def start(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CTKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ctkd", "train", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> float:
    """Returns the time at which the file was there, or the process was gone."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    return time.monotonic()


def new_run(out: Path) -> list[str]:
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return ["--threads", "1", "--out", str(out), *sets]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An undisturbed run, and the seconds it took once its folder was there."""
    folder = tmp_path_factory.mktemp("reference")
    process = start(folder / "cache", *new_run(folder / "run"))
    began = wait_for(folder / "run" / "config.toml", process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder / "run", time.monotonic() - began


def finish(cache: Path, run: Path) -> None:
    process = start(cache, "--resume", str(run))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def same_result(run: Path, reference: Path) -> None:
    assert (
        Network.load(run / "network.safetensors").sha256() == Network.load(reference / "network.safetensors").sha256()
    )
    final = [read_tensors(folder / "student" / checkpoint.CURRENT)[0] for folder in (run, reference)]
    assert all(left.equal(right) for left, right in zip(*(tensors.values() for tensors in final), strict=True))
    rows = []
    for folder in (run, reference):
        with sqlite3.connect(folder / "certification.sqlite") as connection:
            rows.append(
                connection.execute("SELECT sample, status, stage, lower_margin FROM samples ORDER BY 1").fetchall()
            )
    assert rows[0] == rows[1]
    assert len(rows[0]) == 360
    metrics = [
        [
            (row["network"], row["epoch"], row["losses"])
            for row in map(json.loads, (f / "metrics.jsonl").read_text().splitlines())
        ]
        for f in (run, reference)
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_and_resumed(tmp_path: Path, reference: tuple[Path, float], seed: int) -> None:
    whole, seconds = reference
    moments = random.Random(seed)
    run, cache = tmp_path / "run", tmp_path / "cache"
    process = start(cache, *new_run(run))
    kills = 0
    for _ in range(3):
        # Let it make its folder first; then kill somewhere between there and the end.
        wait_for(run / "config.toml", process)
        time.sleep(moments.uniform(0, 0.5 * seconds))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = start(cache, "--resume", str(run))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert kills > 0
    same_result(run, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, reference: tuple[Path, float], number: signal.Signals, code: int
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    process = start(cache, *new_run(run))
    wait_for(run / "teacher" / "teacher.json", process)
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"Go on with: ctkd train --resume {run}" in errors.splitlines()[-1]
    finish(cache, run)
    same_result(run, reference[0])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, reference: tuple[Path, float]) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference[0], run)
    for name in ("network.safetensors", "summary.json"):
        (run / name).unlink()
    current = run / "student" / checkpoint.CURRENT
    damaged = bytearray(current.read_bytes())
    damaged[-20] ^= 0xFF
    current.write_bytes(damaged)
    process = start(tmp_path / "cache", "--resume", str(run))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "does not match its checksum" in errors
    assert "going on from the checkpoint before it" in errors
    same_result(run, reference[0])


def test_both_checkpoints_damaged_is_one_clear_error(tmp_path: Path, reference: tuple[Path, float]) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference[0], run)
    for name in ("network.safetensors", "summary.json"):
        (run / name).unlink()
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (run / "student" / name).write_bytes(b"rubbish")
    process = start(tmp_path / "cache", "--resume", str(run))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert str(run / "student" / checkpoint.CURRENT) in errors


@pytest.mark.parametrize("extra", [[], ["--no-certify"]])
def test_a_finished_run_resumes_to_itself(tmp_path: Path, reference: tuple[Path, float], extra: list[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = start(tmp_path / "cache", "--resume", str(run), *extra)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"} == {
        path: content for path, content in before.items() if path.name != "lock"
    }


def test_what_a_kill_leaves_behind_is_tidied(tmp_path: Path, reference: tuple[Path, float]) -> None:
    """Temporary files, a missing sub-folder, and a kill between the two renames of a checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(reference[0], run)
    for name in ("network.safetensors", "summary.json"):
        (run / name).unlink()
    (run / "student" / ".x.1.tmp").write_text("half")
    (run / "student" / checkpoint.CURRENT).rename(run / "student" / checkpoint.NEXT)
    finish(tmp_path / "cache", run)
    assert not list(run.rglob(".*.tmp"))
    same_result(run, reference[0])


def test_a_run_in_use_is_refused(tmp_path: Path, reference: tuple[Path, float]) -> None:
    from ctkd.runfolder import RunFolder

    run = tmp_path / "run"
    shutil.copytree(reference[0], run)
    with RunFolder.open(run).lock():
        process = start(tmp_path / "cache", "--resume", str(run))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.strip() == f"error: {run} is in use by another ctkd process"
