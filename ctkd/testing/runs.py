# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Whole runs of a second: killed in the middle, resumed, and compared with a run that nothing disturbed."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ctkd.config import RunConfig, resolve
from ctkd.data.digits import Digits
from ctkd.errors import BadInput
from ctkd.options import Options
from ctkd.progress import Silent
from ctkd.propagate import Network
from ctkd.randomness import generator
from ctkd.testing.subject import NotApplicable, Subject
from ctkd.train.finish import finalise
from ctkd.train.initialise import default_initialise

WIDTHS = (12, 8)
KILLS = (2, 3)
"""Steps after which the process dies, counted anew after each resumption: on the ramp, and behind it."""


class _Killed(BaseException):
    """Stands for the end of the process: nothing is saved after it."""


class _Killer(Silent):
    """Ends a run after some steps of training."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.trains = False

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        self.trains = phase.startswith("training")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= steps if self.trains else 0
        if self.left <= 0:
            raise _Killed

    def warn(self, message: str) -> None: ...


@contextmanager
def sandbox() -> Iterator[Path]:
    """A folder for one check; ctkd's cache and the working directory are inside it."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="ctkd-conformance-") as name:
        folder = Path(name).resolve()
        (folder / "work").mkdir()
        before = os.environ.get("CTKD_CACHE")
        os.environ["CTKD_CACHE"] = str(folder / "cache")
        os.chdir(folder / "work")
        try:
            yield folder
        finally:
            os.chdir(here)
            if before is None:
                del os.environ["CTKD_CACHE"]
            else:
                os.environ["CTKD_CACHE"] = before


def quick_settings() -> dict[str, Any]:
    """A student of two small layers on the digits: six steps, three of them on the ramp."""
    return {
        "data.name": "digits",
        "model.name": "mlp",
        "model.widths": list(WIDTHS),
        "teacher.name": "none",
        "distill.name": "none",
        "attack.steps": 2,
        "train.eps": 0.1,
        "train.epochs": 2,
        "train.warmup": 0.0,
        "train.ramp": 1.0,
        "train.batch_size": 400,
        "train.average_from": "none",
        "train.keep": "last",
        "train.final": False,
        "train.checkpoint_seconds": 1e-9,
        "train.threads": torch.get_num_threads(),
    }


@functools.cache
def teacher(number: int = 0) -> Network:
    """A network like the quick student, trained for a moment: better than chance, and different for each number."""
    data = Digits(Options()).load(None)
    first, second = WIDTHS
    layers = (nn.Linear(64, first), nn.BatchNorm1d(first), nn.ReLU(), nn.Linear(first, second), nn.BatchNorm1d(second))
    module = nn.Sequential(nn.Flatten(), *layers, nn.ReLU(), nn.Linear(second, data.classes))
    default_initialise(module, generator(number, "conformance-teacher"))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(30):
        with torch.enable_grad():
            loss = cross_entropy(module(data.train.images), data.train.labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return finalise(module, data.input_shape)


def teachers_in(folder: Path, count: int) -> dict[str, Any]:
    """Settings for as many teachers, whose files are written into the folder."""
    settings: dict[str, Any] = {}
    for i in range(count):
        path = folder / f"teacher-{i + 1}.safetensors"
        teacher(i).save(path)
        role = "teacher" if i == 0 else f"teacher.{i + 1}"
        settings |= {f"{role}.name": "file", f"{role}.path": str(path)}
    return settings


def resolved(subject: Subject, settings: Mapping[str, Any]) -> RunConfig:
    """Raises: ConformanceError if the settings, the subject's options among them, are refused."""
    try:
        return resolve(settings)
    except BadInput as problem:
        subject.reject(
            f"a configuration with it is refused: {problem}",
            "a plugin can be used in a run with the options that it is tested with",
            "compare its attributes with ctkd.api",
        )


def check_resumes(subject: Subject, settings: Mapping[str, Any], folder: Path) -> None:
    """Raises: ConformanceError if a run that is killed and resumed ends with other weights."""
    from ctkd.run import resume, train

    resolved(subject, settings)
    try:
        whole, _ = train(settings=settings, out=folder / "whole", certify=False, reporter=_Killer(10**9))
    except BadInput as problem:
        raise NotApplicable(f"the run is refused: {problem}") from None
    broken = folder / "killed"
    try:
        train(settings=settings, out=broken, certify=False, reporter=_Killer(KILLS[0]))
    except _Killed:
        for steps in (*KILLS[1:], 10**9):
            try:
                resume(broken, certify=False, reporter=_Killer(steps))
            except _Killed:
                continue
    if Network.load(broken / "network.safetensors").sha256() != Network.load(whole.network).sha256():
        subject.reject(
            "a run that was killed after some steps and resumed ends with other weights than one that was not",
            "resumed runs are bit-identical: what a plugin carries from step to step goes through state_dict() and "
            "load_state_dict(values), and its randomness comes from the generator that it is given",
            "keep no state that state_dict() does not return, in the object, its class or its module",
        )
