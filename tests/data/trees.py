# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Small trees of files with the layout of the published data sets, filled with random images."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image


class _AsPython2(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes bytes as Python 2 wrote strings, as the published CIFAR files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def as_python2(value: Any) -> bytes:
    out = io.BytesIO()
    _AsPython2(out, protocol=2).dump(value)
    return out.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def fashion_mnist(folder: Path) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(noise(count, 28, 28, seed=count))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))


def batch(count: int, classes: int, key: bytes, seed: int) -> dict[bytes, Any]:
    labels = [i % classes for i in range(count)]
    return {b"batch_label": b"small", key: labels, b"data": noise(count, 3072, seed=seed), b"filenames": [b"a.png"]}


def cifar10(folder: Path) -> None:
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (place / name).write_bytes(as_python2(batch(20, 10, b"labels", i)))


def cifar100(folder: Path) -> None:
    place = folder / "cifar-100-python"
    place.mkdir(parents=True)
    for i, (name, count) in enumerate((("train", 300), ("test", 100))):
        (place / name).write_bytes(as_python2({**batch(count, 100, b"fine_labels", i), b"coarse_labels": [0] * count}))


def gtsrb(folder: Path) -> None:
    """Two tracks of two images in each class; one test image of each class."""
    training, test = folder / "GTSRB" / "Final_Training" / "Images", folder / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    columns = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    truth = columns
    for label in range(43):
        place = training / f"{label:05d}"
        place.mkdir(parents=True)
        table = columns
        for i in range(4):
            name, size = f"{i // 2:05d}_{i % 2:05d}.ppm", (16 + (label + i) % 9, 20)
            Image.fromarray(noise(*size, 3, seed=4 * label + i)).save(place / name)
            table += f"{name};{size[1]};{size[0]};1;1;9;9;{label}\n"
        (place / f"GT-{label:05d}.csv").write_text(table)
        Image.fromarray(noise(40, 32, 3, seed=1000 + label)).save(test / f"{label:05d}.ppm")
        truth += f"{label:05d}.ppm;32;40;1;1;9;9;{label}\n"
    (folder / "GT-final_test.csv").write_text(truth)


def tinyimagenet(folder: Path) -> None:
    """Three training images in each class, the last of them grey; one official validation image."""
    root = folder / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    names = [f"n{1000 - i:08d}" for i in range(200)]  # not in the order of their names, as in the published file
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for i, name in enumerate(names):
        place = root / "train" / name / "images"
        place.mkdir(parents=True)
        for j in range(3):
            shape = (64, 64) if j == 2 else (64, 64, 3)
            Image.fromarray(noise(*shape, seed=3 * i + j)).save(place / f"{name}_{j}.JPEG")
        Image.fromarray(noise(64, 64, 3, seed=1000 + i)).save(root / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def imagenet64(folder: Path) -> None:
    """A thousand classes once in ten training files, half of them pickles; ten validation images."""
    parts = [folder / name for name in ("Imagenet64_train_npz", "Imagenet64_train_part2", "Imagenet64_val_npz")]
    for part in parts:
        part.mkdir(parents=True)
    for i in range(10):
        batch: dict[str, Any] = {"data": noise(101, 12288, seed=i)}
        labels = [*range(100 * i + 1, 100 * i + 101), 1]
        name = f"train_data_batch_{i + 1}"
        if i < 5:
            np.savez(parts[0] / f"{name}.npz", labels=np.array(labels), **batch)
        else:
            mean = np.zeros(12288, np.float32)
            (parts[1] / name).write_bytes(pickle.dumps({**batch, "labels": labels, "mean": mean}, protocol=i - 5))
    np.savez(parts[2] / "val_data.npz", data=noise(10, 12288, seed=99), labels=np.arange(1, 1001, 100))


TREES: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "fashion-mnist": (fashion_mnist, {"validation": 20}),
    "cifar10": (cifar10, {"validation": 20}),
    "cifar100": (cifar100, {"validation": 50}),
    "gtsrb": (gtsrb, {"validation": 0.5}),
    "tinyimagenet": (tinyimagenet, {"validation": 10}),
    "imagenet64": (imagenet64, {"validation": 5}),
}
"""For each data set the function that writes its tree, and options that fit so few images."""
