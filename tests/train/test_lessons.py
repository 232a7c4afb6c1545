# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Answers of teachers that are kept for all epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.progress import Silent
from ctkd.propagate import Network
from ctkd.run import train
from ctkd.teaching import Teacher
from ctkd.train.lessons import learn

SETTINGS = {
    "bound.name": "cc-ibp",
    "distill.name": "features",
    "teacher.name": "pgd",
    "teacher.epochs": 4,
    "teacher.lr": 0.01,
    "teacher.ramp": 0,
    "train.epochs": 2,
    "train.warmup": 0,
    "train.ramp": 1,
    "model.channels": 4,
    "model.hidden": 16,
}


def test_answers_come_back_by_image() -> None:
    images = torch.arange(2500.0)[:, None]

    def teacher(x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(x * 2, x * 3)

    def without_features(x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(x * 5, None)

    rows = torch.tensor([2400, 3, 3])
    found = learn([teacher, without_features], images, Silent()).at(rows)
    assert set(found) == {(0, "clean"), (1, "clean")}
    assert torch.equal(found[0, "clean"].logits, images[rows] * 2)
    assert torch.equal(found[0, "clean"].features, images[rows] * 3)
    assert torch.equal(found[1, "clean"].logits, images[rows] * 5)
    assert found[1, "clean"].features is None


def weights(folder: Path) -> dict[str, Tensor]:
    return Network.load(folder).tensors()


def test_training_asks_once_and_ends_where_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = Teacher.outputs

    def counted(self: Teacher, x: Tensor) -> TeacherOutputs:
        asked.append(len(x))
        return original(self, x)

    monkeypatch.setattr(Teacher, "outputs", counted)
    kept, _ = train(settings=SETTINGS, out=tmp_path / "kept", certify=False)
    images = sum(asked)
    asked.clear()
    monkeypatch.setattr("ctkd.train.loop.Trainer._lessons", lambda self: None)
    anew, _ = train(settings=SETTINGS, out=tmp_path / "anew", certify=False)
    assert sum(asked) > 1.5 * images  # in every epoch
    for name, tensor in weights(anew.network).items():
        torch.testing.assert_close(weights(kept.network)[name], tensor, rtol=0.05, atol=0.01)  # Adam magnifies rounding


def test_nothing_is_kept_where_images_change_or_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("ctkd.train.loop.learn", lambda *args: calls.append(args))
    train(settings={**SETTINGS, "distill.name": "none"}, out=tmp_path / "none", certify=False)
    assert calls == []
    from ctkd.data.digits import Digits

    load = Digits.load

    def augmented(self: Any, data_dir: Any) -> Any:
        import dataclasses

        return dataclasses.replace(load(self, data_dir), augment=lambda x, noise: x)

    monkeypatch.setattr(Digits, "load", augmented)
    train(settings=SETTINGS, out=tmp_path / "augmented", certify=False)
    assert calls == []
