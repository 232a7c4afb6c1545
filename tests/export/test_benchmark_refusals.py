# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Benchmarks that are not written: impossible wishes, false claims, failures on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ctkd.export.benchmark.repository as room
from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput, Contradiction, RunFailed
from ctkd.export import generate_properties as script
from ctkd.export import to_onnx
from ctkd.export.benchmark import Candidate

from .material import EPS, Material, write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 8}, r"eps=8 is outside \[0, 1\]"),
        ({"name": "a,b"}, r"name 'a,b' is not usable in instances.csv"),
        ({"budget": 21_601}, r"budget=21601: the timeouts of a benchmark may add up to 21600 seconds at most"),
        ({"budget": 0}, r"budget=0: the timeouts"),
        ({"budget": float("nan")}, r"budget=nan: the timeouts"),
        ({"budget": 5}, r"budget=5 is too small for 12 instances \(cheap=2,.*\): at least 94 seconds are needed"),
        (
            {"mix": {"cheap": 1000, "tight": 0, "undecided": 1, "broken": 0}},
            r"mix cheap=1000,tight=0,.*: too few images that are cheap; possible are at most cheap=\d+,tight=\d+,"
            r"undecided=\d+,broken=\d+; more come from there",
        ),
        (
            {"mix": {"cheap": 1, "tight": 0, "undecided": 0, "broken": 0}},
            r"leaves \d+ different choices of images; .* 1000",
        ),
        (
            {"mix": None, "samples": 1000},
            r"samples=1000: a mix of at most half of the images of each outcome has at most",
        ),
        ({"candidates": [], "images": torch.zeros(0, 1, 8, 8), "found": torch.zeros(0, 1, 8, 8)}, r"n >= 1"),
    ],
)
def test_refusals(tmp_path: Path, material: Material, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        write(material, tmp_path / "bench", **changes)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, material: Material) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty; name a folder that does not exist yet or is empty"):
        write(material, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_broken_images_without_a_counterexample_are_left_out(tmp_path: Path, material: Material) -> None:
    """The attack's point outside the box by one float, and a point that violates nothing."""
    broken = [k for k, candidate in enumerate(material.candidates) if candidate.outcome == "broken"]
    found = material.found.clone()
    upper = perturbation_box(material.images, EPS).upper
    assert (found[broken[0]] == upper[broken[0]]).any()
    found[broken[0]] = torch.where(
        found[broken[0]] == upper[broken[0]], torch.nextafter(upper[broken[0]], torch.tensor(2.0)), found[broken[0]]
    )
    found[broken[1]] = material.images[broken[1]]
    report = write(material, tmp_path / "bench", found=found)
    assert report.unproved == 2
    assert report.pool["broken"] == len(broken) - 2
    assert len(np.load(report.folder / "data" / "witnesses.npy")) == len(broken) - 2


def test_a_certificate_that_does_not_hold_stops_everything(tmp_path: Path, material: Material) -> None:
    lying = [
        Candidate(**{**vars(c), "label": (c.label + 1) % 10}) if c.outcome == "cheap" else c
        for c in material.candidates
    ]
    with pytest.raises(Contradiction, match=r"is claimed certified for class \d at eps=0.06, but the image itself"):
        write(material, tmp_path / "bench", candidates=lying)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of what the generator writes."""
    write_one, left = script.write, [9]

    def fail(path: Path, text: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write_one(path, text)

    monkeypatch.setattr(script, "write", fail)
    with pytest.raises(BadInput, match="bench cannot be written: No space left on device"):
        write(material, tmp_path / "bench")
    assert left[0] == -1
    assert not list(tmp_path.iterdir())


def test_what_reads_back_differently_is_not_handed_out(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong box in each version, a witness that is none, a generator that makes other boxes."""
    box, tiny = script.perturbation_box, script.exact(np.float32(1e-7))
    right = {name: getattr(script, name) for name in ("vnnlib_1", "vnnlib_2", "witness_1", "witness_2")}
    for name in ("vnnlib_1", "vnnlib_2"):

        def moved(*arguments: Any, name: str = name) -> str:
            return right[name](*arguments).replace(" 0.0)", f" {tiny})", 1)

        with monkeypatch.context() as patch:
            patch.setattr(script, name, moved)
            with pytest.raises(RunFailed, match="does not read back as the box that was certified"):
                write(material, tmp_path / "bench")
    for name in ("witness_1", "witness_2"):

        def outside(x: list[float], *rest: Any, name: str = name) -> str:
            return right[name]([float(np.nextafter(np.float32(2), np.float32(3))), *x[1:]], *rest)

        with monkeypatch.context() as patch:
            patch.setattr(script, name, outside)
            with pytest.raises(RunFailed, match="does not pass the strict check"):
                write(material, tmp_path / "bench")
    with monkeypatch.context() as patch:
        patch.setattr(script, "perturbation_box", lambda x, eps: box(x, eps + 1e-7))
        with pytest.raises(RunFailed, match="the generator makes another box of sample"):
            write(material, tmp_path / "bench")
    with monkeypatch.context() as patch:
        patch.setattr(room, "to_onnx", lambda network: to_onnx(network.map(lambda tensor: tensor * 1.01)))
        with pytest.raises(RunFailed, match="differs from the network"):
            write(material, tmp_path / "bench")
    assert not list(tmp_path.iterdir())
