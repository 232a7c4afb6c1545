# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd.run.load_student``: what a plugin's own evaluation starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ctkd.errors import BadInput
from ctkd.run import load_student, train

QUICK = {
    "bound.name": "ibp",
    "teacher.name": "none",
    "train.epochs": 1,
    "train.warmup": 0.0,
    "train.ramp": 0.5,
    "train.threads": torch.get_num_threads(),
}


def test_it_gives_the_runs_network_and_data(tmp_path: Path) -> None:
    folder, summary = train(settings=QUICK, out=tmp_path / "run", certify=False)
    network, data = load_student(folder.path)
    assert network.sha256() == summary["student_sha256"]
    right = network(data.test.images).argmax(1) == data.test.labels
    assert float(right.double().mean()) == pytest.approx(summary["natural_accuracy"])


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        load_student(tmp_path / "run")
    folder, _ = train(settings=QUICK, out=tmp_path / "run", certify=False)
    folder.network.unlink()
    with pytest.raises(BadInput, match="has no trained student yet"):
        load_student(folder.path)
