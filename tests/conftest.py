# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What all tests share: one thread, a cache of their own, quick runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine is no failure

os.environ["CTKD_LOAD_PLUGINS"] = ""  # what else is installed must not change what is tested here

QUICK = {
    "train.epochs": 2,
    "train.warmup": 0.25,
    "train.ramp": 1.0,
    "train.threads": 1,
    "attack.steps": 2,
    "certify.samples": 40,
    "certify.attack_steps": 5,
    "certify.attack_restarts": 1,
    "export.samples": 2,
}
"""A run of a few seconds, good enough to exercise every part."""
QUICK_TEACHER = {"teacher.epochs": 3, "teacher.steps": 2, "teacher.lr": 5e-3}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CTKD_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run with a teacher, and its summary. Do not change it: copy it."""
    from ctkd.run import train

    out = tmp_path_factory.mktemp("runs") / "quick"
    folder, summary = train(settings={**QUICK, **QUICK_TEACHER, "bound.name": "ibp"}, out=out)
    return folder.path, summary


@pytest.fixture
def ctkd_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process; returns exit code, standard output, standard error."""
    from ctkd.cli.main import run

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command
