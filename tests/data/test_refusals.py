# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Files of published data sets that are missing, damaged or somebody else's: one line each, exit code 2."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ctkd.errors import BadInput

from .test_standard import load
from .trees import TREES, batch, idx, noise


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def with_batch(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        contents = {key.decode(): value for key, value in batch(20, 10, b"labels", 1).items()} | changes
        contents = {key: value for key, value in contents.items() if value is not None}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(contents, protocol=2))

    return change


def remove(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def write(path: str, contents: bytes | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).write_bytes(contents.encode() if isinstance(contents, str) else contents)

    return change


def picture(path: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(noise(*shape)).save(folder / path)


def archive(path: str, **arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / path, **arrays)  # type: ignore[arg-type]


TINY, SIGNS, FASHION = "tiny-imagenet-200", "GTSRB/Final_Training/Images", "FashionMNIST/raw"
WNID = "n00000900"
HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
BOMB = b"P6 50000 50000 255 "
CASES: list[tuple[str, Callable[[Path], None], str]] = [
    ("cifar10", remove("cifar-10-batches-py/data_batch_3"), r"data_batch_3 missing in .*cifar-10-batches-py; expected"),
    ("cifar10", remove("cifar-10-batches-py"), r"data_batch_1, .*test_batch missing in .* and .*https://www.cs.tor"),
    ("cifar10", with_batch("data_batch_2", labels=Runs()), r"data_batch_2 wants to run code .* \(posix.system\)"),
    (
        "cifar10",
        with_batch("data_batch_1", data=noise(20, 3071)),
        r"must be uint8 of shape \(count, 3072\), found.*3071",
    ),
    ("cifar10", with_batch("data_batch_1", data=np.zeros((20, 3072), np.float32)), r"found float32 of shape"),
    ("cifar10", with_batch("data_batch_1", data=[1]), r"must be uint8 .* found list"),
    ("cifar10", with_batch("data_batch_1", data=None), r"holds no data; found: batch_label, labels, filenames"),
    ("cifar10", with_batch("test_batch", labels=[10] * 20), r"test_batch: labels must lie in 0..9, found 10 to 10"),
    ("cifar10", with_batch("test_batch", labels=[0] * 19 + [-1]), r"labels must lie in 0..9, found -1 to 0"),
    ("cifar10", with_batch("test_batch", labels=[0] * 19), r"test_batch: 20 images and 19 labels"),
    ("cifar10", with_batch("test_batch", labels=["cat"] * 20), r"labels must be a list of integers"),
    ("cifar10", with_batch("test_batch", labels=[2**70] * 20), r"labels must lie in 0..9"),
    ("cifar10", write("cifar-10-batches-py/data_batch_5", b"\x80\x02}q"), r"data_batch_5 is truncated or damaged"),
    ("cifar100", remove("cifar-100-python/test"), r"test missing in .*cifar-100-python"),
    ("cifar100", write("cifar-100-python/train", pickle.dumps({"data": noise(2, 3072)})), r"holds no fine_labels"),
    ("fashion-mnist", remove(f"{FASHION}/train-labels-idx1-ubyte"), r"train-labels-idx1-ubyte.gz is missing; looked"),
    ("fashion-mnist", write(f"{FASHION}/t10k-images-idx3-ubyte.gz", b"no"), r"t10k-images.* is truncated or damaged"),
    ("fashion-mnist", write(f"{FASHION}/t10k-labels-idx1-ubyte", b"no"), r"is no IDX file of bytes with 1 dimension"),
    (
        "fashion-mnist",
        write(f"{FASHION}/t10k-images-idx3-ubyte.gz", gzip.compress(idx(noise(20, 28, 28))[:-1])),
        r"truncated or damaged: 15695 bytes for an array of shape \(20, 28, 28\)",
    ),
    (
        "fashion-mnist",
        write(f"{FASHION}/t10k-images-idx3-ubyte.gz", gzip.compress(idx(noise(20, 32, 32)))),
        r"images must have 28x28 pixels, found \(32, 32\)",
    ),
    ("fashion-mnist", write(f"{FASHION}/t10k-labels-idx1-ubyte", idx(noise(20))), r"labels must lie in 0..9, found"),
    ("gtsrb", remove(f"{SIGNS}/00012"), r"no class folder 00012 in .*Images"),
    ("gtsrb", remove("GT-final_test.csv"), r"GT-final_test.csv is missing; looked in"),
    ("gtsrb", remove("GTSRB/Final_Test"), r"Final_Test/Images missing in .*GTSRB; expected GTSRB/"),
    ("gtsrb", remove(f"{SIGNS}/00003/GT-00003.csv"), r"GT-00003.csv cannot be read: No such file"),
    ("gtsrb", remove(f"{SIGNS}/00003/00001_00001.ppm"), r"00001_00001.ppm cannot be read: No such file"),
    (
        "gtsrb",
        write(f"{SIGNS}/00003/00001_00001.ppm", b"P6 9 9 255\n"),
        r"00001_00001.ppm is no image that can be read",
    ),
    ("gtsrb", write("GTSRB/Final_Test/Images/00001.ppm", BOMB), r"00001.ppm is no image that can be read: .*bomb"),
    (
        "gtsrb",
        write(f"{SIGNS}/00003/GT-00003.csv", HEADER + "00000_00000.ppm;9;9;1;1;9;9;4\n"),
        r"the class 4, not its",
    ),
    (
        "gtsrb",
        write("GT-final_test.csv", HEADER + "00000.ppm;9;9;1;1;9;9;43\n"),
        r"line 2: ClassId must be 0..42, found '43'",
    ),
    ("gtsrb", write("GT-final_test.csv", HEADER + "00000.ppm;9\n"), r"line 2: ClassId must be 0..42, found ''"),
    (
        "gtsrb",
        write("GT-final_test.csv", HEADER + "../00000.ppm;9;9;1;1;9;9;3\n"),
        r"must be a file's name, found '../0",
    ),
    ("gtsrb", write("GT-final_test.csv", HEADER), r"GT-final_test.csv lists no images"),
    ("gtsrb", write("GT-final_test.csv", "Filename,ClassId\n"), r"must have the columns Filename and ClassId"),
    ("gtsrb", write("GT-final_test.csv", b"\xff\xfe"), r"GT-final_test.csv is no table"),
    ("tinyimagenet", remove(f"{TINY}/wnids.txt"), r"wnids.txt missing in .*tiny-imagenet-200"),
    ("tinyimagenet", remove(f"{TINY}/train/{WNID}"), rf"no class folder {WNID} in .*train"),
    ("tinyimagenet", remove(f"{TINY}/val/val_annotations.txt"), r"val/val_annotations.txt missing in"),
    ("tinyimagenet", remove(f"{TINY}/val/images/val_7.JPEG"), r"val_7.JPEG cannot be read: No such file"),
    ("tinyimagenet", write(f"{TINY}/wnids.txt", "n1\nn1\n"), r"wnids.txt must list 200 different classes"),
    ("tinyimagenet", write(f"{TINY}/wnids.txt", b"\xff"), r"wnids.txt is no text file"),
    (
        "tinyimagenet",
        write(f"{TINY}/val/val_annotations.txt", "val_1.JPEG\tn1\t0\n"),
        r"line 1: must be .* a class of wn",
    ),
    ("tinyimagenet", write(f"{TINY}/val/val_annotations.txt", ""), r"val_annotations.txt lists no images"),
    ("tinyimagenet", write(f"{TINY}/train/{WNID}/images/{WNID}_0.JPEG", b"no"), rf"{WNID}_0.JPEG is no image that can"),
    ("tinyimagenet", picture(f"{TINY}/train/{WNID}/images/{WNID}_0.JPEG", 64, 63, 3), r"63x64 pixels, must have 64x64"),
    ("imagenet64", remove("Imagenet64_val_npz/val_data.npz"), r"val_data missing in .*Imagenet64_train_npz, as NAME"),
    (
        "imagenet64",
        write("Imagenet64_val_npz/val_data.npz", b"no"),
        r"val_data.npz .*(no NumPy archive|cannot be read)",
    ),
    ("imagenet64", archive("Imagenet64_val_npz/val_data.npz", data=noise(1, 12288)), r"val_data.npz holds no labels"),
    (
        "imagenet64",
        archive("Imagenet64_val_npz/val_data.npz", data=noise(1, 12288), labels=np.array([0])),
        r"labels must lie in 1..1000, found 0 to 0",
    ),
    (
        "imagenet64",
        archive("Imagenet64_val_npz/val_data.npz", data=noise(1, 12288), labels=np.array([Runs()])),
        r"val_data.npz is no NumPy archive: Object arrays cannot be loaded",
    ),
]


@pytest.mark.parametrize(
    ("name", "change", "words"), CASES, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(CASES)]
)
def test_one_clear_line(
    tree: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ctkd_command: Callable[..., tuple[int, str, str]],
    name: str,
    change: Callable[[Path], None],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    shutil.copytree(tree(name), folder)
    change(folder)
    with pytest.raises(BadInput, match=words) as caught:
        load(name, folder)
    assert len(caught.value.messages) == 1
    assert "\n" not in str(caught.value)
    options = [f"--set=data.{key}={value}" for key, value in TREES[name][1].items()]
    code, out, errors = ctkd_command("train", "--dataset", name, "--data-dir", folder, "--eps", "0.01", *options)
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert not (tmp_path / "ran").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_mnist_is_not_fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    import ctkd.data.mnist as mnist

    TREES["fashion-mnist"][0](tmp_path)
    contents = (tmp_path / FASHION / "train-labels-idx1-ubyte").read_bytes()
    known = {**mnist.FILES, "train-labels-idx1-ubyte": (hashlib.sha256(contents).hexdigest(), "")}
    monkeypatch.setattr(mnist, "FILES", known)
    with pytest.raises(BadInput, match="these are MNIST's files; put Fashion-MNIST's in FashionMNIST/raw"):
        load("fashion-mnist", tmp_path)


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    TREES["gtsrb"][0](tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BadInput, match=r"reading images needs Pillow: pip install 'ctkd\[images\]'"):
        load("gtsrb", tmp_path)


@pytest.mark.parametrize("validation", [100, 5000])
def test_something_must_be_left_to_train_on(tmp_path: Path, validation: int) -> None:
    TREES["cifar10"][0](tmp_path)
    with pytest.raises(BadInput, match=rf"data.validation={validation}: must leave some of the 100 training images"):
        load("cifar10", tmp_path, validation=validation)
