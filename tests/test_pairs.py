# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every bound method with every objective that it can carry, and every teacher: a short run from start to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ctkd.config import resolve
from ctkd.errors import BadInput
from ctkd.plugins import registry
from ctkd.run import train
from ctkd.runfolder import RunFolder

from .conftest import QUICK, QUICK_TEACHER


def pairs() -> list[tuple[str, str]]:
    found = []
    for bound in registry().names("bound"):
        for distill in registry().names("distill"):
            try:
                resolve({"bound.name": bound, "distill.name": distill})
            except BadInput:
                continue
            found.append((bound, distill))
    return found


def finished(folder: RunFolder, summary: dict[str, Any]) -> None:
    rows = folder.read_metrics()
    assert all(math.isfinite(value) for row in rows for value in row["losses"].values())
    assert 0 <= summary["certified_accuracy"] <= summary["adversarial_accuracy"] <= summary["natural_accuracy"] <= 1
    assert summary["natural_accuracy"] > 0.15


def test_there_are_pairs() -> None:
    assert {("cc-ibp", "features"), ("mtl-ibp", "logits"), ("crown-ibp", "features")} <= set(pairs())


@pytest.mark.parametrize(("bound", "distill"), pairs())
def test_every_pair_trains(bound: str, distill: str, tmp_path: Path) -> None:
    settings = {**QUICK, **QUICK_TEACHER, "bound.name": bound, "distill.name": distill, "train.lr": 1e-2}
    folder, summary = train(settings=settings, out=tmp_path / "run")
    finished(folder, summary)
    terms = folder.read_metrics()[-1]["losses"]
    assert any(name.startswith("distill/") for name in terms) == (distill != "none")


@pytest.mark.parametrize("model", registry().names("model"))
@pytest.mark.parametrize("teacher", ["natural", "none"])
def test_every_model_trains_with_other_teachers(model: str, teacher: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**QUICK, "model.name": model, "teacher.name": teacher, "train.lr": 1e-2}
    if teacher == "natural":
        settings |= {"teacher.epochs": 3, "teacher.lr": 5e-3}
    folder, summary = train(settings=settings, out=tmp_path / "run")
    finished(folder, summary)
    if teacher == "natural":
        rows = [row for row in folder.read_metrics() if row["network"] == "teacher"]
        assert all(row["eps"] == 0 and set(row["losses"]) == {"clean", "loss"} for row in rows)
        assert summary["teacher"]["natural_accuracy"] > 0.5
