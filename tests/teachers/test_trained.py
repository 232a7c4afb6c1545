# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Teachers trained on the spot: what they ask for, and what names them in the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.api import Data
from ctkd.config import resolve
from ctkd.interrupt import StopRequest
from ctkd.plugins import registry
from ctkd.progress import Silent
from ctkd.run import train
from ctkd.runfolder import RunFolder
from ctkd.session import Session
from ctkd.storage import cache_folder
from ctkd.teacher_context import SessionContext
from ctkd.train.options import TrainOptions

from .conftest import SHORT, Surroundings

Make = Callable[..., Any]
Check = Callable[..., None]
QUICK_FIT = {"teacher.epochs": 3, "teacher.lr": 5e-3}


def asked(obtain: Make, digits: Data, name: str, **options: Any) -> Any:
    surroundings = Surroundings(digits)
    obtain(name, surroundings, **options)
    (only,) = surroundings.asked
    return only


def test_what_each_source_asks_for(obtain: Make, digits: Data) -> None:
    attack: dict[str, Any]
    found, attack, bound, model = asked(
        obtain, digits, "pgd", eps_factor=1.5, decay=0.1, decay_at=(0.5,), keep="best-adversarial", patience=2
    )
    assert (found.eps, found.ramp, found.keep, found.patience) == (pytest.approx(0.15), 2, "best-adversarial", 2)
    assert found.attack_eps_factor == 1
    assert (attack["objective"], attack["decay"], attack["decay_at"]) == ("cross-entropy", 0.1, [0.5])
    assert (bound, model, found.seed) == ({"name": "adversarial"}, None, 5)
    found, attack, bound, model = asked(obtain, digits, "natural", model="mlp", seed=9)
    assert (found.eps, bound, model, found.seed) == (0, {"name": "adversarial"}, "mlp", 9)
    assert (found.keep, found.patience) == ("last", None)
    found, *_ = asked(obtain, digits, "natural", keep="best-natural", patience=4)
    assert (found.keep, found.patience) == ("best-interval", 4)
    _, attack, bound, _ = asked(obtain, digits, "trades", beta=2)
    assert (attack["objective"], attack["steps"], bound) == ("kl-student", 10, {"name": "trades", "beta": 2})
    _, attack, bound, _ = asked(obtain, digits, "mart")
    assert (attack["objective"], bound) == ("cross-entropy", {"name": "mart", "weight": 5})
    for name in ("pgd", "trades", "mart"):
        found, attack, *_ = asked(obtain, digits, name, objective="margin", attack_eps_factor=1.7)
        assert (attack["objective"], found.eps, found.attack_eps_factor) == ("margin", 0.1, 1.7)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_trades_and_mart_train(name: str, train_command: Make, tmp_path: Path) -> None:
    settings = {**QUICK_FIT, "teacher.name": name, "teacher.steps": 2, "teacher.batch_size": 128}
    code, out, err = train_command(settings, "--json")
    assert code == 0, err
    assert json.loads(out)["teacher"]["natural_accuracy"] > 0.5
    rows = [row for row in RunFolder(tmp_path / "run").read_metrics() if row["network"] == "teacher"]
    assert f"{name}/divergence" in rows[-1]["losses"]


def test_the_best_natural_epoch_becomes_the_natural_teacher(train_command: Make, tmp_path: Path) -> None:
    """At a learning rate that makes accuracies jump, so that patience ends the training."""
    settings = {"teacher.name": "natural", "teacher.epochs": 12, "teacher.lr": 0.1, "teacher.batch_size": 64}
    settings |= {"teacher.keep": "best-natural", "teacher.patience": 2}
    code, out, err = train_command(settings, "--json")
    assert code == 0, err
    rows = [row for row in RunFolder(tmp_path / "run").read_metrics() if row["network"] == "teacher"]
    seen = [row["validation"]["natural_accuracy"] for row in rows]
    best = seen.index(max(seen))
    assert rows[-1]["best_epoch"] == best + 1
    assert len(rows) == best + 3 < 12
    assert seen[-1] < seen[best]
    # The folded network is that epoch's, up to rounding in batch norm.
    assert json.loads(out)["teacher"]["validation_natural_accuracy"] == pytest.approx(seen[best], abs=0.01)


@pytest.mark.parametrize("name", ["pgd", "trades", "mart", "natural"])
@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_every_trained_teacher_has_a_shipped_schedule(name: str, dataset: str) -> None:
    """The one of pgd: at the measured radius, and only there."""
    flags = {"data.name": dataset, "teacher.name": name}
    shipped, usual = (resolve({**flags, "train.eps": eps}).teachers[0].table() for eps in (0.1, 0.05))
    assert [shipped[key] for key in ("epochs", "batch_size")] == ([20, 64] if dataset == "digits" else [10, 256])
    assert [usual[key] for key in ("epochs", "batch_size")] == [15, 256]


def test_a_teacher_of_another_architecture(train_command: Make, tmp_path: Path) -> None:
    settings = {**QUICK_FIT, "teacher.name": "pgd", "teacher.model": "mlp", "teacher.steps": 1}
    settings |= {"distill.name": "features"}
    code, out, err = train_command(settings, "--json")
    assert code == 0, err
    assert json.loads(out)["teacher"]["natural_accuracy"] > 0.5
    rows = [row for row in RunFolder(tmp_path / "run").read_metrics() if row["network"] == "teacher"]
    assert len(rows[0]["validation"]["layers"]) == 2  # cnn-small would have 3


def test_features_of_another_width_are_refused_before_the_teacher_is_trained(refused: Check) -> None:
    settings = {"teacher.name": "pgd", "teacher.model": "mlp", "distill.name": "features"}
    settings |= {"model.hidden": "30"}
    refused(settings, "compares 30 features of the student with 100 of the teacher")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"model": "cnn-smal"}, "teacher.model=cnn-smal: not known: did you mean 'cnn-small'?"),
        ({"patience": 2}, "patience = 2 needs keep = best-adversarial"),
        ({"keep": "best-adversarial", "epochs": 2}, "ramp = 2 leaves none of epochs = 2"),
        ({"keep": "best-interval"}, "teacher.keep=best-interval: must be 'last' or 'best-adversarial'"),
        ({"decay": 2}, "teacher.decay=2: must be less than or equal to 1"),
        (
            {"objective": "kl-teacher"},
            "teacher.objective=kl-teacher: must be 'cross-entropy', 'margin' or 'kl-student'",
        ),
        ({"name": "natural", "patience": 2}, "patience = 2 needs keep = best-natural"),
        ({"name": "natural", "keep": "best-adversarial"}, "teacher.keep=best-adversarial: must be 'last' or 'best-na"),
    ],
)
def test_options_that_do_not_fit(settings: dict[str, Any], part: str, refused: Check) -> None:
    refused({"teacher.name": "pgd", **{f"teacher.{key}": value for key, value in settings.items()}}, part)


def test_a_refused_schedule_of_the_student() -> None:
    with pytest.raises(ValueError, match=r"keep = best-interval compares epochs .* leaves none of epochs = 3"):
        TrainOptions(epochs=3, warmup=1, ramp=2, keep="best-interval")


# The cache -----------------------------------------------------------------------------------------------


def test_a_cached_teacher_is_the_one_that_was_trained(tmp_path: Path) -> None:
    settings = {**SHORT, **QUICK_FIT, "teacher.name": "pgd", "teacher.steps": 1, "teacher.seed": 77}
    settings |= {
        "teacher.keep": "best-adversarial",
        "teacher.ramp": 1,
        "bound.name": "cc-ibp",
        "distill.name": "features",
    }
    summaries = [train(settings=settings, out=tmp_path / name, certify=False)[1] for name in ("fresh", "cached")]
    assert not (tmp_path / "cached" / "teacher" / "checkpoint.safetensors").exists()
    for key in ("teacher", "student_sha256"):
        assert summaries[0][key] == summaries[1][key]
    shutil.rmtree(cache_folder() / "teachers")
    again = train(settings=settings, out=tmp_path / "again", certify=False)[1]
    assert (tmp_path / "again" / "teacher" / "checkpoint.safetensors").exists()
    assert again["teacher"] == summaries[0]["teacher"]


class Keys(Session):
    """Says under which name a teacher would be cached, and trains nothing."""

    def train(self, *rest: Any) -> Any:
        raise LookupError


def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: Data, **settings: Any) -> str:
    import ctkd.teacher_context

    seen: list[str] = []
    original = ctkd.teacher_context.fit_key

    def spy(*arguments: Any) -> str:
        seen.append(original(*arguments))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr("ctkd.fingerprint.code_digest", lambda folder: "the same")
        patch.setattr(ctkd.teacher_context, "fit_key", spy)
        flags = {"teacher.name": "pgd", **{name.replace("__", "."): value for name, value in settings.items()}}
        session = Keys(resolve(flags), RunFolder(tmp_path), digits, Silent(), StopRequest())
        with pytest.raises(LookupError):
            session.config.teachers[0].create().obtain(SessionContext(session))
    return seen[0]


def test_the_key_has_all_that_determines_a_teacher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: Data
) -> None:
    def of(**settings: Any) -> str:
        return key(monkeypatch, tmp_path, digits, **settings)

    base = of()
    assert of() == base
    other = [
        of(teacher__epochs=4),
        of(teacher__steps=3),
        of(teacher__restarts=2),
        of(teacher__decay=0.5, teacher__decay_at=[0.5]),
        of(teacher__seed=1),
        of(train__seed=2),
        of(train__eps=0.2),
        of(teacher__model="mlp"),
        of(model__hidden=50),
        of(teacher__name="trades"),
        of(teacher__name="trades", teacher__beta=1),
        of(teacher__name="mart"),
        of(teacher__name="natural"),
        of(teacher__objective="margin"),
        of(teacher__attack_eps_factor=1.5),
        of(teacher__keep="best-adversarial"),
        of(teacher__keep="best-adversarial", teacher__patience=3),
        of(teacher__keep="best-adversarial", certify__attack_step_size=0.4),
    ]
    assert len({base, *other}) == 1 + len(other)
    # What does not determine it must not cost another training.
    assert of(bound__name="ibp", train__lr=0.1, certify__attack_steps=3, certify__attack_step_size=0.4) == base
    assert of(train__checkpoint_seconds=1) == base
    shifted = torch.roll(digits.train.images, 1, 3)
    from dataclasses import replace

    assert key(monkeypatch, tmp_path, replace(digits, train=replace(digits.train, images=shifted))) != base


def test_the_key_of_another_model_is_that_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: Data) -> None:
    """The student's options do not touch a teacher of another architecture."""
    first = key(monkeypatch, tmp_path, digits, teacher__model="mlp", model__name="cnn-small", model__hidden=50)
    second = key(monkeypatch, tmp_path, digits, teacher__model="mlp", model__name="cnn-small")
    assert first == second == key(monkeypatch, tmp_path, digits, teacher__model="mlp", model__name="mlp")


def test_every_source_is_light() -> None:
    """No torch on import."""
    import subprocess
    import sys

    names = [entry.target for (kind, _), entry in registry().entries.items() if kind == "teacher"]
    lines = [f"import {name.partition(':')[0]}" for name in names]
    script = "\n".join(["import sys", *lines, "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"])
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
