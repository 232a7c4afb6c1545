# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bounds against auto_LiRPA 0.3, in float64. Where it is absent these tests fail and say what to run."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ctkd_autolirpa import compat
from torch import Tensor, nn

from ctkd.propagate import crown_pre_activation, interval_margins, propagate, relaxed_margins

from . import dense
from .nets import Case, Residual, close, randomise


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)
    ), (5,)


def mlp_norm() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 7),
        nn.BatchNorm1d(7),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Linear(7, 4)), (1, 2, 3)


def cnn() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 4)), (2, 5, 5)


def cnn_norm() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, stride=2),
    ]
    layers += [
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 4),
    ]
    return nn.Sequential(*layers), (2, 4, 4)


def residual() -> tuple[nn.Module, tuple[int, ...]]:
    def branch(before: int, stride: int) -> nn.Module:
        first = [nn.Conv2d(before, 3, 3, stride, 1), nn.BatchNorm2d(3), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3))

    blocks = [Residual(branch(2, 2), nn.Conv2d(2, 3, 1, 2), torch.add), nn.ReLU()]
    blocks += [Residual(branch(3, 1), nn.Identity(), torch.add), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(12, 4)), (2, 4, 4)


def leaky() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(64, 6)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.3), nn.Linear(6, 4)), (2, 4, 4)


def curved() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 6), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(6, 4)), (5,)


def max_pooled() -> tuple[nn.Module, tuple[int, ...]]:
    """Windows that do not overlap: others are not relaxed there."""
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2, padding=1), nn.MaxPool2d(3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(3, 4)), (2, 5, 5)


def averaged() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)]
    return nn.Sequential(*layers), (2, 4, 4)


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "mlp": mlp,
    "mlp with batch norm": mlp_norm,
    "cnn": cnn,
    "cnn with batch norm": cnn_norm,
    "residual": residual,
}
# auto_LiRPA's relaxation of max pooling is ours; its CROWN chooses other inputs of a pool to bound again.
POOLED = {"max pooling": max_pooled, "global average pooling": averaged}
# Intervals alone: its lines are others. For a leaky ReLU it takes slope 1 where the chord is steeper than 1/2; for
# sigmoid and tanh its tangents touch elsewhere.
OTHER_LINES = {"leaky": leaky, "sigmoid and tanh": curved}


def build(name: str, seed: int, eps: float) -> Case:
    torch.manual_seed(seed)
    module, shape = (NETS | POOLED | OTHER_LINES)[name]()
    x = torch.rand(3, *shape, dtype=torch.float64)
    labels = torch.tensor([random.Random(seed + i).randrange(4) for i in range(3)])
    return Case(randomise(module).double().eval(), x, labels, eps)


def reference(case: Case, *methods: str, margins: bool = True) -> list[tuple[Tensor, Tensor]]:
    """auto_LiRPA's lower and upper bounds of the margins (or the logits) by each method."""
    lirpa = compat.load()
    unit = torch.eye(4, dtype=torch.float64)
    specification = unit[case.labels].unsqueeze(1) - unit if margins else unit.repeat(3, 1, 1)
    # The default type: its relaxation of max pooling makes tensors of it.
    with compat.quiet(torch.float64):
        bounded = lirpa.BoundedModule(case.module, case.x, device="cpu")
        bounded.eval()
        ball = lirpa.PerturbationLpNorm(norm=np.inf, x_L=case.box.lower, x_U=case.box.upper)
        x = lirpa.BoundedTensor(case.x, ball)
        with torch.no_grad():
            return [bounded.compute_bounds(x=(x,), C=specification, method=method) for method in methods]


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("name", [*NETS, *POOLED])
def test_intervals_and_crown_ibp_are_equal(name: str, eps: float) -> None:
    for seed in range(3):
        case = build(name, seed, eps)
        (interval, _), (crown_ibp, _) = reference(case, "IBP", "CROWN-IBP")
        flow = propagate(case.network, None, case.box)
        close(interval_margins(case.network, flow, case.labels)[0], interval)
        close(relaxed_margins(case.network, flow.pre_activation, case.box, case.labels), crown_ibp)
        ((lower, upper),) = reference(case, "IBP", margins=False)
        close(flow.value - flow.radius, lower)
        close(flow.value + flow.radius, upper)


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("name", OTHER_LINES)
def test_intervals_are_equal(name: str, eps: float) -> None:
    for seed in range(3):
        case = build(name, seed, eps)
        ((interval, _),) = reference(case, "IBP")
        flow = propagate(case.network, None, case.box)
        close(interval_margins(case.network, flow, case.labels)[0], interval)
        ((lower, upper),) = reference(case, "IBP", margins=False)
        close(flow.value - flow.radius, lower)
        close(flow.value + flow.radius, upper)


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("name", [*NETS, "global average pooling"])
def test_crown(name: str, eps: float) -> None:
    """auto_LiRPA does not intersect CROWN's bounds of unstable neurons with intervals, ctkd does.

    So the slow reference without the intersection must equal auto_LiRPA, which vouches for that reference; and
    where intersecting changes no bound, ctkd must equal both. (test_linear.py compares ctkd with the slow
    reference that does intersect.) That ours is never looser is not asserted: it is not a theorem, as tighter
    bounds may move a neuron's adaptive lower slope.
    """
    case = build(name, 0, eps)
    ((theirs, _),) = reference(case, "CROWN")
    ours = crown_pre_activation(case.network, case.box)
    margins = relaxed_margins(case.network, ours, case.box, case.labels)
    compared = 0
    for b, label in enumerate(case.labels.tolist()):
        box = (case.box.lower[b], case.box.upper[b])
        plain = dense.crown(case.network, *box, intersect=False)
        close(dense.margins(case.network, plain, box, label), theirs[b])
        same = True
        for i, (lower, upper) in ours.items():
            unstable = (lower[b] < 0) & (upper[b] > 0)
            for mine, other in ((lower[b], plain[i][0]), (upper[b], plain[i][1])):
                same &= bool(((mine.flatten() - other).abs() < 1e-9)[unstable.flatten()].all())
        if same:
            close(margins[b], theirs[b])
            compared += 1
    assert compared or eps > 0.01  # small boxes never need the intersection
