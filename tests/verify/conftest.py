# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Small folders of instances with known answers, and fake verifiers that are registered while a test runs."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.boxes import perturbation_box
from ctkd.export import RobustnessProperty, to_onnx, write_vnnlib
from ctkd.hookspecs import INTERFACE, Registration, hookimpl
from ctkd.plugins import registry
from ctkd.testing.nets import CLASSES, batch, network

from . import fakes

FAKES = [kind for kind in vars(fakes).values() if isinstance(kind, type) and kind.__module__ == fakes.__name__]


def register() -> None:
    """All fakes, as verifiers."""
    made = types.ModuleType("fakes")
    entries = [Registration(kind.__name__, f"{kind.__module__}:{kind.__name__}", "a fake") for kind in FAKES]
    made.CTKD_INTERFACE = INTERFACE  # type: ignore[attr-defined]
    made.ctkd_verifiers = hookimpl(lambda: entries)  # type: ignore[attr-defined]
    registry().add(made, "fakes 1.0")


@pytest.fixture(autouse=True, scope="module")
def _fakes() -> Iterator[None]:
    known = registry()
    entries, owners = dict(known.entries), dict(known.owners)
    register()
    yield
    known.entries, known.owners = entries, owners
    known.manager.unregister(name="fakes 1.0")


def specification(row: int, *, holds: bool, eps: float = 0.001) -> str:
    """The box around an image; the class of its largest logit wins there, that of the smallest does not."""
    net = network("plain", trained=True, dtype=torch.float32)
    x = batch(torch.float32)[0][row : row + 1]
    with torch.no_grad():
        logits = net(x)[0]
    box = perturbation_box(x, eps)
    lower, upper = (bound.reshape(-1).numpy() for bound in (box.lower, box.upper))
    label = int(logits.argmax() if holds else logits.argmin())
    return write_vnnlib(RobustnessProperty(lower, upper, label, CLASSES), eps=eps)


def fill(folder: Path, holds: int, fails: int) -> Path:
    """``onnx/net.onnx``, so many specifications that hold and that fail, and instances.csv."""
    for part in ("onnx", "vnnlib"):
        (folder / part).mkdir(parents=True)
    net = network("plain", trained=True, dtype=torch.float32)
    (folder / "onnx" / "net.onnx").write_bytes(to_onnx(net).SerializeToString())
    lines = []
    for k in range(holds + fails):
        name = f"vnnlib/{'holds' if k < holds else 'fails'}_{k}.vnnlib"
        (folder / name).write_text(specification(k, holds=k < holds))
        lines.append(f"onnx/net.onnx,{name},30\n")
    (folder / "instances.csv").write_text("".join(lines))
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Two instances that hold and two that fail."""
    return fill(tmp_path / "bench", 2, 2)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(ctkd_command: Command) -> Callable[..., tuple[int, Any, str]]:
    """``ctkd verify ... --json`` in this process: exit code, what was printed (parsed), standard error."""
    import json

    def run(*arguments: Any) -> tuple[int, Any, str]:
        code, out, err = ctkd_command("verify", *map(str, arguments), "--json")
        return code, json.loads(out) if out else None, err

    return run
