# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every bound method with every objective: trained on a few images, or refused with a reason; and every model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctkd.api import Data, Split
from ctkd.config import resolve
from ctkd.data.digits import Digits
from ctkd.errors import BadInput
from ctkd.plugins import load, options_class, registry
from ctkd.run import train
from ctkd.runfolder import RunFolder

from .conftest import QUICK, QUICK_TEACHER

IMAGES = 256
"""Training images of a pair's run: four steps an epoch, one before the ramp, three on it, four behind it."""
TEACHER = {**QUICK_TEACHER, "teacher.epochs": 8}
SECOND = {"teacher.2.name": "natural", "teacher.2.epochs": 8, "teacher.2.lr": 5e-3}


def settings(bound: str, distill: str) -> dict[str, Any]:
    """The pair, with as many teachers as the objective learns from."""
    entry = registry().find("distill", distill)
    several = SECOND if load(entry.target, entry.origin).teachers == 2 else {}
    return {**several, "bound.name": bound, "distill.name": distill}


def pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Those that work, and those that are refused."""
    works, refused = [], []
    for bound in registry().names("bound"):
        for distill in registry().names("distill"):
            try:
                resolve(settings(bound, distill))
            except BadInput:
                refused.append((bound, distill))
            else:
                works.append((bound, distill))
    return works, refused


WORKS, REFUSED = pairs()


def test_there_are_pairs() -> None:
    assert {("cc-ibp", "features"), ("mtl-ibp", "logits"), ("crown-ibp", "features")} <= set(WORKS)
    assert {("mtl-ibp", "b-mtard"), ("adversarial", "rslad"), ("ibp", "logits-box")} <= set(WORKS)
    assert {("cc-ibp", "logits"), ("ibp", "rslad")} <= set(REFUSED)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Digits.load

    def part(self: Digits, data_dir: Path | None) -> Data:
        data = whole(self, data_dir)
        return replace(data, train=Split(data.train.images[:IMAGES], data.train.labels[:IMAGES]))

    monkeypatch.setattr(Digits, "load", part)


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(("bound", "distill"), WORKS)
def test_every_pair_trains(bound: str, distill: str, tmp_path: Path) -> None:
    chosen = {**QUICK, **TEACHER, "train.lr": 1e-2, **settings(bound, distill)}
    folder, summary = train(settings=chosen, out=tmp_path / "run", certify=False)
    rows = folder.read_metrics()
    students = [row["losses"] for row in rows if row["network"] == "student"]
    assert len(students) == 2
    assert all(math.isfinite(value) for losses in students for value in losses.values())
    own = [name for losses in students for name in losses if name.startswith("distill/")]
    assert bool(own) == (distill != "none")
    objective, method = (registry().find(kind, name) for kind, name in (("distill", distill), ("bound", bound)))
    reads = load(objective.target, objective.origin).reads & load(method.target, method.origin).evaluates
    assert {name.split("/")[-1].split("#")[0] for name in own} <= reads
    assert summary["certified_accuracy"] is None
    assert len(summary["further_teachers"]) == ("teacher.2.name" in chosen)


@pytest.mark.parametrize(("bound", "distill"), REFUSED)
def test_every_other_pair_is_refused_in_one_line(bound: str, distill: str) -> None:
    with pytest.raises(BadInput) as caught:
        resolve(settings(bound, distill))
    (message,) = caught.value.messages
    assert "\n" not in message
    assert message.startswith((f"distill.name={distill} ", f"bound {bound} brings attack."))
    assert bound in message
    assert "choose" in message or "--distill features reads every kind" in message


def finished(folder: RunFolder, summary: dict[str, Any]) -> None:
    rows = folder.read_metrics()
    assert all(math.isfinite(value) for row in rows for value in row["losses"].values())
    assert 0 <= summary["certified_accuracy"] <= summary["adversarial_accuracy"] <= summary["natural_accuracy"] <= 1
    assert summary["natural_accuracy"] > 0.15


def small(model: str) -> dict[str, Any]:
    """Options that make a published architecture small enough for a test."""
    fields = options_class(registry().find("model", model)).model_fields
    return {f"model.{key}": value for key, value in {"width": 4, "hidden": 32}.items() if key in fields}


@pytest.mark.parametrize("model", [name for name in registry().names("model") if name != "import"])
@pytest.mark.parametrize("teacher", ["natural", "none"])
def test_every_model_trains_with_other_teachers(model: str, teacher: str, tmp_path: Path) -> None:
    # A small radius, where two epochs teach even a deep network something.
    chosen: dict[str, Any] = {**QUICK, "train.eps": 0.01, "train.batch_size": 64, "train.lr": 1e-2}
    chosen |= {"model.name": model, "teacher.name": teacher, **small(model)}
    if teacher == "natural":
        chosen |= {"teacher.epochs": 3, "teacher.lr": 5e-3, "teacher.batch_size": 64}
    folder, summary = train(settings=chosen, out=tmp_path / "run")
    finished(folder, summary)
    if teacher == "natural":
        rows = [row for row in folder.read_metrics() if row["network"] == "teacher"]
        assert all(row["eps"] == 0 and set(row["losses"]) == {"clean", "loss"} for row in rows)
        assert summary["teacher"]["natural_accuracy"] > 0.5
