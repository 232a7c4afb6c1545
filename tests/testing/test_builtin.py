# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every plugin that comes with ctkd keeps the contract that strangers' plugins are held to: one table over all."""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ctkd.data.mnist as mnist
from ctkd.data.digits import Digits
from ctkd.export import to_onnx
from ctkd.options import Options
from ctkd.plugins import registry
from ctkd.testing import run_checks
from ctkd.testing.kit import TESTED
from ctkd.testing.runs import teacher

from ..data.trees import TREES

QUICK = {"epochs": 4, "lr": 0.01}
ATTACKED = {**QUICK, "steps": 2, "ramp": 1.0}
Given = dict[str, Any]


def network_file(folder: Path) -> Given:
    teacher().save(folder / "network.safetensors")
    return {"path": str(folder / "network.safetensors")}


def onnx_file(folder: Path) -> Given:
    (folder / "network.onnx").write_bytes(to_onnx(teacher()).SerializeToString())
    return {"path": str(folder / "network.onnx")}


def archive(folder: Path) -> Given:
    data = Digits(Options()).load(None)
    arrays = {
        f"{axis}_{part}": getattr(getattr(data, part), name).numpy()[:300]
        for part in ("train", "test")
        for axis, name in (("x", "images"), ("y", "labels"))
    }
    np.savez(folder / "digits.npz", **arrays)
    return {"path": str(folder / "digits.npz"), "validation": 0.2}


def image_folder(folder: Path) -> Given:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
    data = Digits(Options()).load(None)
    for part in ("train", "test"):
        split = getattr(data, part)
        for i in range(60):
            place = folder / part / str(int(split.labels[i]))
            place.mkdir(parents=True, exist_ok=True)
            image.fromarray((split.images[i, 0] * 255).round().byte().numpy()).save(place / f"{i}.png")
    return {"path": str(folder), "validation": 0.2}


def small(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """What ``model.factory`` names below."""
    width = int(torch.tensor(input_shape).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, classes))


GIVEN: dict[tuple[str, str], Given | Callable[[Path], Given]] = {
    # Trained for a moment: the defaults are meant for real runs.
    ("teacher", "natural"): QUICK,
    ("teacher", "pgd"): ATTACKED,
    ("teacher", "trades"): ATTACKED,
    ("teacher", "mart"): ATTACKED,
    ("teacher", "ensemble"): {"members": [{"name": "natural", **QUICK}, {"name": "natural", **QUICK}]},
    # Options without a default: files.
    ("teacher", "file"): network_file,
    ("teacher", "onnx"): onnx_file,
    ("dataset", "npz"): archive,
    ("dataset", "folder"): image_folder,
    # Options without a default: the user's own function.
    ("model", "import"): {"factory": f"{__name__}:small"},
    # Searches end by a count, so that they repeat, and soon.
    ("stage", "alpha-crown"): {"iterations": 4},
    ("stage", "complete"): {"timeout": 1000, "nodes": 20, "attack_starts": 1, "attack_steps": 4, "iterations": 3},
    # The published network is wide; the code is the same for a narrow one.
    ("model", "cnn7"): {"width": 4, "hidden": 16},
    ("model", "cnn5"): {"width": 4, "hidden": 16},
}
"""Options of plugins that cannot, or had better not, be tested with their defaults."""
FURTHER: list[tuple[str, str, Given]] = [
    ("bound", "crown-ibp", {"loss_fusion": True, "beta_end": 0.5}),
    ("bound", "taps", {"split": 0, "product": True}),
    ("distill", "features", {"map": "linear"}),
    ("distill", "logits", {"variant": "natural", "temperature": 2}),
    ("attack", "pgd", {"objective": "kl-teacher", "restarts": 2}),
    ("attack", "pgd", {"steps": 1, "step_size": 10}),
    ("model", "resnet", {"pool": True, "hidden": 0}),
    ("dataset", "mnist", {"validation": 40, "shift": 2}),
]
"""Other branches of the code than those of the defaults."""
FROM_FILES = {("dataset", name) for name in ("mnist", *TREES)}
"""Data sets that need a folder: MNIST is tested below, the others with their trees in tests/data/test_standard.py."""
OWN = [
    (kind, name)
    for (kind, name), entry in sorted(registry().entries.items())
    if kind in TESTED and entry.target.startswith("ctkd.")
]


def conforms(kind: str, name: str, options: Given, data_dir: Path | None = None) -> None:
    results = run_checks(kind, name, options, data_dir=data_dir)
    failed = [result for result in results if result.status == "failed"]
    assert not failed, "\n".join(result.message for result in failed)
    assert any(result.status == "passed" for result in results)


@functools.cache
def files(folder: Path) -> Path:
    """MNIST's four files with few images, as the real ones are laid out."""
    rng = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.FILES:
        count = 100 if name.startswith("train") else 20
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        array = images if "images" in name else (np.arange(count) % 10).astype(np.uint8)
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (raw / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = files(tmp_path)
    raw = folder / "MNIST" / "raw"
    sums = {
        name: (hashlib.sha256(gzip.decompress((raw / f"{name}.gz").read_bytes())).hexdigest(), "")
        for name in mnist.FILES
    }
    monkeypatch.setattr(mnist, "FILES", sums)
    return folder


@pytest.mark.parametrize(("kind", "name"), [pair for pair in OWN if pair not in FROM_FILES])
def test_every_builtin_conforms(tmp_path: Path, kind: str, name: str) -> None:
    given = GIVEN.get((kind, name), {})
    conforms(kind, name, given(tmp_path) if callable(given) else given)


@pytest.mark.parametrize(
    ("kind", "name", "options"), FURTHER, ids=[f"{k}-{n}-{i}" for i, (k, n, _) in enumerate(FURTHER)]
)
def test_builtins_conform_with_other_options(data_dir: Path, kind: str, name: str, options: Given) -> None:
    conforms(kind, name, options, data_dir if kind == "dataset" else None)


def test_the_table_names_builtins() -> None:
    assert {*GIVEN, *((kind, name) for kind, name, _ in FURTHER)} <= set(OWN)
    assert {kind for kind, _ in OWN} == {*TESTED} - {"logger"}
