# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Tiny classifiers and batches that checks are made on: the same ones on every run."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctkd.boxes import Box
from ctkd.propagate import Graph, Network, trace
from ctkd.randomness import generator
from ctkd.train.finish import finalise
from ctkd.train.initialise import default_initialise

SHAPE, CLASSES, BATCH = (1, 6, 6), 4, 8
STEPS, TRAINING_BATCH = 40, 32


class Residual(nn.Module):
    """A branch beside the identity."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = x + self.branch(x)
        return joined


def _narrow() -> nn.Module:
    """One neuron wide, so that intervals are exact: a bound that is too tight by little shows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, CLASSES))


def _plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def _batch_norm() -> nn.Module:
    # Biases right before batch norm change nothing, so there are none.
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )


def _residual() -> nn.Module:
    branch = (
        nn.Conv2d(3, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, padding=1),
    )
    first = (nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    last = (nn.Flatten(), nn.Linear(27, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    return nn.Sequential(*first, Residual(*branch), nn.ReLU(), *last)


def _pooled() -> nn.Module:
    last = (nn.Flatten(), nn.Linear(27, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *last)


def _curved() -> nn.Module:
    layers = (nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, CLASSES))
    return nn.Sequential(nn.Flatten(), *layers)


NETS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)),
    "narrow": _narrow,
    "plain": _plain,
    "batch norm": _batch_norm,
    "residual": _residual,
    "max pooling": _pooled,
    "sigmoid and tanh": _curved,
}
"""By the name that messages use. On the first two, interval bounds of the margins are exact."""
TRAINABLE = ("plain", "batch norm", "residual", "max pooling", "sigmoid and tanh")
"""Nets in which every parameter has a gradient."""


def build(name: str, *, seed: int = 0, trained: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A net in training mode; its batch-norm statistics have seen data. Trained ones fit the toy labels a little."""
    module = _empty(name)
    module.load_state_dict(_state(name, seed, trained))
    return module.to(dtype).train()


def traced(name: str, *, trained: bool = False, dtype: torch.dtype = torch.float64) -> Graph:
    """A net in training mode, traced by ctkd's own engine. One object serves all checks: its state is reset."""
    graph = _graph(name, dtype)
    graph.module.load_state_dict(_state(name, 0, trained))
    graph.module.train().requires_grad_().zero_grad()
    return graph


@functools.cache
def _graph(name: str, dtype: torch.dtype) -> Graph:
    return trace(build(name, dtype=dtype), SHAPE)


def _empty(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from global random numbers
        return NETS[name]().double()


@functools.cache
def _state(name: str, seed: int, trained: bool) -> dict[str, Tensor]:
    module = _empty(name)
    default_initialise(module, generator(seed, f"conformance-{name}"))
    if name == "narrow":
        _centre(module)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for i in range(STEPS):
        x, labels = batch(seed=100 + i, size=TRAINING_BATCH)
        with torch.enable_grad():
            loss = cross_entropy(module(x), labels)
        if trained:
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return module.state_dict()


@torch.no_grad()
def _centre(module: nn.Module) -> None:
    """Put the first ReLU's threshold amid the inputs, so that it is unstable over boxes."""
    assert isinstance(module, nn.Sequential)
    first, second = module[1], module[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.bias is not None
    assert second.bias is not None
    first.bias.copy_(-0.5 * first.weight.sum(1))
    second.weight.fill_(1.5)
    second.bias.fill_(-0.05)


def network(name: str, *, seed: int = 0, trained: bool = False, dtype: torch.dtype = torch.float64) -> Network:
    """A net as it is certified: folded, stored in float32, then in the dtype of the bounds."""
    return _folded(name, seed, trained).map(Tensor.clone).to(dtype)


@functools.cache
def _folded(name: str, seed: int, trained: bool) -> Network:
    return finalise(build(name, seed=seed, trained=trained), SHAPE)


def student(name: str) -> Network:
    """A net's current parameters as a network, as a bound method's ``check`` is given it."""
    return traced(name).bind()


def batch(dtype: torch.dtype = torch.float64, *, seed: int = 0, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Images, some of their pixels exactly 0 or 1, and labels that a linear rule gives them."""
    draw = generator(seed, "conformance-images")
    x = (1.4 * torch.rand(size, *SHAPE, generator=draw) - 0.2).clamp(0, 1)
    rule = torch.randn(36, CLASSES, generator=generator(0, "conformance-rule"))
    return x.to(dtype), ((x.flatten(1) - 0.5) @ rule).argmax(1)


def trial_points(network: Network, box: Box, labels: Tensor) -> Tensor:
    """Points that try to leave the bounds: (count, batch, *input_shape), all inside the box.

    The centre, uniform points, corners, and descents on every margin and on the cross entropy from centre and corner.
    """
    draw = generator(0, "conformance-points")
    shape, width = box.lower.shape, box.upper - box.lower
    noise = torch.rand((12, *shape), dtype=box.lower.dtype, generator=draw)
    noise[6:] = noise[6:].round()
    found = [box.clamp(box.lower + width * noise), ((box.lower + box.upper) / 2).unsqueeze(0)]
    goals = network.classes + 1
    point = torch.stack([found[1][0], found[0][6]]).repeat_interleave(goals, 0)  # (2 * goals, batch, *shape)
    for size in (1.0, 1.0, 0.5, 0.5, 0.25, 0.1, 0.1, 0.03):
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = network(point.flatten(0, 1)).reshape(*point.shape[:2], -1)
            margins = logits.gather(2, labels[None, :, None].expand(len(point), -1, 1)) - logits
            likelihood = logits.log_softmax(2).gather(2, labels[None, :, None].expand(len(point), -1, 1))
            values = torch.cat([margins, likelihood], 2)  # (2 * goals, batch, goals)
            chosen = torch.arange(goals).repeat(2)
            value = values[torch.arange(2 * goals), :, chosen]
            (gradient,) = torch.autograd.grad(value.sum(), point)
        point = box.clamp(point.detach() - size * width * gradient.sign())
        found.append(point)
    return box.clamp(torch.cat(found))


@torch.no_grad()
def values_at(network: Network, points: Tensor, *nodes: int) -> tuple[Tensor, ...]:
    """Values of nodes at trial points, each (count, batch, *shape)."""
    size = points.shape[:2]
    found = network.evaluate(points.flatten(0, 1), *nodes)
    return tuple(value.reshape(*size, *value.shape[1:]) for value in found)


def extreme_margins(network: Network, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest margin that the points have, each (batch, classes)."""
    (logits,) = values_at(network, points, network.output)
    margins = logits.gather(2, labels[None, :, None].expand(len(points), -1, 1)) - logits
    return margins.amin(0), margins.amax(0)


def least_margins(network: Network, points: Tensor, labels: Tensor) -> Tensor:
    """The smallest margin that the points have, (batch, classes)."""
    return extreme_margins(network, points, labels)[0]


def largest_loss(network: Network, points: Tensor, labels: Tensor) -> Tensor:
    """The largest cross entropy that the points have, (batch,)."""
    (logits,) = values_at(network, points, network.output)
    own = logits.gather(2, labels[None, :, None].expand(len(points), -1, 1)).squeeze(2)
    return (logits.logsumexp(2) - own).amax(0)


def above(bound: Tensor, value: Tensor, tolerance: float = 1e-9) -> Tensor:
    """By how much a bound from below exceeds the value, beyond rounding; 0 where it does not."""
    gap = bound - value - tolerance * (1 + value.abs())
    return gap.clamp(min=0)
