# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Two processes against one: the same step, the same run, the same certificates; and how they end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ctkd.distributed import (
    batch_mean,
    from_leader,
    gathered,
    greatest,
    launched,
    leads,
    reports,
    share,
    together,
    whole,
)
from ctkd.errors import Elsewhere, RunFailed
from ctkd.run import certify, train
from ctkd.storage import read_tensors

from .launch import ends, start, torchrun

SETTINGS: dict[str, Any] = {
    "bound.name": "exp-ibp",
    "distill.name": "features",
    # A bias in front of batch norm has no gradient but rounding, of which Adam makes full steps.
    "model.batch_norm": False,
    "model.channels": 4,
    "model.hidden": 16,
    "teacher.epochs": 5,
    "teacher.lr": 0.01,
    "teacher.batch_size": 201,
    "teacher.steps": 1,
    "train.epochs": 3,
    "train.warmup": 0.5,
    "train.ramp": 1.5,
    "train.batch_size": 251,  # slices of 125 and 126
    "train.threads": 1,
    "train.checkpoint_seconds": 0.05,
    "train.lr": 2e-3,
    "attack.steps": 2,
    "certify.samples": 45,
    "certify.batch_size": 10,
    "certify.attack_steps": 5,
    "certify.attack_restarts": 1,
    "export.samples": 2,
}


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value).strip(chr(34))}")]


def rows(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "certification.sqlite") as connection:
        return connection.execute(
            "SELECT sample, label, prediction, status, stage, lower_margin, attack_margin FROM samples ORDER BY sample"
        ).fetchall()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for(path: Path, processes: list[subprocess.Popen[str]]) -> None:
    while not path.exists() and all(process.poll() is None for process in processes):
        time.sleep(0.01)


def test_steps_on_slices_are_a_step_on_the_batch() -> None:
    """In float64, to 1e-10: losses, gradients, norms of every term, running statistics; see ``arithmetic.py``."""
    for code, _, err in ends(start("tests.distributed.arithmetic")):
        assert code == 0, err


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder, _ = train(settings=SETTINGS, out=tmp_path_factory.mktemp("one") / "run")
    return folder.path


def test_a_run_of_two_processes_stopped_and_resumed_is_that_of_one(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    processes = start("ctkd", "train", *flags(SETTINGS), "--out", out)
    wait_for(out / "student" / "checkpoint.safetensors", processes)
    processes[1].send_signal(signal.SIGINT)
    ended = ends(processes)
    assert [code for code, _, _ in ended] == [130, 130], ended
    assert "".join(err for _, _, err in ended).count("error: interrupted after step ") == 1
    assert not (out / "network.safetensors").exists()

    resumed = torchrun("-m", "ctkd", "train", "--resume", out, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("certifying at eps=0.1") == 1
    summary, expected = json.loads(resumed.stdout), json.loads((alone / "summary.json").read_text())
    for key in ("certified_accuracy", "natural_accuracy", "adversarial_accuracy", "counts", "stages", "samples"):
        assert summary[key] == expected[key]
    assert summary["teacher"]["adversarial_accuracy"] == expected["teacher"]["adversarial_accuracy"]

    # Float32, 15 steps and the teacher's 30: rounding, and what Adam makes of small gradients.
    weights, (others, _) = read_tensors(out / "network.safetensors")[0], read_tensors(alone / "network.safetensors")
    for name, weight in weights.items():
        assert float((weight - others[name]).abs().max()) < 2e-3, name
    assert [row[:5] for row in rows(out)] == [row[:5] for row in rows(alone)]
    found, wanted = metrics(out), metrics(alone)
    assert [(row["network"], row["epoch"]) for row in found] == [(row["network"], row["epoch"]) for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3, abs=1e-5)
        assert one["gradient_norms"] == pytest.approx(other["gradient_norms"], rel=2e-2, abs=1e-5)
        assert one["validation"]["natural_accuracy"] == pytest.approx(other["validation"]["natural_accuracy"], abs=0.01)
    assert json.loads((out / "environment.json").read_text())["processes"] in (1, 2)
    assert (out / "export" / "instances.csv").exists()


def test_certification_spreads_and_finds_the_same_rows(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "run")
    certify(tmp_path / "run", eps=0.02, settings={"certify.samples": 3, "certify.start": 14})  # is not done again
    spread = torchrun("-m", "ctkd", "certify", tmp_path / "run", "--eps", "0.02", "--json")
    assert spread.returncode == 0, spread.stderr
    shutil.copytree(alone, tmp_path / "other")
    expected = certify(tmp_path / "other", eps=0.02)
    assert json.loads(spread.stdout)["counts"] == expected["counts"]
    for one, other in zip(rows(tmp_path / "run"), rows(tmp_path / "other"), strict=True):
        assert one[:5] == other[:5]
        assert one[5:] == pytest.approx(other[5:], abs=1e-5)


def test_one_process_that_fails_ends_all_and_reports_once(tmp_path: Path) -> None:
    quick = {key: value for key, value in SETTINGS.items() if not key.startswith(("bound", "teacher", "distill"))}
    arguments = [*flags({**quick, "teacher.name": "none"}), "--out", tmp_path / "run"]
    began = time.monotonic()
    ended = ends(start("tests.distributed.failing", "train", *arguments))
    assert time.monotonic() - began < 300
    assert [code for code, _, _ in ended] == [1, 1], ended
    (line,) = [line for _, _, err in ended for line in err.splitlines() if "error" in line]
    assert line.startswith("error: bound 'fails-in-one' of a test: the run stopped with ValueError: only here")
    assert (tmp_path / "run" / "student" / "checkpoint.safetensors").exists()


def test_one_process_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert (launched(), leads(), share(7), whole(7), greatest(1, 2)) == ((0, 1), True, slice(0, 7), 7, [1, 2])
    assert (gathered("x"), from_leader(lambda: 3)) == (["x"], 3)
    values = torch.rand(5, 3)
    assert torch.equal(batch_mean(values), values.mean())
    assert torch.equal(batch_mean(values, 0), values.mean(0))
    with together():
        assert os.environ.get("WORLD_SIZE") is None
    assert reports(RunFailed("x"))
    assert not reports(Elsewhere(1))
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert not reports(RunFailed("x"))  # before the processes have met, process 0 speaks
