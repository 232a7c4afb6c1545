# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Small random classifiers with boxes, and points that try to leave the bounds. Everything in float64."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import hypothesis
import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctkd.boxes import Box, perturbation_box
from ctkd.propagate import Graph, Network, margins_of, trace

Pick = Callable[[Sequence[Any]], Any]

CLASSES = 3
KINDS = ("mlp", "conv", "residual", "curved", "pooled")


def quick(max_examples: int) -> Any:
    """Settings of every property test: the same examples on every run."""
    return hypothesis.settings(max_examples=max_examples, deadline=None, derandomize=True, database=None)


FLATTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, start_dim=1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
    "contiguous": lambda x: x.contiguous().view(-1, x.shape[1:].numel()),
    "twice": lambda x: x.reshape(x.size()[0], x.size(1), -1).flatten(1),
}


# Beside ReLU. Slopes and forms differ on purpose.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.3),
    "leaky function": lambda: Apply(lambda x: F.leaky_relu(x, 0.05)),
    "sigmoid": nn.Sigmoid,
    "sigmoid method": lambda: Apply(lambda x: x.sigmoid()),
    "tanh": nn.Tanh,
    "tanh function": lambda: Apply(torch.tanh),
}


class Apply(nn.Module):
    """A function as a layer, so that it stands in a Sequential and is still traced through."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Normalise(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Residual(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.branch, self.shortcut, self.join = branch, shortcut, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.branch(x), self.shortcut(x))


def _normalisation(pick: Pick, shape: tuple[int, ...]) -> list[nn.Module]:
    per_channel = (shape[0], *[1] * (len(shape) - 1))
    choices: dict[str, Callable[[], list[nn.Module]]] = {
        "none": list,
        "buffers": lambda: [Normalise(torch.rand(per_channel), 0.2 + torch.rand(1, *per_channel))],
        "numbers": lambda: [Apply(lambda x: (x - 0.4) / 0.3)],
        "reversed": lambda: [Apply(lambda x: 2 * (1.0 - x) + 0.1)],
    }
    return choices[pick(tuple(choices))]()


def _tail(pick: Pick, width: int) -> list[nn.Module]:
    """From flat features to logits; not every network ends in a linear layer."""
    layers: list[nn.Module] = []
    if pick((True, False)):
        layers += [nn.Linear(width, 5, bias=pick((True, False)))]
        layers += [nn.BatchNorm1d(5, affine=pick((True, False)))] if pick((True, False)) else []
        layers += [nn.ReLU()]
        width = 5
    layers += [nn.Linear(width, CLASSES)]
    ends: dict[str, list[nn.Module]] = {
        "linear": [],
        "scaled": [Apply(lambda x: -x / 2)],
        "relu": [nn.ReLU()],
    }
    return layers + ends[pick(("linear", "linear", "scaled", "relu"))]


def mlp(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    shape = pick(((4,), (2, 3), (1, 3, 2)))
    layers = _normalisation(pick, shape) + ([Apply(FLATTEN[pick(tuple(FLATTEN))])] if len(shape) > 1 else [])
    width = prod(shape)
    for _ in range(pick((1, 2))):
        layers += [nn.Linear(width, 6)]
        layers += [nn.BatchNorm1d(6)] if pick((True, False)) else []
        layers += [Apply(pick((torch.relu, F.relu)))]
        width = 6
    return nn.Sequential(*layers, *_tail(pick, width)), shape


def conv(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    shape = (2, 6, 5)
    layers = _normalisation(pick, shape)
    kernel, padding = pick(((1, 0), (2, 1), (3, 1), ((2, 3), (0, 1)), ((3, 1), "same"), (3, "valid")))
    stride = 1 if padding == "same" else pick((1, 2, (2, 1)))
    dilation = pick((1, 2, (1, 2)))
    groups = pick((1, 2))
    layers += [nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias=pick((True, False)))]
    layers += [nn.BatchNorm2d(4)] if pick((True, False)) else []
    layers += [nn.ReLU()]
    pools: dict[str, list[nn.Module]] = {
        "none": [],
        "overlapping": [nn.AvgPool2d(2, 1, 1)],
        "flat": [nn.AvgPool2d((1, 2), stride=(1, 1), padding=(0, 1))],
        "strided": [Apply(lambda x: F.avg_pool2d(x, 3, stride=2, padding=1))],
    }
    layers += pools[pick(tuple(pools))]
    if pick((True, False)):
        layers += [nn.Conv2d(4, 4, 2, padding=1, groups=pick((1, 2, 4))), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [Apply(FLATTEN[pick(tuple(FLATTEN))])]
    return _with_tail(pick, layers, shape), shape


def residual(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    shape = (2, 4, 3)
    layers, before = _normalisation(pick, shape), 2
    for _ in range(pick((1, 2))):
        stride, after = pick(((1, before), (1, 3), (2, 3)))
        branch = nn.Sequential(
            nn.Conv2d(before, 3, 3, stride, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, after, 3, 1, 1)
        )
        projection = nn.Sequential(nn.Conv2d(before, after, 1, stride), nn.BatchNorm2d(after))
        shortcut = nn.Identity() if (stride, after) == (1, before) else projection
        join = pick((lambda a, b: a + b, torch.add, lambda a, b: a - b, lambda a, b: a + b + b))
        layers += [Residual(branch, shortcut, join), *([nn.ReLU()] if pick((True, False)) else [])]
        before = after
    return _with_tail(pick, [*layers, nn.Flatten()], shape), shape


def curved(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    """Fully connected, with activations other than ReLU, some within a branch."""
    shape, names = (4,), tuple(ACTIVATIONS)
    layers, width = _normalisation(pick, shape), 4
    for _ in range(pick((1, 2))):
        layers += [nn.Linear(width, 6), *([nn.BatchNorm1d(6)] if pick((True, False)) else [])]
        layers += [ACTIVATIONS[pick(names)]()]
        if pick((True, False)):
            branch = nn.Sequential(nn.Linear(6, 6), ACTIVATIONS[pick(names)]())
            layers += [Residual(branch, nn.Identity(), torch.add)]
        width = 6
    return nn.Sequential(*layers, *_tail(pick, width)), shape


def pooled(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    """Max pooling of the input, of features or of an activation's result; average pooling of what is left."""
    shape = (2, 6, 5)
    pools: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: nn.MaxPool2d(2),
        "overlapping": lambda: Apply(lambda x: F.max_pool2d(x, 3, stride=1)),
        "padded": lambda: nn.MaxPool2d((2, 3), stride=(2, 1), padding=(1, 1)),
        "gaps": lambda: Apply(lambda x: torch.max_pool2d(x, 2, 3)),
    }
    names = tuple(pools)
    layers = _normalisation(pick, shape)
    layers += [pools[pick(names)]()] if pick((True, False, False)) else []
    layers += [nn.Conv2d(2, 3, 2, padding=1)]
    pair = [pick((nn.ReLU, *ACTIVATIONS.values()))(), pools[pick(names)]()]
    layers += pair if pick((True, False)) else pair[::-1]
    layers += [nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.MaxPool2d(2, 1, 1)] if pick((True, False)) else []
    layers += [nn.AdaptiveAvgPool2d(1)] if pick((True, False)) else []
    return _with_tail(pick, [*layers, nn.Flatten()], shape), shape


def _with_tail(pick: Pick, layers: list[nn.Module], shape: tuple[int, ...]) -> nn.Module:
    body = nn.Sequential(*layers)
    with torch.no_grad():
        width = body.eval()(torch.zeros(2, *shape)).shape[1]
    return nn.Sequential(*layers, *_tail(pick, width))


def randomise(module: nn.Module) -> nn.Module:
    """Statistics and scales as after training (scales of both signs), weights large enough for wide bounds."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.3, 2)
                if layer.affine:
                    layer.weight.normal_()
                    layer.bias.normal_()
            elif isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(1.5)
    return module


GENERATORS: dict[str, Callable[[Pick], tuple[nn.Module, tuple[int, ...]]]] = {
    "mlp": mlp,
    "conv": conv,
    "residual": residual,
    "curved": curved,
    "pooled": pooled,
}


@dataclass(frozen=True, eq=False)
class Case:
    """A network in evaluation mode, a batch with labels, and a radius."""

    module: nn.Module
    x: Tensor
    labels: Tensor
    eps: float

    @cached_property
    def graph(self) -> Graph:
        return trace(self.module, tuple(self.x.shape[1:]))

    @cached_property
    def network(self) -> Network:
        return self.graph.bind().detach()

    @cached_property
    def box(self) -> Box:
        return perturbation_box(self.x, self.eps)

    def margins(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return margins_of(self.module(x), self.labels)


def make(kind: str, seed: int, pick: Pick | None = None, batch: int = 2) -> Case:
    """The case of one kind and seed; without ``pick`` its structure follows from the seed as well."""
    pick = random.Random(seed).choice if pick is None else pick
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        module, shape = GENERATORS[kind](pick)
        module = randomise(module).double().eval()
        x = torch.rand(batch, *shape, dtype=torch.float64)
        x = torch.where(torch.rand_like(x) < 0.2, x.round(), x)  # some pixels at the border of the pixel range
        return Case(module, x, torch.randint(CLASSES, (batch,)), pick((0.01, 0.05, 0.2)))
    finally:
        torch.set_rng_state(state)


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> Case:
    def pick(choices: Sequence[Any]) -> Any:
        return choices[draw(st.integers(0, len(choices) - 1))]

    return make(pick(kinds), draw(st.integers(0, 2**16)), pick)


# Points ------------------------------------------------------------------------------------------------


def points(case: Case, seed: int = 0, steps: tuple[float, ...] = (2.0, 0.5, 0.25)) -> Tensor:
    """Points of the boxes, (points, batch, *input_shape): random ones, corners, and results of attacks.

    The attacks descend on every margin, and climb and descend on some inputs of every activation and pool.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = case.box.lower, case.box.upper
    share = torch.rand(12, *low.shape, generator=generator, dtype=low.dtype)
    share[6:] = share[6:].round()
    found = [case.box.clamp(low + share * (high - low))]

    network, batch = case.network, low.shape[0]
    sources = [network.nodes[i].inputs[0] for i in network.nonlinear]
    chosen = [torch.randint(prod(network.nodes[s].shape), (3,), generator=generator) for s in sources]

    def goals(x: Tensor, labels: Tensor) -> Tensor:
        *inner, logits = network.evaluate(x, *sources, network.output)
        some = [value.flatten(1)[:, which] for value, which in zip(inner, chosen, strict=True)]
        return torch.cat([margins_of(logits, labels), *some, *(-value for value in some)], 1)

    count = goals(case.x, case.labels).shape[1]
    which = torch.arange(count).repeat_interleave(batch)
    labels = case.labels.repeat(count)
    low, high = (bound.repeat(count, *[1] * (bound.dim() - 1)) for bound in (low, high))
    x = (low + high) / 2
    for step in steps:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(goals(x, labels).gather(1, which[:, None]).sum(), x)
        x = torch.minimum(torch.maximum(x - step * (high - low) / 2 * gradient.sign(), low), high).detach()
        found.append(x.unflatten(0, (count, batch)))
    return torch.cat(found)


def values_at(case: Case, x: Tensor, *nodes: int) -> list[Tensor]:
    """Values of nodes at (points, batch, ...), each (points, batch, *shape of the node)."""
    with torch.no_grad():
        return [value.unflatten(0, x.shape[:2]) for value in case.network.evaluate(x.flatten(0, 1), *nodes)]


def margins_at(case: Case, x: Tensor) -> Tensor:
    """Margins of the module itself at (points, batch, ...)."""
    with torch.no_grad():
        logits = case.module(x.flatten(0, 1))
    return margins_of(logits, case.labels.repeat(x.shape[0])).unflatten(0, x.shape[:2])


def at_least(value: Tensor, bound: Tensor, relative: float = 1e-9) -> None:
    """Fails where a value falls below its bound by more than rounding in float64 explains."""
    assert torch.isfinite(bound).all()
    slack = relative * (1 + bound.abs())
    worst = (bound - slack - value).max().item()
    assert worst <= 0, f"a point lies outside its bound by {worst:.3g}"


def close(left: Tensor, right: Tensor, relative: float = 1e-9) -> None:
    torch.testing.assert_close(left, right, rtol=relative, atol=relative)
