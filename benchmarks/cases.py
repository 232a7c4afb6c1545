# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is timed: a training step of one method on one network. No torch and no ctkd in here: any peer can read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Layers = list[list[Any]]
"""A network as plain data, which every contender builds by itself: see ``benchmarks.nets.build``."""

STEPS = ("ibp", "cc-ibp-1", "cc-ibp-8", "crown-ibp")
MODELS = ("cnn-small", "cnn7")
PRECISIONS = ("fp32", "mixed", "bf16")
SHAPES: dict[str, tuple[int, int, int]] = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
BATCHES = {"mnist": 256, "cifar10": 128}
RADII = {"mnist": 0.1, "cifar10": 2 / 255}
WIDTHS = {"cnn-small": 16, "cnn7": 64}
ALPHA = 0.5
"""Weight of the box in CC-IBP."""
L1, CLIP, LR = 1e-6, 10.0, 5e-4


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        step: ``ibp``; ``cc-ibp-1``, ``cc-ibp-8`` (attack steps); ``crown-ibp`` (pure relaxation, loss fusion).
        shape: of one image.
        eps: radius, pixel units.
        model: its name, for tables.
    """

    step: str
    model: str
    layers: Layers
    shape: tuple[int, ...]
    batch: int
    eps: float
    classes: int = 10
    seed: int = 0
    device: str = "cpu"

    @property
    def attack_steps(self) -> int:
        """0 for methods without an attack."""
        return int(self.step.rpartition("-")[2]) if self.step.startswith("cc-ibp-") else 0

    @property
    def step_size(self) -> float:
        """Of the attack, in parts of the radius."""
        return 10.0 if self.attack_steps == 1 else 0.25

    @property
    def size(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, batch {self.batch}"


def model_layers(model: str, shape: tuple[int, ...], classes: int = 10, width: int | None = None) -> Layers:
    """The layers of ctkd's ``cnn-small`` and ``cnn7``; a test compares them with the real ones."""
    width = width or WIDTHS[model]
    if model == "cnn7":
        pairs = ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1))
        return stack(shape, [(channels, 3, stride, 1) for channels, stride in pairs], 512 * width // 64 or 8, classes)
    return stack(shape, [(width, 4, 2, 1), (2 * width, 4, 2, 1)], max(8, 100 * width // 16), classes)


def stack(shape: tuple[int, ...], convolutions: list[tuple[int, int, int, int]], hidden: int, classes: int) -> Layers:
    """Convolutions (channels, kernel, stride, padding) and one hidden layer, each with batch norm and ReLU."""
    layers: Layers = []
    before, *size = shape
    for channels, kernel, stride, padding in convolutions:
        layers += [["conv", before, channels, kernel, stride, padding], ["norm2d", channels], ["relu"]]
        before, size = channels, [(pixels + 2 * padding - kernel) // stride + 1 for pixels in size]
    features = before * size[0] * size[1]
    layers += [["flatten"], ["linear", features, hidden], ["norm1d", hidden], ["relu"], ["linear", hidden, classes]]
    return layers


def without_norms(layers: Layers) -> Layers:
    return [layer for layer in layers if not layer[0].startswith("norm")]
