# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Small networks of the forms that auto_LiRPA must bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ctkd.boxes import Box, perturbation_box
from ctkd.propagate import Network, margins_of, trace

CLASSES, BATCH = 4, 5
Net = Callable[[], tuple[nn.Module, tuple[int, ...]]]


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Joined(nn.Module):
    """Two branches and what is done with their values."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.join, self.left, self.right = join, left, right

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


class Normalised(nn.Module):
    """A buffer of any shape subtracted, another divided by."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(shape))
        self.register_buffer("spread", torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


def mlp(activation: Callable[[], nn.Module]) -> Net:
    return lambda: (
        nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, CLASSES)),
        (5,),
    )


def cnn(*layers: nn.Module) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(CLASSES)), (2, 6, 6)


def batch_norm() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [Normalised(2, 1, 1), nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2)]
    layers += [nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, CLASSES)), (2, 6, 6)


def residual() -> tuple[nn.Module, tuple[int, ...]]:
    branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    return cnn(nn.ReLU(), Joined(torch.add, branch, nn.Identity()), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def scales() -> tuple[nn.Module, tuple[int, ...]]:
    """Constants of every shape, behind activations, and average pooling with padding."""
    layers = [nn.ReLU(), nn.BatchNorm2d(4), nn.AvgPool2d(2, 2, 1), nn.ReLU(), Normalised(4, 4, 4), nn.ReLU()]
    return cnn(*layers, nn.Flatten(), nn.BatchNorm1d(64))


def windows() -> tuple[nn.Module, tuple[int, ...]]:
    """Strides, dilation, groups, kernels and pools of two sizes that leave a rest, and a reshape into images."""
    layers = [nn.ReLU(), nn.Conv2d(4, 8, (2, 3), (2, 1), (1, 0), groups=2), nn.ReLU()]
    layers += [nn.Conv2d(8, 4, 2, dilation=2), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Flatten(), nn.LazyLinear(8)]
    return cnn(*layers, nn.ReLU(), Apply(lambda x: x.view(-1, 2, 2, 2)), nn.Conv2d(2, 3, 2), nn.ReLU())


# ctkd's engine has the same relaxations of these.
EQUAL: dict[str, Net] = {
    "mlp": mlp(nn.ReLU),
    "batch norm": batch_norm,
    "residual": residual,
    "scales": scales,
    "windows": windows,
    "max pool": lambda: cnn(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.ReLU()),
    "no last layer": lambda: (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES), nn.ReLU()), (5,)),
}
# And others of these.
OTHERS: dict[str, Net] = {"leaky": mlp(lambda: nn.LeakyReLU(0.1)), "sigmoid": mlp(nn.Sigmoid), "tanh": mlp(nn.Tanh)}
# Its engine refuses these.
FOREIGN: dict[str, Net] = {
    "abs": mlp(lambda: Apply(torch.abs)),
    "exp": mlp(lambda: Apply(torch.exp)),
    "silu": mlp(nn.SiLU),
    "square": mlp(lambda: Apply(lambda x: x**2)),
    "product": lambda: cnn(
        nn.ReLU(), Joined(torch.mul, nn.Conv2d(4, 3, 3), nn.Sequential(nn.Conv2d(4, 3, 3), nn.Sigmoid()))
    ),
}
SOFTPLUS = {"softplus": mlp(nn.Softplus)}
"""auto_LiRPA has intervals of it only."""


def module(net: Net, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """With random weights and statistics, in float64, in evaluation mode."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        made, shape = net()
        made.eval()(torch.zeros(1, *shape))  # lazy layers
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.3, 0.3)
                layer.running_var.uniform_(0.5, 2)
                nn.init.uniform_(layer.weight, -1, 1)
                nn.init.uniform_(layer.bias, -1, 1)
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.data *= 2
    return made.double(), shape


def network(net: Net, seed: int = 0) -> Network:
    made, shape = module(net, seed)
    return trace(made, shape, functions=True).bind().detach()


def batch(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(BATCH, *shape, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def cases(net: Net) -> Iterator[tuple[Network, Box, Tensor]]:
    """Networks, boxes of several sizes, labels."""
    for seed, eps in enumerate((0.02, 0.1, 0.3)):
        found = network(net, seed)
        x, labels = batch(found.input_shape, seed)
        yield found, perturbation_box(x, eps), labels


@torch.no_grad()
def least_margins(network: Network, box: Box, labels: Tensor, points: int = 500) -> Tensor:
    """The smallest margins at random points and corners of each box."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(points, *box.lower.shape, dtype=box.lower.dtype, generator=generator)
    place[: points // 2] = place[: points // 2].round()
    x = (box.lower + place * (box.upper - box.lower)).flatten(0, 1)
    return margins_of(network(x), labels.repeat(points)).reshape(points, len(labels), -1).amin(0)
