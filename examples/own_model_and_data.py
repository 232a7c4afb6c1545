# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Your own network and your own data, without a plugin.

The network is a function of this module, the data are four arrays in a NumPy archive. On the command line, in the
folder of this file: ``ctkd train --model own_model_and_data:network --dataset bars.npz --eps 0.1``. About 5 seconds
on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from torch import nn

from ctkd.run import check, train


def network(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Any module of layers that ``ctkd check`` accepts; pixels come as they are, in [0, 1]."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * (height // 2) * (width // 2), 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


def bars(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8x8 images of one bar, lying (0) or standing (1): (count, 8, 8) uint8 and (count,) labels."""
    labels = random.integers(0, 2, count)
    images = random.integers(0, 60, (count, 8, 8))
    for image, label, place in zip(images, labels, random.integers(0, 8, count), strict=True):
        (image.T if label else image)[place] += 170
    return images.astype(np.uint8), labels


def main() -> None:
    found = check("own_model_and_data:network", (1, 8, 8), classes=2)
    print("layers:", ", ".join(layer["op"] for layer in found["layers"]))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "bars.npz"
        x_train, y_train = bars(800, random)
        x_test, y_test = bars(200, random)
        np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
        settings = {
            "data.name": str(file),
            "model.name": "own_model_and_data:network",
            "train.eps": 0.1,  # no default for data that ctkd does not know
            "bound.name": "crown-ibp",
            "teacher.name": "none",
            "train.epochs": 10,
            "train.ramp": 5,
            "train.batch_size": 64,
            "train.lr": 2e-3,
            "train.threads": 1,
        }
        _, summary = train(settings=settings, out=Path(scratch) / "run")
    print(f"natural {summary['natural_accuracy']:.1%}, certified {summary['certified_accuracy']:.1%}")


if __name__ == "__main__":
    main()
