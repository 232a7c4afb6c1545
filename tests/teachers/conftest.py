# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher's surroundings without a run, a trained network to read, and the command line as a judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.api import Data
from ctkd.config import resolve
from ctkd.plugins import create, create_from, options_class, registry
from ctkd.session import load_data
from ctkd.storage import read_tensors

from ..conftest import QUICK

SHORT = {**QUICK, "train.epochs": 1, "train.ramp": 0.5, "teacher.name": "file", "distill.name": "none"}
"""A run of a second or two that is about its teacher."""


class Surroundings:
    """A ``TeacherContext`` that trains nothing and remembers what it was asked for."""

    eps, seed, role, threads, device = 0.1, 5, "teacher", 1, "cpu"

    def __init__(self, data: Data, model: dict[str, Any] | None = None) -> None:
        self.data, self.model, self.asked = data, model or {"name": "cnn-small"}, []  # type: ignore[var-annotated]

    def build_model(self, name: str | None = None) -> torch.nn.Module:
        table = self.model if name is None else {"name": name}
        return create_from("model", table).build(self.data.input_shape, self.data.classes)  # type: ignore[no-any-return]

    def fit(self, train: Any, attack: Any, bound: Any, model: str | None = None) -> Any:
        from ctkd.train.finish import finalise

        self.asked.append((train, attack, bound, model))
        create_from("attack", attack)  # raises where the table is none
        create_from("bound", bound)
        torch.manual_seed(train.seed)
        return finalise(self.build_model(model), self.data.input_shape)


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data(resolve({}))


@pytest.fixture
def obtain(digits: Data) -> Callable[..., Any]:
    """Makes a teacher source from options and lets it answer; returns the teacher."""

    def make(name: str, surroundings: Any = None, **options: Any) -> Any:
        entry = registry().find("teacher", name)
        return create(entry, options_class(entry)(**options)).obtain(surroundings or Surroundings(digits))

    return make


@pytest.fixture(scope="session")
def good(quick_run: tuple[Path, Any]) -> Path:
    """A trained network of ctkd."""
    return quick_run[0] / "teacher" / "network.safetensors"


@pytest.fixture(scope="session")
def good_state(quick_run: tuple[Path, Any]) -> dict[str, torch.Tensor]:
    """The same weights as a state dict of cnn-small."""
    tensors, _ = read_tensors(quick_run[0] / "teacher" / "checkpoint.safetensors")
    return {name[6:]: value for name, value in tensors.items() if name.startswith("model/")}


@pytest.fixture
def train_command(ctkd_command: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """``ctkd train`` with short settings into ``tmp_path/run``, without certification."""

    def command(settings: dict[str, Any], *more: str) -> tuple[int, str, str]:
        sets = [part for key, value in {**SHORT, **settings}.items() for part in ("--set", f"{key}={value}")]
        out = [] if "--print-config" in more else ["--no-certify", "--out", str(tmp_path / "run")]
        return ctkd_command("train", *sets, *out, *more)  # type: ignore[no-any-return]

    return command


@pytest.fixture
def refused(train_command: Callable[..., Any], tmp_path: Path) -> Callable[..., None]:
    """Exit code 2, nothing on standard output, one line that has this part, no folder left behind."""

    def check(settings: dict[str, Any], part: str, *more: str) -> None:
        code, out, err = train_command(settings, *more)
        lines = [line for line in err.splitlines() if line != "evaluating the teacher"]
        assert (code, out, len(lines)) == (2, "", 1), err
        assert lines[0].startswith("error: ")
        assert part in lines[0]
        assert not (tmp_path / "run").exists()

    return check
