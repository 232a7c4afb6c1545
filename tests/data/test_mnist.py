# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""MNIST's files: where they are looked for, and what is accepted. Small files with the real layout stand in."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

import ctkd.data.mnist as mnist
from ctkd.data.checks import check_data
from ctkd.data.digits import Digits
from ctkd.errors import BadInput
from ctkd.options import Options
from ctkd.randomness import Noise

from .trees import idx


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Four small files in DIR/MNIST/raw; their checksums replace the published ones."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 30, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (7, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 7, dtype=np.uint8),
    }
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sums = {}
    for name, array in arrays.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        sums[name] = (hashlib.sha256(idx(array)).hexdigest(), "")
    monkeypatch.setattr(mnist, "FILES", sums)
    return arrays


def source(validation: int = 10) -> mnist.MNIST:
    return mnist.MNIST(mnist.MNISTOptions(validation=validation))


def test_pixels_and_labels_are_the_files(tmp_path: Path, files: dict[str, np.ndarray]) -> None:
    data = source().load(tmp_path)
    check_data(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 7)
    assert data.input_shape == (1, 28, 28)
    np.testing.assert_array_equal((data.test.images[:, 0] * 255).round().numpy(), files["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.labels.numpy(), files["t10k-labels-idx1-ubyte"])


def test_validation_is_held_out_of_training_only(tmp_path: Path, files: dict[str, np.ndarray]) -> None:
    data = source().load(tmp_path)
    seen = {image.numpy().tobytes() for split in (data.train, data.validation) for image in split.images}
    assert len(seen) == 30
    again = source().load(tmp_path)
    assert again.validation.images.equal(data.validation.images)


def test_the_environment_names_the_folder_and_flat_and_unpacked_files_do(
    tmp_path: Path, files: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "MNIST" / "raw").iterdir():
        (flat / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    monkeypatch.setenv("CTKD_DATA", str(flat))
    assert len(source().load(None).test) == 7


def test_a_changed_file_is_refused(tmp_path: Path, files: dict[str, np.ndarray]) -> None:
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(7, np.uint8))))
    with pytest.raises(BadInput, match=r"t10k-labels-idx1-ubyte.gz has the wrong checksum"):
        source().load(tmp_path)


def test_without_a_folder_it_downloads_with_checksums(
    tmp_path: Path, files: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs
    import pooch

    asked = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        asked.append((url, known_hash))
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes((tmp_path / "MNIST" / "raw" / fname).read_bytes())
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    assert len(source().load(None).test) == 7
    assert all(url.endswith(".gz") and known.startswith("md5:") for url, known in asked)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs
    import pooch

    def fail(*arguments: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", fail)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    with pytest.raises(BadInput, match=r"cannot be downloaded \(OSError\); name a folder .* --data-dir or CTKD_DATA"):
        source().load(None)


def test_digits_split_is_fixed_and_complete() -> None:
    data = Digits(Options()).load(None)
    check_data(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (1257, 180, 360)
    assert data.test.labels.bincount().min() >= 25
    seen = {image.numpy().tobytes() for split in (data.train, data.validation, data.test) for image in split.images}
    assert len(seen) == 1797


def test_only_training_batches_are_shifted(tmp_path: Path, files: dict[str, np.ndarray]) -> None:
    assert source().load(tmp_path).augment is None
    data = mnist.MNIST(mnist.MNISTOptions(validation=10, shift=1)).load(tmp_path)
    assert data.augment is not None
    np.testing.assert_array_equal((data.test.images[:, 0] * 255).round().numpy(), files["t10k-images-idx3-ubyte"])
    noise = Noise(0, "shift", samples=torch.arange(20))
    moved = data.augment(data.train.images, noise)
    inner = torch.zeros_like(moved, dtype=torch.bool)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            crop = pad(data.train.images, [1] * 4)[:, :, dy : dy + 28, dx : dx + 28]
            inner |= (moved == crop).all((1, 2, 3), keepdim=True)
    assert inner.all()
