# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several teachers, and several networks as one teacher."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.config import dump, resolve
from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.progress import Silent
from ctkd.propagate import Network
from ctkd.run import resume, train
from ctkd.runfolder import RunFolder
from ctkd.storage import write_tensors
from ctkd.teaching import Teacher

from .conftest import SHORT

Make = Callable[..., Any]
Check = Callable[..., None]
PAIR = {
    **SHORT,
    "teacher.name": "pgd",
    "teacher.epochs": 3,
    "teacher.lr": 5e-3,
    "teacher.steps": 1,
    "teacher.2.name": "natural",
    "teacher.2.epochs": 2,
    "teacher.2.lr": 5e-3,
    "bound.name": "mtl-ibp",
}


class Answers:
    """Stands for a classifier."""

    input_shape, classes = (1, 8, 8), 10


# Configuration -------------------------------------------------------------------------------------------


def test_two_tables_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "[[teacher]]\nname = 'pgd'\nsteps = 3\n[[teacher]]\nname = 'natural'\nepochs = 4\n[distill]\nname='none'"
    )
    config = resolve({"teacher.2.lr": 0.5}, file)
    assert [choice.name for choice in config.teachers] == ["pgd", "natural"]
    first, second = config.tables()["teacher"]
    assert (first["steps"], second["epochs"], second["lr"]) == (3, 4, 0.5)
    again = tmp_path / "again.toml"
    again.write_text(dump(config))
    assert resolve({}, again).tables() == config.tables()
    assert tomllib.loads(dump(config, sources=True)) == config.tables()


def test_print_config_shows_both_with_their_sources(train_command: Make) -> None:
    code, out, _ = train_command(PAIR, "--print-config")
    assert code == 0
    assert out.count("[[teacher]]") == 2
    lines = [line for line in out.splitlines() if line.startswith("epochs = ")]
    assert [line.split("#")[0].strip() for line in lines[:2]] == ["epochs = 3", "epochs = 2"]
    assert all(line.endswith("# command line") for line in lines[:2])
    assert [table["name"] for table in tomllib.loads(out)["teacher"]] == ["pgd", "natural"]


def test_shipped_defaults_reach_the_second_teacher() -> None:
    config = resolve({"teacher.2.name": "natural", "distill.name": "none"})
    assert [choice.table()["epochs"] for choice in config.teachers] == [20, 20]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"teacher.3.name": "pgd"}, "teacher.3: there is no teacher.2; number further teachers 2, 3, ... without gaps"),
        ({"teacher.999999999999.name": "pgd"}, "teacher.999999999999: there is no teacher.2"),
        ({"teacher.2.epochs": 3}, "teacher.2.name must be given"),
        ({"teacher.2.name": "ntural"}, "teacher.2 'ntural' is not known: did you mean 'natural'?"),
        (
            {"teacher.2.name": "natural", "teacher.2.epoch": 3},
            "teacher.2.epoch is not an option: did you mean 'epochs'?",
        ),
        ({"teacher.2.name": "none"}, "teacher.name=none stands beside another teacher; leave it out"),
        ({"teacher.2.name": "natural", "distill.name": "features"}, "learns from 1 teacher, found 2"),
    ],
)
def test_mistakes_in_a_second_teacher(settings: dict[str, Any], part: str, refused: Check) -> None:
    refused({"teacher.name": "pgd", **settings}, part)


@pytest.mark.parametrize("name", ["teacher.2", "teacher.x", "data.x"])
def test_quoted_names_of_tables(name: str, tmp_path: Path, refused: Check) -> None:
    (tmp_path / "c.toml").write_text(f"['{name}']\nname = 'pgd'\n")
    part = f"no section '{name}'; several teachers are written as [[teacher]] tables"
    refused({"teacher.name": "pgd"}, part, "--config", str(tmp_path / "c.toml"))


# A run with two ------------------------------------------------------------------------------------------


class Stops(Silent):
    """Sends a signal after some steps of one network's training."""

    def __init__(self, phase: str, steps: int) -> None:
        self.wanted, self.left, self.phase = phase, steps, ""

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        self.phase = phase

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= self.phase == self.wanted
        if self.left == 0:
            self.left = -1
            os.kill(os.getpid(), signal.SIGINT)

    def warn(self, message: str) -> None: ...


def networks(folder: RunFolder) -> list[tuple[str, int]]:
    return [(row["network"], row["epoch"]) for row in folder.read_metrics()]


def test_a_run_with_two_teachers_and_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "first"))
    folder, summary = train(settings=PAIR, out=tmp_path / "whole", certify=False)
    assert (summary["teacher"]["name"], [t["name"] for t in summary["further_teachers"]]) == ("pgd", ["natural"])
    assert networks(folder) == [
        *(("teacher", e) for e in (1, 2, 3)),
        ("teacher-2", 1),
        ("teacher-2", 2),
        ("student", 1),
    ]
    for label, facts in (("teacher", summary["teacher"]), ("teacher-2", summary["further_teachers"][0])):
        record = json.loads((folder.path / label / "teacher.json").read_text())
        assert record["stored"] == {
            "files": ["network.safetensors"],
            "average": "probabilities",
            "probabilities": [False],
        }
        assert {key: value for key, value in record.items() if key != "stored"} == facts
        assert Network.load(folder.path / label / "network.safetensors").sha256() == facts["sha256"]
    from ctkd.cli.common import results_table

    results_table(summary)
    out = capsys.readouterr().out
    assert "teacher pgd" in out
    assert "teacher natural" in out

    for phase in ("teacher", "teacher-2", "student"):
        monkeypatch.setenv("CTKD_CACHE", str(tmp_path / phase))
        path = tmp_path / f"stopped in {phase}"
        with pytest.raises(Interrupted):
            train(settings=PAIR, out=path, certify=False, reporter=Stops(f"training the {phase}", 3))
        assert [t["name"] for t in tomllib.loads((path / "config.toml").read_text())["teacher"]] == ["pgd", "natural"]
        again, resumed = resume(path, certify=False)
        assert networks(again) == networks(folder)
        for key in ("teacher", "further_teachers", "student_sha256"):
            assert resumed[key] == summary[key]


# Refusals ------------------------------------------------------------------------------------------------


def test_a_bad_second_teacher_is_refused_before_the_first_is_trained(
    tmp_path: Path, refused: Check, monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    monkeypatch.setattr("ctkd.session.Session.train", lambda *rest: pytest.fail("trained before all was checked"))
    absent = {"teacher.2.name": "file", "teacher.2.path": tmp_path / "absent.pt"}
    refused({"teacher.name": "pgd", **absent}, "absent.pt cannot be read")
    # Nor is a good one stored before: the folder would look like one with trained networks.
    refused({"teacher.path": good, **absent}, "absent.pt cannot be read")
    torch.manual_seed(0)
    from ctkd.plugins import create_from
    from ctkd.train.finish import finalise

    finalise(create_from("model", {"name": "mlp"}).build((1, 8, 8), 10), (1, 8, 8)).save(
        tmp_path / "random.safetensors"
    )
    settings = {"teacher.path": good, "teacher.2.name": "file", "teacher.2.path": tmp_path / "random.safetensors"}
    refused(settings, "teacher 'file' is at chance level")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"path": "t.onnx"}, "/t.onnx: an ONNX file is read by --teacher onnx"),
        ({"mean": 0.1, "std": 0.3}, " is a network of ctkd: leave out teacher.2.names, mean and std"),
        ({"path": "state.safetensors"}, "/state.safetensors: the weights are for another architecture"),
        (
            {"path": "state.safetensors", "names": "expressive-losses", "mean": 0, "std": 1, "model": "mlp"},
            "/state.safetensors: the weights are for another architecture: layer 1 is",
        ),
        (
            {"path": "state.safetensors", "names": "ctbench"},
            "/state.safetensors: names = ctbench expects a normalisation first",
        ),
    ],
)
def test_a_second_teacher_is_named(
    options: dict[str, Any], part: str, refused: Check, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tensors(tmp_path / "state.safetensors", {"0.weight": torch.rand(3, 3)})
    settings = {"teacher.path": good, "teacher.2.name": "file", "teacher.2.path": good}
    line = f"teacher.2.path={tmp_path if 'path' in options else good}{part}"
    refused({**settings, **{f"teacher.2.{key}": value for key, value in options.items()}}, line)


def test_outputs_of_a_second_teacher(refused: Check, good: Path) -> None:
    settings = {"teacher.path": good, "teacher.2.name": "file", "teacher.2.path": good}
    refused({**settings, "teacher.2.outputs": "probabilities"}, "set teacher.2.outputs=logits")


def test_damaged_records_are_one_line(ctkd_command: Make, train_command: Make, tmp_path: Path, good: Path) -> None:
    assert train_command({"teacher.path": good})[0] == 0
    run = tmp_path / "run"
    record = json.loads((run / "teacher" / "teacher.json").read_text())
    (run / "summary.json").unlink()
    del record["stored"]
    (run / "teacher" / "teacher.json").write_text(json.dumps(record))
    code, out, err = ctkd_command("train", "--resume", str(run), "--no-certify")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: {run / 'teacher' / 'teacher.json'} is damaged, or was written by an older ctkd: 'stored' is missing"
    ]


# Sources of other people ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "part"),
    [(None, "returned no teacher"), ("text", "returned a str, neither a Network nor a Teacher")],
)
def test_a_source_that_returns_something_else(
    answer: Any, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    from ctkd.teachers.file import FileTeacher

    monkeypatch.setattr(FileTeacher, "obtain", lambda self, context: answer)
    with pytest.raises(RunFailed, match=part):
        train(settings={**SHORT, "teacher.path": str(good)}, out=tmp_path / "run")


def test_what_a_teacher_needs() -> None:
    with pytest.raises(ValueError, match="at least one network"):
        Teacher(())
    with pytest.raises(ValueError, match=r"probabilities = \(True,\) must say for each of 2 members what it returns"):
        Teacher((Answers(), Answers()), probabilities=(True,))  # type: ignore[arg-type]


def test_options_in_python_are_checked_as_on_the_command_line(tmp_path: Path) -> None:
    settings: Mapping[str, Any] = {**SHORT, "teacher.name": "ensemble", "teacher.members": [{"name": "pgd"}]}
    with pytest.raises(BadInput, match=r"teacher\.members=\[{'name': 'pgd', .*}\]: Tuple should have at least 2 items"):
        train(settings=settings, out=tmp_path / "run")
