# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Models, data sets, stages and teachers as strangers write them: good ones, and many that break the contract."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctkd.api import Box, Data, Noise, Split, TeacherContext
from ctkd.propagate import Network, interval_margins, propagate
from ctkd.train.finish import finalise
from ctkd.train.options import TrainOptions

from .broken_training import Plain

# Models --------------------------------------------------------------------------------------------------


class Layers(Plain):
    """A small network."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        width = int(torch.tensor(input_shape).prod())
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, classes))


class Moody(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x)
        return 0.5 * found if self.training else found


class TwoFaced(Layers):
    """Another function in training than in evaluation."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Moody(super().build(input_shape, classes))


class Spare(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


class Unused(Layers):
    """A layer that takes no part."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Spare(super().build(input_shape, classes))


class Tied(Layers):
    """Two layers with one weight."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        width = int(torch.tensor(input_shape).prod())
        first, second = nn.Linear(6, 6), nn.Linear(6, 6)
        second.weight = nn.Parameter(first.weight.detach())
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 6), first, nn.ReLU(), second, nn.Linear(6, classes))


class TenClasses(Layers):
    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return super().build(input_shape, 10)


class Fixed(nn.Module):
    """A layer that core cannot initialise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.randn(1))
        self.shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Unseeded(Layers):
    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(Fixed(), super().build(input_shape, classes))


# Data sets -----------------------------------------------------------------------------------------------


def stripes(count: int, seed: int) -> Split:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 4, 4, generator=rng) * 0.5
    images[torch.arange(count), 0, labels] += 0.5
    return Split(images, labels)


class Stripes(Plain):
    """Bright rows; augmentation flips."""

    def load(self, data_dir: Path | None) -> Data:
        def flip(x: Tensor, noise: Noise) -> Tensor:
            chosen = noise.uniform(x.new_empty(len(x))) < 0.5
            return torch.where(chosen[:, None, None, None], x.flip(3), x)

        return Data("stripes", stripes(60, 0), stripes(12, 1), stripes(12, 2), classes=3, augment=flip)


class Overlap(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        data = super().load(data_dir)
        return replace(data, test=Split(data.train.images[:12], data.train.labels[:12]))


class EightBit(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        data = super().load(data_dir)
        return replace(data, test=Split(data.test.images * 255, data.test.labels))


class Shuffled(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        data = super().load(data_dir)
        order = torch.randperm(len(data.train))
        return replace(data, train=Split(data.train.images[order], data.train.labels[order]))


class NoSuchClass(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        return replace(super().load(data_dir), classes=4)


class Brightens(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        return replace(super().load(data_dir), augment=lambda x, noise: x + 0.2)


class Overwrites(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        return replace(super().load(data_dir), augment=lambda x, noise: x.mul_(0.9))


class NeedsFile(Stripes):
    def load(self, data_dir: Path | None) -> Data:
        if data_dir is not None:
            (data_dir / "stripes.bin").read_bytes()
        return super().load(data_dir)


# Stages --------------------------------------------------------------------------------------------------


class Intervals(Plain):
    """Interval bounds."""

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        return interval_margins(network, propagate(network, None, box), labels)[0]


class HairAbove(Intervals):
    """A millionth too much."""

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        found = super().margins(network, box, labels)
        return (found + 1e-6).scatter(1, labels[:, None], 0.0)


class NeedsWidth(Intervals):
    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        width = (box.upper - box.lower).flatten(1).amax(1, keepdim=True)
        return super().margins(network, box, labels) * (width / width)


class Single(Intervals):
    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        return super().margins(network.to(torch.float32), box.to(torch.float32), labels)


class MarksWeights(Intervals):
    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        for node in network.nodes:
            for _, tensor in node.op.tensors() if node.op else ():
                tensor.requires_grad_()
        return super().margins(network, box, labels)


# Teachers ------------------------------------------------------------------------------------------------


class Quick(Plain):
    """Trained here on clean images for a moment."""

    trains = True
    features = True
    train: ClassVar[dict[str, Any]] = {}

    def obtain(self, context: TeacherContext) -> Network | None:
        usual = {"eps": 0.0, "ramp": 0.0, "warmup": 0.0, "epochs": 4, "lr": 0.01, "seed": context.seed}
        options = {**usual, "threads": context.threads, "device": context.device, "shi_weight": 0.0, **self.train}
        return context.fit(TrainOptions(**options), {"name": "pgd"}, {"name": "adversarial"})


class Absent(Quick):
    def obtain(self, context: TeacherContext) -> Network | None:
        return None


class Guesses(Quick):
    trains = False

    def obtain(self, context: TeacherContext) -> Network | None:
        return finalise(context.build_model(), context.data.input_shape)


class AnySeed(Quick):
    def obtain(self, context: TeacherContext) -> Network | None:
        self.train = {"seed": random.randrange(1000)}
        return super().obtain(context)


class SaysItTrainsNot(Quick):
    trains = False


class SaysNoFeatures(Quick):
    features = False


BROKEN: dict[str, tuple[type, ...]] = {
    "model": (TwoFaced, Unused, Tied, TenClasses, Unseeded),
    "dataset": (Overlap, EightBit, Shuffled, NoSuchClass, Brightens, Overwrites, NeedsFile),
    "stage": (HairAbove, NeedsWidth, Single, MarksWeights),
    "teacher": (Absent, Guesses, AnySeed, SaysItTrainsNot, SaysNoFeatures),
}
GOOD: dict[str, type] = {
    "model": Layers,
    "dataset": Stripes,
    "stage": Intervals,
    "teacher": Quick,
}
