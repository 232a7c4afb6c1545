# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Sweeps: with a stand-in for training, whose figures are known, and with real ones."""

from __future__ import annotations

import json
import shutil
import sqlite3
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.progress import Silent
from ctkd.run import FRONT
from ctkd.sweep.command import begin, go_on
from ctkd.sweep.study import Definition
from tests.conftest import QUICK

Command = Callable[..., tuple[int, str, str]]
ALPHA = "bound.alpha=0:1"
PLAIN = {"bound.name": "cc-ibp", "teacher.name": "none"}


class Stand:
    """Stands for training: natural accuracy falls with alpha, certified rises, a seed adds a hundredth."""

    def __init__(self, stop_at: int | None = None, fail: Callable[[float], bool] = lambda alpha: False) -> None:
        self.calls: list[tuple[float, int]] = []
        self.places: list[Path] = []
        self.stop_at, self.fail = stop_at, fail

    def __call__(self, settings: Mapping[str, Any], base: Path, place: Path) -> Mapping[str, Any]:
        if len(self.calls) == self.stop_at:
            raise Interrupted("stopped", 15)
        alpha, seed = settings["bound.alpha"], settings["train.seed"]
        assert settings["certify.split"] == "validation"
        assert settings["train.final"] is False
        self.calls.append((alpha, seed))
        self.places.append(place)
        if self.fail(alpha):
            raise RunFailed("the loss is not finite")
        return {
            "natural_accuracy": 0.9 - 0.3 * alpha + 0.01 * seed,
            "certified_accuracy": 0.2 + 0.5 * alpha**2 + 0.01 * seed,
            "adversarial_accuracy": 0.5,
            "seconds": alpha,
        }


def started(path: Path, over: tuple[str, ...] = (ALPHA,), trials: int | None = 6, **changed: Any) -> Path:
    definition = {"objectives": FRONT, "seeds": (0, 1, 2), "sampler": "tpe", "sampler_seed": 0, **changed}
    return begin(
        Definition(over=over, **definition), settings=PLAIN, config=None, trials=trials, out=path, allow_import=False
    )


def finish(path: Path, train: Stand, trials: int | None = None) -> dict[str, Any]:
    return go_on(path, train, trials=trials, allow_import=False, reporter=Silent())


def test_means_spread_and_front(tmp_path: Path) -> None:
    train = Stand()
    found = finish(started(tmp_path / "s"), train)
    assert len(train.calls) == 18
    assert len(set(train.places)) == 18
    assert json.loads((tmp_path / "s" / "results.json").read_text()) == json.loads(json.dumps(found))
    for trial in found["trials"]:
        alpha = trial["values"]["bound.alpha"]
        assert trial["mean"]["natural_accuracy"] == pytest.approx(0.91 - 0.3 * alpha)
        assert trial["spread"]["certified_accuracy"] == pytest.approx(statistics.stdev([0.0, 0.01, 0.02]))
        assert [run["seed"] for run in trial["runs"]] == [0, 1, 2]
        assert trial["front"]  # more of one accuracy is less of the other
    assert (tmp_path / "s" / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_the_front_leaves_out_what_is_dominated(tmp_path: Path) -> None:
    class Worse(Stand):
        def __call__(self, settings: Mapping[str, Any], base: Path, place: Path) -> Mapping[str, Any]:
            summary = dict(super().__call__(settings, base, place))
            if settings["distill.name"] == "none":
                summary["natural_accuracy"] -= 0.4
            return summary

    over = ("bound.alpha=0.2,0.8", "distill.name=none,features")
    path = begin(
        Definition(over, FRONT, (0,), "grid", 0),
        settings={"bound.name": "cc-ibp"},
        config=None,
        trials=None,
        out=tmp_path / "s",
        allow_import=False,
    )
    found = finish(path, Worse())
    assert len(found["trials"]) == 4
    # Certified accuracy depends on alpha alone, so that each trial without a teacher has one that dominates it.
    assert {t["values"]["distill.name"] for t in found["trials"] if t["front"]} == {"features"}
    assert all(t["spread"]["natural_accuracy"] is None for t in found["trials"])


def test_an_interrupted_sweep_proposes_what_it_would_have(tmp_path: Path) -> None:
    whole = Stand()
    finish(started(tmp_path / "whole"), whole)
    calls = []
    path = started(tmp_path / "parts")
    for stop_at in (0, 1, 7, 3, None):
        part = Stand(stop_at)
        try:
            finish(path, part)
        except Interrupted:
            assert stop_at is not None
        calls += part.calls
    # A trial that was stopped between two seeds asks for the first one's run again, which then is there already.
    assert sorted(set(calls)) == sorted(whole.calls)
    assert len(json.loads((path / "results.json").read_text())["trials"]) == 6


def test_a_sweep_grows(tmp_path: Path) -> None:
    path = started(tmp_path / "s", trials=2)
    assert len(finish(path, Stand())["trials"]) == 2
    assert len(finish(path, Stand())["trials"]) == 2
    more = Stand()
    assert len(finish(path, more, trials=3)["trials"]) == 3
    assert len(more.calls) == 3
    assert len(finish(path, Stand())["trials"]) == 3


def test_no_trial_is_run_twice(tmp_path: Path) -> None:
    """By default there are as many as cells, where these are few; more are asked for in vain, and that is said."""
    over = ("bound.alpha=0.1,0.5,0.9", "train.l1=0,1e-5")
    path, train = started(tmp_path / "s", over=over, trials=None, seeds=(0,)), Stand()
    assert len(finish(path, train)["trials"]) == 6
    assert sorted(train.calls) == [(alpha, 0) for alpha in (0.1, 0.1, 0.5, 0.5, 0.9, 0.9)]
    with pytest.warns(UserWarning, match="--trials 20: only 6 different ones exist"):
        assert len(finish(path, train, trials=20)["trials"]) == 6
    path = started(tmp_path / "t", over=("train.batch_size=64:83", *over), trials=None)
    assert json.loads((path / "sweep.json").read_text())["trials"] == 20  # of 120


def test_an_interruption_says_how_to_go_on_with_the_sweep(tmp_path: Path) -> None:
    path = started(tmp_path / "s")
    with pytest.raises(Interrupted) as caught:
        go_on(path, interrupted, trials=None, allow_import=False, reporter=Silent())
    assert str(caught.value) == f"interrupted; saved. Go on with: ctkd sweep --resume {path}"
    assert caught.value.exit_code == 143


def interrupted(settings: Mapping[str, Any], base: Path, place: Path) -> Mapping[str, Any]:
    raise Interrupted(f"interrupted; saved. Go on with: ctkd train --resume {place}", 15)


def test_a_trial_half_drawn_does_not_count(tmp_path: Path) -> None:
    path = started(tmp_path / "s", trials=3)
    finish(path, Stand(), trials=1)
    with sqlite3.connect(path / "study.sqlite") as base:  # as a kill leaves it: running, and without its parameters
        base.execute("INSERT INTO trials (number, study_id, state) VALUES (1, 1, 'RUNNING')")
    base.close()
    found = finish(path, Stand(), trials=3)
    assert [trial["number"] for trial in found["trials"]] == [0, 2, 3]
    whole = finish(started(tmp_path / "whole", trials=3), Stand())
    assert [trial["values"] for trial in found["trials"]] == [trial["values"] for trial in whole["trials"]]
    assert found["failed"] == []


def test_failed_trials_are_told_and_count(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="loss is not finite"):
        found = finish(started(tmp_path / "s", sampler="random"), Stand(fail=lambda alpha: alpha < 0.5))
    assert 0 < len(found["trials"]) < 6
    assert len(found["trials"]) + len(found["failed"]) == 6
    assert {entry["problem"] for entry in found["failed"]} == {"the loss is not finite"}


def test_nothing_succeeded(tmp_path: Path) -> None:
    path = started(tmp_path / "s", trials=1)
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(RunFailed, match="succeeded; the first one: the loss"),
    ):
        finish(path, Stand(fail=lambda alpha: True))


def test_one_objective(tmp_path: Path) -> None:
    found = finish(started(tmp_path / "s", objectives=("seconds",), seeds=(4,)), Stand())
    (best,) = [trial for trial in found["trials"] if trial["front"]]
    assert best["mean"]["seconds"] == min(trial["mean"]["seconds"] for trial in found["trials"])


def test_defaults_that_depend_on_what_is_varied(tmp_path: Path, ctkd_command: Command) -> None:
    """The options of one bound method must not stand in the way of another's."""
    quick = [f"--set={key}={value}" for key, value in {**QUICK, "certify.samples": 20}.items()]
    out = tmp_path / "s"
    words = ["sweep", "--teacher", "none", *quick, "--over", "bound.name=ibp,cc-ibp", "--sampler", "grid"]
    code, printed, _ = ctkd_command(*words, "--out", str(out), "--seeds", "0", "1", "--json")
    assert code == 0
    found = json.loads(printed)
    assert [trial["values"]["bound.name"] for trial in found["trials"]] == ["ibp", "cc-ibp"]
    for trial in found["trials"]:
        for run in trial["runs"]:
            summary = json.loads((out / run["run"] / "summary.json").read_text())
            assert (summary["split"], summary["natural_accuracy"]) == ("validation", run["natural_accuracy"])
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/*/network.safetensors")}
    assert len(before) == 4
    code, printed, _ = ctkd_command("sweep", "--resume", str(out))
    assert code == 0
    assert "seeds 0, 1" in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_goes_on_in_the_midst_of_a_trial(tmp_path: Path, ctkd_command: Command) -> None:
    """A run that was stopped goes on; a folder that is no run yet is made anew."""
    quick = [f"--set={key}={value}" for key, value in {**QUICK, "certify.samples": 20}.items()]
    out = tmp_path / "s"
    words = ["sweep", "--teacher", "none", "--bound", "ibp", *quick, "--over", "train.l1=0,1e-5", "--sampler", "grid"]
    assert ctkd_command(*words, "--out", str(out), "--trials", "1")[0] == 0
    first, second = out / "trials/0000/seed-0", out / "trials/0001/seed-0"
    (second / "student").mkdir(parents=True)
    (first / "summary.json").unlink()
    with sqlite3.connect(out / "study.sqlite") as base:
        base.execute("UPDATE trials SET state = 'RUNNING'")
        base.execute("DELETE FROM trial_values")
    base.close()
    assert ctkd_command("sweep", "--resume", str(out), "--trials", "2")[0] == 0
    assert (first / "summary.json").exists()
    assert len(json.loads((out / "results.json").read_text())["trials"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--over", "bound.gamma=0:1"], "bound.gamma is not an option"),
        (["--over", "nothing.alpha=0:1"], "no section 'nothing'"),
        ([], "name at least one parameter"),
        (["--over", ALPHA, "--seeds", "0", "1", "0"], "--seeds has 0 twice"),
        (["--over", ALPHA, "--seeds", "0,x"], "write whole numbers"),
        (["--over", ALPHA, "--seeds=-1"], "--seeds: -1 is below 0"),
        (["--over", ALPHA, "--trials", "0"], "--trials 0"),
        (["--over", ALPHA, "--objective", "speed"], "accepted: natural_accuracy"),
        (["--over", ALPHA, "--sampler", "bayes"], "accepted: tpe, random, grid"),
        (["--over", ALPHA, "--sampler", "grid"], "bound.alpha has a range"),
        (["--over", ALPHA, "--set", "certify.split=test"], "chooses on validation images"),
        (["--over", ALPHA, "--set", "train.final=true"], "chooses on validation images"),
        (["--over", ALPHA, "--config", "missing.toml"], "missing.toml cannot be read"),
        (["--over", ALPHA, "--dataset", "cifar10", "--data-dir", "missing"], "test_batch missing in "),
        (["--over", ALPHA, "--set", "train.device=cuda:99"], "train.device=cuda:99: "),
        (["--resume", "missing"], "missing does not exist"),
        (["--resume", "missing", "--over", ALPHA], "leave out the other options"),
        (["--resume", "missing", "--sampler", "tpe"], "leave out the other options"),
        (["--resume", "missing", "--sampler-seed", "0"], "leave out the other options"),
        (["--over", ALPHA, "--seed", "5", "--seeds", "0", "1"], "leave out --seed and train.seed"),
    ],
)
def test_bad_input(
    words: list[str], says: str, ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, errors = ctkd_command("sweep", *([] if "--resume" in words else ["--bound", "cc-ibp"]), *words)
    assert (code, printed) == (2, "")
    assert says in errors
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_taken(tmp_path: Path, ctkd_command: Command, quick_run: tuple[Path, Any]) -> None:
    path = started(tmp_path / "s")
    words = ["sweep", "--bound", "cc-ibp", "--over", ALPHA, "--out"]
    assert "already holds a sweep" in ctkd_command(*words, str(path))[2]
    assert "is not empty" in ctkd_command(*words, str(quick_run[0]))[2]
    assert "is a run, not a sweep" in ctkd_command("sweep", "--resume", str(quick_run[0]))[2]
    (path / "sweep.json").write_text("{}")
    assert "is damaged" in ctkd_command("sweep", "--resume", str(path))[2]


def test_a_strangers_sweep_imports_nothing(tmp_path: Path) -> None:
    path = started(tmp_path / "s")
    content = json.loads((path / "sweep.json").read_text())
    content["settings"]["model.name"] = "antigravity_of_nobody:factory"
    (path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="--allow-import"):
        finish(path, Stand())


def edited(**changes: Any) -> Callable[[Path], object]:
    """Changes of ``sweep.json``, of its definition where a key is one of that."""

    def change(folder: Path) -> object:
        content = json.loads((folder / "sweep.json").read_text())
        for key, value in changes.items():
            (content["definition"] if key in content["definition"] else content)[key] = value
        return (folder / "sweep.json").write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda folder: (folder / "study.sqlite").write_bytes(b"no database" * 999),
            "study.sqlite cannot be used: file",
        ),
        (
            lambda folder: (folder / "study.sqlite").write_bytes((folder / "study.sqlite").read_bytes()[:9000]),
            "study.sqlite cannot be used: database disk image",
        ),
        (lambda folder: (folder / "sweep.json").write_text("{"), "sweep.json is damaged: it is not JSON"),
        (lambda folder: (folder / "sweep.json").write_text("[]"), "sweep.json is damaged, or of another version"),
        (lambda folder: (folder / "base.toml").unlink(), "base.toml cannot be read"),
        (edited(definition=[]), "sweep.json is damaged, or of another version"),
        (edited(format=2), "sweep.json is damaged, or of another version"),
        (edited(trials="many"), "sweep.json is damaged, or of another version"),
        (edited(settings=[]), "sweep.json is damaged, or of another version"),
        (edited(seeds=["a"]), "sweep.json is damaged, or of another version"),
        (edited(over=["train.lr=0.1:0.5"]), "study.sqlite holds trials of another sweep than"),
        (edited(objectives=["seconds"]), "study.sqlite holds trials of another sweep than"),
    ],
)
def test_damaged_sweeps(
    change: Callable[[Path], object], says: str, ctkd_command: Command, tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "s"
    shutil.copytree(finished, out)
    change(out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    code, printed, errors = ctkd_command("sweep", "--resume", str(out))
    assert (code, printed, errors.count("\n")) == (2, "", 1)
    assert says in errors
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = started(tmp_path_factory.mktemp("sweep") / "s", trials=1, seeds=(0,))
    finish(folder, Stand())
    return folder
