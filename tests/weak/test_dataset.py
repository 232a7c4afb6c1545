# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The data set of weak samples: read back as it was, and used for validation."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctkd.api import Data, Split
from ctkd.config import resolve
from ctkd.data.arrays import to_images
from ctkd.errors import BadInput
from ctkd.run import certify, train, weak
from ctkd.session import load_data
from ctkd.weak.dataset import check_storable, stored, with_validation

from ..conftest import QUICK

Command = Callable[..., tuple[int, str, str]]


def loaded(path: Path) -> Data:
    return load_data(resolve({"data.name": str(path), "train.eps": 0.1}))


def same(one: Split, other: Split) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def archive(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weakest 12 of 30 validation samples."""
    out = tmp_path_factory.mktemp("archive") / "weak.npz"
    weak([run], out, split="validation", worst=12)
    return out


def test_it_is_read_back_bit_for_bit(archive: Path, run: Path) -> None:
    digits, found = load_data(resolve()), loaded(archive)
    chosen = weak([run], split="validation", worst=12)["samples"]
    samples = [sample["sample"] for sample in chosen]
    assert samples != sorted(samples)  # weakest first
    assert same(found.train, digits.train)
    assert same(found.test, digits.test)
    assert torch.equal(found.validation.images, digits.validation.images[samples])
    assert found.validation.labels.tolist() == [sample["label"] for sample in chosen]
    assert found.classes == 10
    with np.load(archive) as arrays:
        assert arrays["validation_samples"].tolist() == samples
        assert arrays["validation_values"].tolist() == [[sample["runs"][0]["value"] for sample in chosen]]


def test_it_says_where_it_comes_from(archive: Path, run: Path) -> None:
    with np.load(archive) as arrays:
        about = json.loads(str(arrays["about"]))
    assert {key: about[key] for key in ("by", "eps", "split", "rank")} == {
        "by": "margin",
        "eps": 0.1,
        "split": "validation",
        "rank": "mean",
    }
    assert about["data"]["name"] == "digits"
    (source,) = about["runs"]
    assert source["run"] == str(run)
    assert len(source["network"]) == 64
    assert source["settings"][0]["data"] == about["data"]["digest"]


@pytest.mark.filterwarnings("ignore:not exported")  # none of the weakest may be classified correctly
def test_training_selects_on_it(archive: Path, tmp_path: Path) -> None:
    """Two steps: its figures are those of the weak samples, and the run certifies them like any validation split."""
    settings = {**QUICK, "data.name": str(archive), "train.eps": 0.1, "bound.name": "ibp", "teacher.name": "none"}
    folder, summary = train(
        settings={**settings, "certify.split": "validation", "certify.samples": 12}, out=tmp_path / "r"
    )
    assert (summary["samples"], summary["split"]) == (12, "validation")
    assert summary["certified_standard_error"] is None  # all of the split
    assert summary["validation_seen_in_training"] is False
    seen = folder.read_metrics()[-1]["validation"]["natural_accuracy"]
    assert seen * 12 == pytest.approx(round(seen * 12))
    again = weak([folder.path], worst=12)
    assert again["split"] == "validation"


def test_certifying_it_gives_the_margins_it_was_chosen_by(
    archive: Path, run: Path, tmp_path: Path, ctkd_command: Command
) -> None:
    (model,) = (run / "export").glob("**/*.onnx")
    split = ["--set", "certify.split=validation"]
    arguments = ["--dataset", str(archive), "--eps", "0.1", *split, "--out", str(tmp_path / "again")]
    code, _, err = ctkd_command("certify", str(model), *arguments)
    assert code == 0, err
    with sqlite3.connect(tmp_path / "again" / "certification.sqlite") as connection:
        margins = [row[0] for row in connection.execute("SELECT lower_margin FROM samples ORDER BY sample")]
    with np.load(archive) as arrays:
        assert margins == pytest.approx(arrays["validation_values"][0].tolist(), abs=1e-4)


def test_training_samples_are_taken_out_of_the_training_images(copy: Path, tmp_path: Path) -> None:
    certify(copy, settings={"certify.split": "train", "certify.samples": 10, "certify.stages": ["ibp"]})
    found = weak([copy], tmp_path / "w.npz", split="train", worst=4)
    assert found["notes"] == []
    digits, data = load_data(resolve()), loaded(tmp_path / "w.npz")
    chosen = [sample["sample"] for sample in found["samples"]]
    kept = [i for i in range(len(digits.train)) if i not in chosen]
    assert torch.equal(data.train.images, digits.train.images[kept])
    assert torch.equal(data.validation.images, digits.train.images[chosen])


def test_all_training_images_are_too_many() -> None:
    split = Split(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(BadInput, match="all 3 training images were chosen, which leaves none for training"):
        with_validation(Data("d", split, split, split, 2), "train", [2, 0, 1])


def test_test_samples_come_with_a_warning(run: Path, tmp_path: Path, ctkd_command: Command) -> None:
    code, out, err = ctkd_command("weak", str(run), "--worst", "3", "--out", str(tmp_path / "w.npz"))
    assert code == 0
    assert err == (
        "warning: the samples are of the test split: a model that is chosen on them has no honest figure on that split "
        "any more\n"
    )
    assert f"ctkd train --dataset {tmp_path / 'w.npz'} --eps 0.1" in out
    assert ctkd_command("weak", str(run), "--split", "validation", "--out", str(tmp_path / "v.npz"))[2] == ""


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8), st.booleans())
def test_pixels_survive(values: list[float], eighths: bool) -> None:
    images = torch.tensor(values).reshape(-1, 1)
    if eighths:
        images = (images * 255).round().div_(255)
    array = stored(images)
    assert torch.equal(to_images(array, "here"), images)
    assert not eighths or array.dtype == np.uint8


def test_shapes_that_would_be_read_otherwise_are_refused() -> None:
    for shape in [(4,), (1, 3, 3), (3, 5, 5), (4, 5, 3)]:
        check_storable(_of_shape(*shape))
    for shape in [(5, 5), (5, 5, 3), (1, 2, 3, 4)]:
        with pytest.raises(BadInput, match="cannot be stored; accepted: \\(channels, height, width\\), \\(numbers,\\)"):
            check_storable(_of_shape(*shape))


def _of_shape(*shape: int) -> Data:
    split = Split(torch.zeros(2, *shape), torch.tensor([0, 1]))
    return Data("d", split, split, split, 2)


def test_half_a_validation_split_is_refused(archive: Path, tmp_path: Path) -> None:
    with np.load(archive) as arrays:
        np.savez(tmp_path / "half.npz", **{name: arrays[name] for name in arrays.files if name != "y_validation"})
    with pytest.raises(BadInput, match=r"no array y_validation; needed: .*x_validation, y_validation"):
        loaded(tmp_path / "half.npz")
