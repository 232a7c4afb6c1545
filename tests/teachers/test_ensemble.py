# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several networks as one teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from ctkd.api import Data
from ctkd.config import dump, resolve
from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.export import to_onnx
from ctkd.propagate import Network
from ctkd.run import resume, train
from ctkd.storage import cache_folder
from ctkd.teaching import Teacher

from .conftest import SHORT, Surroundings
from .test_several import Answers, Stops, networks

Make = Callable[..., Any]
Check = Callable[..., None]


@pytest.fixture
def members(digits: Data, tmp_path: Path, good: Path, quick_run: tuple[Path, Any]) -> list[dict[str, Any]]:
    """A network file, a run folder and an ONNX file."""
    onnx.save(to_onnx(Network.load(good)), tmp_path / "third.onnx")
    return [
        {"name": "file", "path": str(good)},
        {"name": "file", "path": str(quick_run[0])},
        {"name": "onnx", "path": str(tmp_path / "third.onnx")},
    ]


@pytest.fixture
def softmax(good: Path, tmp_path: Path) -> Path:
    """An ONNX file that returns probabilities."""
    model = to_onnx(Network.load(good))
    output = model.graph.output[0]
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["p"], axis=1))
    output.name = "p"
    onnx.save(model, tmp_path / "softmax.onnx")
    return tmp_path / "softmax.onnx"


def test_the_mean_by_hand(
    members: list[dict[str, Any]], obtain: Make, quick_run: tuple[Path, Any], digits: Data
) -> None:
    x = digits.validation.images[:30]
    files = (members[0]["path"], quick_run[0] / "network.safetensors", members[0]["path"])
    logits = torch.stack([Network.load(Path(path))(x) for path in files])
    teacher = obtain("ensemble", members=members)
    torch.testing.assert_close(teacher(x).softmax(1), logits.softmax(2).mean(0), rtol=1e-3, atol=1e-4)
    mean = obtain("ensemble", members=members, average="logits")
    torch.testing.assert_close(mean(x), logits.mean(0), rtol=1e-3, atol=1e-3)
    assert teacher.outputs(x).features is None
    assert not teacher.differentiable
    assert obtain("ensemble", members=members[:2]).differentiable
    assert len({teacher.sha256(), mean.sha256(), obtain("ensemble", members=members[:2]).sha256()}) == 3


def test_each_member_says_what_it_returns(
    members: list[dict[str, Any]], softmax: Path, obtain: Make, good: Path, digits: Data, tmp_path: Path
) -> None:
    x = digits.validation.images[:30]
    first = {"name": "onnx", "path": str(softmax), "outputs": "probabilities"}
    teacher = obtain("ensemble", members=[first, members[1]])
    both = torch.stack([Network.load(good)(x), Network.load(Path(members[1]["path"]) / "network.safetensors")(x)])
    torch.testing.assert_close(teacher(x).softmax(1), both.softmax(2).mean(0), rtol=1e-3, atol=1e-4)
    assert teacher.probabilities == (True, False)
    stored = teacher.save(tmp_path)
    again = Teacher.load(tmp_path, json.loads(json.dumps(stored)), (1, 8, 8))
    assert (again.probabilities, again.sha256()) == (teacher.probabilities, teacher.sha256())
    assert torch.equal(again(x), teacher(x))
    assert Teacher(teacher.members, "probabilities", (False, True)).sha256() != teacher.sha256()
    line = "member 2 of the ensemble: teacher 'onnx' returns probabilities .* set teacher.members.outputs=probabilities"
    with pytest.raises(BadInput, match=line):
        obtain("ensemble", members=[members[1], {"name": "onnx", "path": str(softmax)}])


def test_a_run_with_an_ensemble_of_files(
    members: list[dict[str, Any]], train_command: Make, ctkd_command: Make, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    tables = "".join(f"[[teacher.members]]\nname = '{m['name']}'\npath = '{m['path']}'\n" for m in members)
    config.write_text("[teacher]\nname = 'ensemble'\n" + tables)
    settings = {"teacher.name": "ensemble", "bound.name": "mtl-ibp", "distill.name": "logits"}
    code, out, err = train_command(settings, "--json", "--config", str(config))
    assert code == 0, err
    summary = json.loads(out)
    stored = sorted(path.name for path in (tmp_path / "run" / "teacher").iterdir())
    assert stored == ["network-1.safetensors", "network-2.safetensors", "network-3.onnx", "teacher.json"]
    for name in ("summary.json", "network.safetensors"):
        (tmp_path / "run" / name).unlink()
    code, out, err = ctkd_command("train", "--resume", str(tmp_path / "run"), "--no-certify", "--json")
    assert code == 0, err
    assert json.loads(out)["teacher"] == summary["teacher"]


def test_an_ensemble_trained_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = {"name": "pgd", "epochs": 3, "lr": 5e-3, "steps": 1}
    settings = {**SHORT, "teacher.name": "ensemble", "teacher.members": [member, member]}
    settings |= {"bound.name": "mtl-ibp", "distill.name": "logits"}
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "a"))
    folder, summary = train(settings=settings, out=tmp_path / "whole", certify=False)
    names = ["teacher"] * 3 + ["teacher/member-2"] * 3 + ["student"]
    assert [row["network"] for row in folder.read_metrics()] == names
    assert summary["teacher"]["adversarial_accuracy"] is not None
    assert len(list((cache_folder() / "teachers").iterdir())) == 2
    # Interrupted in the second member, and resumed.
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "b"))
    reporter = Stops("training the teacher/member-2", 4)
    with pytest.raises(Interrupted):
        train(settings=settings, out=tmp_path / "stopped", certify=False, reporter=reporter)
    again, resumed = resume(tmp_path / "stopped", certify=False)
    assert networks(again) == networks(folder)
    assert (resumed["teacher"], resumed["student_sha256"]) == (summary["teacher"], summary["student_sha256"])


def test_equal_members_differ_in_their_seed_only(obtain: Make, digits: Data) -> None:
    surroundings = Surroundings(digits)  # of seed 5
    trades = {"name": "trades", "epochs": 7, "keep": "best-adversarial"}
    teacher = obtain("ensemble", surroundings, members=[trades, {"name": "mart", "seed": 70}, trades, trades])
    assert [train.seed for train, *_ in surroundings.asked] == [5, 70, 6, 7]
    assert [(train.epochs, train.keep) for train, *_ in surroundings.asked][::2] == [(7, "best-adversarial")] * 2
    assert [bound["name"] for _, _, bound, _ in surroundings.asked] == ["trades", "mart", "trades", "trades"]
    assert len({member.sha256() for member in teacher.members}) == 4


def test_members_that_are_not_trained_are_read_first(
    members: list[dict[str, Any]], obtain: Make, digits: Data, tmp_path: Path, good: Path
) -> None:
    surroundings = Surroundings(digits)
    with pytest.raises(BadInput, match=r"^member 2 of the ensemble: .*absent.* cannot be read"):
        obtain("ensemble", surroundings, members=[{"name": "pgd"}, {"name": "file", "path": str(tmp_path / "absent")}])
    assert surroundings.asked == []
    teacher = obtain("ensemble", surroundings, members=[{"name": "pgd"}, members[0]])
    assert teacher.members[1].sha256() == Network.load(good).sha256()


@pytest.mark.parametrize("several", [False, True])
def test_the_resolved_members_have_all_options(several: bool, tmp_path: Path) -> None:
    """So the stored configuration says what was trained, whatever defaults later versions have."""
    role = "teacher.2" if several else "teacher"
    members = [{"name": "pgd"}, {"name": "natural", "seed": 3, "epochs": 7}]
    flags = {f"{role}.name": "ensemble", f"{role}.members": members, "distill.name": "none"}
    config = resolve(flags)
    found = config.tables()["teacher"]
    first, second = (found[1] if several else found)["members"]
    # What ctkd ships for this data set and radius reaches members, and what was set beats it.
    assert (first["name"], first["epochs"], first["batch_size"], first["seed"]) == ("pgd", 20, 64, "none")
    assert (second["name"], second["epochs"], second["batch_size"], second["seed"]) == ("natural", 7, 64, 3)
    assert (first["steps"], second["keep"]) == (5, "last")
    elsewhere = resolve({**flags, "train.eps": 0.05}).teachers[-1].table()["members"]
    assert [member["epochs"] for member in elsewhere] == [15, 7]
    file = tmp_path / "c.toml"
    for text in (dump(config), dump(config, sources=True)):
        file.write_text(text)
        assert resolve({}, file).tables() == config.tables()


@pytest.mark.parametrize(
    ("members", "part"),
    [
        (None, "teacher.members must be given"),
        ("[{name='pgd'}, {name='mart'}, 3]", "teacher.members.2=3: must be a valid dictionary"),
        ("[{name='pgd'}]", "should have at least 2 items"),
        (
            "[{name='pgd'}, {seed=3}]",
            "member 2 has name = None, which must be a source of one teacher: accepted",
        ),
        (
            "[{name='natral'}, {name='pgd'}]",
            "member 1 has name = 'natral', which must be a source of one teacher: did ",
        ),
        ("[{name='ensemble'}, {name='pgd'}]", "member 1 has name = 'ensemble', which must be a source of one teacher"),
        ("[{name='pgd'}, {name='natural', steps=3}]", "member 2: natural.steps is not an option"),
        ("[{name='pgd'}, {name='pgd', patience=3}]", "member 2: pgd: patience = 3 needs keep = best-adversarial"),
        ("[{name='pgd', seed=1}, {name='pgd', seed=1}]", "member 2 is the same as an earlier one (pgd with equal"),
        ("[{name='file', path='a'}, {name='file', path='a'}]", "member 2 is the same as an earlier one (file with"),
        ("[{name='file', path='absent'}, {name='file', path='b'}]", "member 1 of the ensemble: "),
        ("[{name='pgd'}, {name='file', path='.'}]", "member 2 of the ensemble: "),
    ],
)
def test_ensembles_that_cannot_be(
    members: str | None, part: str, refused: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused({"teacher.name": "ensemble"} | ({} if members is None else {"teacher.members": members}), part)


@pytest.mark.parametrize("answer", [None, Teacher((Answers(), Answers()))])  # type: ignore[arg-type]
def test_a_member_is_one_network(answer: Any, monkeypatch: pytest.MonkeyPatch, obtain: Make) -> None:
    from ctkd.teachers.natural import NaturalTeacher

    monkeypatch.setattr(NaturalTeacher, "obtain", lambda self, context: answer)
    with pytest.raises(RunFailed, match="member 1 of the ensemble, teacher 'natural', is not one network"):
        obtain("ensemble", members=[{"name": "natural"}, {"name": "natural"}])


def test_features_of_an_ensemble_are_refused_before_training(refused: Check) -> None:
    settings = {"teacher.name": "ensemble", "teacher.members": "[{name='pgd'}, {name='pgd'}]"}
    settings |= {"distill.name": "features"}
    refused(settings, "distill.name=features reads the teacher's features, and teacher 'ensemble' gives logits only")
