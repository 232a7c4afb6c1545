# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The event files, read back: they hold what ``metrics.jsonl`` and ``summary.json`` hold, whatever happened between."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctkd_tensorboard
import pytest
from ctkd_tensorboard.mirror import MIRROR
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from ctkd.testing import conformance

QUICK = {
    "bound.name": "ibp",
    "train.epochs": 3,
    "train.warmup": 0.25,
    "train.ramp": 1.0,
    "train.threads": 1,
    "attack.steps": 2,
    "certify.samples": 20,
    "certify.attack_steps": 5,
    "certify.attack_restarts": 1,
    "export.samples": 2,
}
TEACHER = {"teacher.epochs": 2, "teacher.steps": 2, "teacher.lr": 5e-3}

test_conformance = conformance("logger", "tensorboard")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    MIRROR.close()


def read(folder: Path) -> list[Event]:
    """All records of the event files of one folder, in TensorBoard's order. A record cut short is not one."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 16 + length > len(data):
                break
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return events


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    """Tag and value by step; every step is there once."""
    found: dict[int, dict[str, float]] = {}
    for event in read(folder):
        values = {v.tag: v.simple_value for v in event.summary.value if v.HasField("simple_value")}
        if values:
            assert event.step not in found, f"step {event.step} is there twice"
            found[event.step] = values
    return found


def recorded(run: Path) -> dict[str, dict[int, float]]:
    """The total loss by network and epoch, from ``metrics.jsonl``."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(line["network"], {})[line["epoch"]] = line["losses"]["loss"]
    return found


def logged(run: Path) -> dict[str, dict[int, float]]:
    """The same from the event files."""
    found = {}
    for path in sorted((run / "tensorboard").rglob("events.out.tfevents.*")):
        network = path.parent.relative_to(run / "tensorboard").as_posix()
        if network != "final":
            found[network] = {step: values["losses/loss"] for step, values in scalars(path.parent).items()}
    return found


def agree(run: Path) -> None:
    one, other = recorded(run), logged(run)
    assert other == {network: pytest.approx(epochs, rel=1e-6) for network, epochs in one.items()}


# Hooks called by hand ------------------------------------------------------------------------------------


class Run:
    """A run folder whose lines are written by hand."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.folder: Any = SimpleNamespace(path=path)
        self.lines: list[dict[str, Any]] = []

    def start(self) -> None:
        ctkd_tensorboard.ctkd_run_started(folder=self.folder)

    def epoch(self, number: int, network: str = "student", value: float = 0.0) -> None:
        line = {"network": network, "epoch": number, "eps": 0.1, "losses": {"loss": value or number / 4}}
        self.lines.append(line)
        self.store()
        ctkd_tensorboard.ctkd_epoch_finished(folder=self.folder, network=network, metrics=line)

    def forget(self, network: str, done: int) -> None:
        self.lines = [line for line in self.lines if line["network"] != network or line["epoch"] <= done]
        self.store()

    def store(self, end: str = "") -> None:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (self.path / "metrics.jsonl").write_text(text + end)


def test_an_epoch_is_on_disk_when_the_hook_returns(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start()
    for number in (1, 2, 3):
        run.epoch(number)
        agree(run.path)
    assert len(list((tmp_path / "tensorboard" / "student").iterdir())) == 1
    assert scalars(tmp_path / "tensorboard" / "student")[3] == pytest.approx({"eps": 0.1, "losses/loss": 0.75})


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_epochs_that_a_resume_repeats_are_replaced(tmp_path: Path, same_process: bool, done: int) -> None:
    run = Run(tmp_path)
    run.start()
    for number in (1, 2, 3):
        run.epoch(number, "teacher")
    for number in (1, 2, 3):
        run.epoch(number, value=10.0 + number)
    if not same_process:
        MIRROR.close()
    run.start()
    run.forget("student", done)
    for number in range(done + 1, 5):
        run.epoch(number, value=20.0 + number)
        agree(run.path)
    values = logged(run.path)["student"]
    assert values == {n: (10.0 if n <= done else 20.0) + n for n in (1, 2, 3, 4)}


def test_a_run_without_a_start_is_made_whole(tmp_path: Path) -> None:
    """The plugin was installed, or switched on again, in the middle of a run."""
    run = Run(tmp_path)
    run.lines = [{"network": n, "epoch": e, "losses": {"loss": 0.5}} for n in ("teacher", "student") for e in (1, 2)]
    run.store(end='{"network": "student", "epo')  # cut short by a kill
    run.start()
    assert logged(run.path) == {"teacher": {1: 0.5, 2: 0.5}, "student": {1: 0.5, 2: 0.5}}
    run.epoch(3)
    agree(run.path)


def test_runs_take_turns_in_one_process(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        run.start()
    for number in (1, 2, 3):
        for i, run in enumerate(runs):
            run.epoch(number, "teacher", value=i + 1)
            run.epoch(number, "teacher/member-2", value=i + 2)
    for run in runs:
        agree(run.path)
        sizes = [path.stat().st_size for path in (run.path / "tensorboard" / "teacher").glob("events*")]
        assert len(sizes) == 2  # the file before was emptied, those before it are gone
        assert min(sizes) == 0


def test_a_kill_in_the_middle_of_a_record_costs_that_record(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start()
    for number in (1, 2):
        run.epoch(number)
    (path,) = (tmp_path / "tensorboard" / "student").iterdir()
    whole = path.read_bytes()
    MIRROR.close()
    path.write_bytes(whole[:-5])
    assert set(logged(run.path)["student"]) == {1}
    run.start()
    agree(run.path)


def test_the_old_file_stays_until_the_new_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.start()
    run.epoch(1)
    MIRROR.close()
    (before,) = (tmp_path / "tensorboard" / "student").iterdir()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ctkd_tensorboard.events.EventFile.add", full)
    with pytest.raises(OSError, match="disk full"):
        run.start()
    assert before.stat().st_size


def test_a_new_file_begins_with_a_mark_to_forget_older_records(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.epoch(1)
    version, mark, first = read(tmp_path / "tensorboard" / "student")
    assert version.file_version == "brain.Event:2"
    assert (mark.step, mark.session_log.status) == (0, mark.session_log.START)
    assert first.step == 1


# Real runs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    from ctkd.run import train

    place = tmp_path_factory.mktemp("real")
    threads = threading.active_count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTKD_CACHE", str(place / "cache"))
        folder, summary = train(settings={**QUICK, **TEACHER}, out=place / "run")
    assert threading.active_count() == threads
    return folder.path, summary


def test_a_real_run_is_mirrored(finished: tuple[Path, dict[str, Any]]) -> None:
    run, _ = finished
    agree(run)
    assert set(logged(run)) == {"teacher", "student"}
    last = scalars(run / "tensorboard" / "student")[3]
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation/natural_accuracy"] == pytest.approx(line["validation"]["natural_accuracy"])
    assert last["eps"] == pytest.approx(line["eps"])
    assert not {"epoch", "network", "phase", "validation_seen_in_training"} & last.keys()


def test_final_figures_and_options(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    values = {
        v.tag: v.simple_value
        for event in read(run / "tensorboard" / "final")
        for v in event.summary.value
        if v.HasField("simple_value")
    }
    for name in ("natural_accuracy", "adversarial_accuracy", "certified_accuracy"):
        assert values[f"final/{name}"] == pytest.approx(summary[name])
    assert values["teacher/natural_accuracy"] == pytest.approx(summary["teacher"]["natural_accuracy"])
    assert values["eps"] == pytest.approx(summary["eps"])
    told = {
        v.tag: HParamsPluginData.FromString(v.metadata.plugin_data.content)
        for event in read(run / "tensorboard" / "final")
        for v in event.summary.value
        if v.metadata.plugin_data.plugin_name == "hparams"
    }
    options = told["_hparams_/session_start_info"].session_start_info.hparams
    assert options["bound.name"].string_value == "ibp"
    assert options["train.epochs"].number_value == 3
    names = {info.name.tag for info in told["_hparams_/experiment"].experiment.metric_infos}
    assert names == {f"final/{n}" for n in ("natural_accuracy", "adversarial_accuracy", "certified_accuracy")}


def test_figures_that_were_not_made_are_absent(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[[teacher]]\nname = "pgd"\n[[teacher]]\nname = "mart"\n')
    folder: Any = SimpleNamespace(path=tmp_path)
    summary = {"natural_accuracy": 0.5, "certified_accuracy": None, "further_teachers": [{"natural_accuracy": 0.25}]}
    ctkd_tensorboard.ctkd_run_finished(folder=folder, summary=summary)
    values = [
        (v.tag, v.simple_value)
        for event in read(tmp_path / "tensorboard" / "final")
        for v in event.summary.value
        if v.HasField("simple_value")
    ]
    assert values == [("final/natural_accuracy", 0.5), ("teacher-2/natural_accuracy", 0.25)]


def test_a_killed_and_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    from ctkd.run import resume

    run = tmp_path / "run"
    values = {**QUICK, "teacher.name": "none", "train.epochs": 20}
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ctkd", "train", "--out", str(run), *sets],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(logged(run).get("student", {})) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = logged(run)["student"]
    assert 2 <= len(done) < 20
    resume(run)
    agree(run)
    again = logged(run)["student"]
    assert set(again) == set(range(1, 21))
    assert {n: again[n] for n in done} == done  # a resumed run repeats itself bit for bit
    assert (run / "tensorboard" / "final").is_dir()
