# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Your own model and data without a plugin: import paths, NumPy archives, folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ctkd.cli.main import run as cli
from ctkd.config import resolve
from ctkd.errors import BadInput
from ctkd.run import check, resume, train
from ctkd.session import load_data

from .conftest import QUICK

SETTINGS = {**QUICK, "teacher.name": "none", "train.epochs": 1, "train.ramp": 0.5, "train.eps": 0.05}
MODEL = """
from torch import nn

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def sized(input_shape, classes):
    first = nn.Linear(input_shape[-1] * input_shape[-2], 16)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(16, classes))

def broken(input_shape, classes):
    raise ValueError("no such width")

def nothing():
    return 3

def quits():
    raise SystemExit(0)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory that makes models."""
    monkeypatch.chdir(tmp_path)
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODEL)
    return name


def digits(dtype: type = np.float32) -> dict[str, np.ndarray]:
    bunch = load_digits()
    images = bunch.images / 16
    images = (255 * images).round().astype(np.uint8) if dtype is np.uint8 else images.astype(dtype)
    return {
        "x_train": images[:300],
        "y_train": bunch.target[:300],
        "x_test": images[300:340],
        "y_test": bunch.target[300:340],
    }


def loaded(path: Path, **options: Any) -> Any:
    flags = {"data.name": str(path), "train.eps": 0.1, **{f"data.{key}": value for key, value in options.items()}}
    return load_data(resolve(flags))


@pytest.mark.parametrize("factory", ["fixed", "sized"])
def test_a_factory_of_the_users_trains_with_the_users_arrays(models: str, tmp_path: Path, factory: str) -> None:
    np.savez(tmp_path / "mine.npz", **digits(np.uint8))
    settings = {**SETTINGS, "model.name": f"{models}:{factory}", "data.name": "mine.npz", "export.samples": 1}
    folder, summary = train(settings=settings, out=tmp_path / "run")
    assert summary["samples"] == 40
    assert (folder.exports / "onnx").is_dir()
    assert 'factory = "' in folder.config.read_text()
    assert str(tmp_path / "mine.npz") in folder.config.read_text()


def test_code_named_by_a_file_runs_only_where_that_was_allowed(models: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **digits())
    settings = {**SETTINGS, "data.name": "mine.npz"}
    config = tmp_path / "my.toml"
    config.write_text(f'[model]\nname = "{models}:fixed"\n')
    with pytest.raises(BadInput, match=rf"my.toml asks to import {models}:fixed and run it; add --allow-import"):
        train(settings=settings, config=config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    folder, _ = train(settings=settings, config=config, out=tmp_path / "run", allow_import=True, certify=False)
    folder.summary.unlink()
    with pytest.raises(BadInput, match="--allow-import"):
        resume(folder.path)
    resume(folder.path, certify=False, allow_import=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "cannot be used: ValueError: no such width"),
        ("nothing", "must return a torch.nn.Module, found int"),
        ("quits", "cannot be used: SystemExit"),
        ("absent", "cannot be used: AttributeError"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_line(models: str, name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check(f"{models}:{name}", "1,8,8")
    with pytest.raises(BadInput, match=words):
        train(settings={**SETTINGS, "model.name": f"{models}:{name}"})


def test_an_import_path_is_a_module_and_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["train", "--model", "my nets:make it", "--print-config"]) == 2
    assert "model.factory=my nets:make it: write pkg.mod:factory" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_are_pixels_in_0_1(tmp_path: Path, dtype: type) -> None:
    np.savez(tmp_path / "a.npz", **digits(dtype))
    data = loaded(tmp_path / "a.npz")
    assert data.name == "a"
    assert data.input_shape == (1, 8, 8)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (270, 30, 40, 10)
    expected = torch.tensor(digits(np.float64)["x_test"], dtype=torch.float32).unsqueeze(1)
    assert (data.test.images - expected).abs().max() < (0.5 / 255 + 1e-6 if dtype is np.uint8 else 1e-6)
    again = loaded(tmp_path / "a.npz")
    assert torch.equal(again.validation.images, data.validation.images)


def test_channels_may_come_last(tmp_path: Path) -> None:
    arrays = digits()
    for part in ("x_train", "x_test"):
        arrays[part] = np.stack([arrays[part], 0 * arrays[part], 1 - arrays[part]], axis=3)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInput, match=r"set data.layout=channels-last"):
        loaded(tmp_path / "a.npz")
    data = loaded(tmp_path / "a.npz", layout="channels-last")
    assert data.input_shape == (3, 8, 8)
    assert torch.equal(data.test.images[:, 2], torch.from_numpy(arrays["x_test"][..., 2]))


def test_flat_features_and_a_number_of_classes(tmp_path: Path) -> None:
    arrays = {key: value.reshape(len(value), -1) if key[0] == "x" else value for key, value in digits().items()}
    np.savez(tmp_path / "a.npz", **arrays)
    data = loaded(tmp_path / "a.npz", classes=12)
    assert data.input_shape == (64,)
    assert data.classes == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"x_test": None},
            "no array x_test; needed: x_train, y_train, x_test, y_test, found: x_train, y_train, y_test",
        ),
        ({"x_train": np.zeros((300, 8, 8), np.int64)}, "images must be uint8, or floats"),
        ({"y_train": np.zeros(300)}, "labels must be integers of shape"),
        ({"y_train": np.zeros(299, np.int64)}, "300 images, and 299 labels"),
        ({"x_train": np.zeros((300, 1, 1, 8, 8), np.float32)}, r"accepted: \(count, h, w\)"),
        ({"x_test": np.full((40, 8, 8), 200.0)}, r"pixels must lie in \[0, 1\]"),
        ({"x_test": np.zeros((40, 9, 9), np.float32)}, r"images of shape \(1, 9, 9\)"),
        ({"y_train": np.array([{}] * 300)}, "is no NumPy archive: Object arrays cannot be loaded"),
        ({"y_test": np.full(40, -1)}, "labels must lie in"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    arrays = {key: value for key, value in {**digits(), **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInput, match=words):
        loaded(tmp_path / "a.npz")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_validation_split_must_be_left(tmp_path: Path, share: float) -> None:
    np.savez(tmp_path / "a.npz", **digits())
    with pytest.raises(BadInput, match=rf"data.validation={share:g}: must leave images"):
        loaded(tmp_path / "a.npz", validation=share)


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent.npz cannot be read: No such file"):
        loaded(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BadInput, match=r"text.npz is no NumPy archive"):
        loaded(tmp_path / "text.npz")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BadInput, match="one array, not an archive"):
        loaded(tmp_path / "one.npz")


# Folders ---------------------------------------------------------------------------------------------------


def write_images(root: Path, count: int = 12, size: int = 8, mode: str = "L") -> Path:
    bunch = load_digits()
    for part, offset in (("train", 0), ("test", 500)):
        for label in ("0", "1"):
            folder = root / part / label
            folder.mkdir(parents=True)
            of_class = (bunch.target[offset:] == int(label)).nonzero()[0][:count] + offset
            for i in of_class:
                image = Image.fromarray((bunch.images[i] * 15).astype(np.uint8))
                image.resize((size, size)).convert(mode).save(folder / f"{i}.png")
    return root


def test_a_folder_of_images_is_a_data_set(tmp_path: Path) -> None:
    data = loaded(write_images(tmp_path / "shapes"))
    assert (data.name, data.classes, data.input_shape) == ("shapes", 2, (1, 8, 8))
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 24)
    assert data.test.labels.tolist() == [0] * 12 + [1] * 12
    first = sorted((tmp_path / "shapes" / "test" / "0").glob("*.png"))[0]
    expected = torch.from_numpy(np.asarray(Image.open(first)).copy()) / 255
    assert torch.allclose(data.test.images[0, 0], expected, atol=1e-7)


def test_colours_and_sizes_of_images(tmp_path: Path) -> None:
    root = write_images(tmp_path / "shapes", mode="RGB")
    assert loaded(root).input_shape == (3, 8, 8)
    assert loaded(root, colour="grey", size=5).input_shape == (1, 5, 5)
    Image.new("RGB", (9, 8)).save(root / "train" / "1" / "zz.png")
    with pytest.raises(BadInput, match=r"zz.png: 8x9 pixels, other images have 8x8; set data.size"):
        loaded(root)
    assert loaded(root, size=8).input_shape == (3, 8, 8)


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absent: there is no such folder"):
        loaded(tmp_path / "absent")
    with pytest.raises(BadInput, match=r"no folder .*train and .*test"):
        loaded(tmp_path)
    root = write_images(tmp_path / "shapes")
    (root / "test" / "2").mkdir()
    with pytest.raises(BadInput, match="classes 2 are in test only"):
        loaded(root)
    (root / "test" / "2").rmdir()
    (root / "train" / "0" / "x.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"x.png is no image that can be read"):
        loaded(root)
    (root / "train" / "0" / "x.png").unlink()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "train" / "0" / "x.png")
    with pytest.raises(BadInput, match="images of mode I;16 are not read; use 8 bits"):
        loaded(root)
