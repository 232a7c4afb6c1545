# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Networks that compute in bfloat16: what they keep in float32, and how far they stray."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctkd.boxes import perturbation_box
from ctkd.propagate import Graph, interval_margins, margins_of, propagate, relaxed_margins, trace
from ctkd.propagate.ops import Conv, Linear

SHAPE = (2, 8, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8))
        self.beside = nn.Conv2d(8, 8, 2, 2)
        self.last = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.BatchNorm1d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first((x - 0.5) / 0.25)
        return self.head(self.last(self.branch(x) + self.beside(x)).tanh())  # type: ignore[no-any-return]


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Residual(), SHAPE)


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(16, *SHAPE, generator=draw), torch.arange(16) % 5


def step(graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
    """Logits, features, margins by intervals and by relaxation, statistics; and gradients of a loss of all of them."""
    x, labels = batch()
    clean = graph.clean_pass(x)
    network = graph.bind(clean.statistics)
    box = perturbation_box(x, 0.02)
    flow = propagate(network, x, box)
    margins, upper = interval_margins(network, flow, labels)
    relaxed = relaxed_margins(network, flow.pre_activation, box, labels)
    assert flow.features is not None
    assert clean.features is not None
    parts = [clean.logits, clean.features, flow.features, margins, upper, relaxed]
    parts += [part for moments in clean.statistics.values() for part in moments[:2]]
    loss = sum((part.square().mean() for part in parts), torch.zeros(()))
    return parts, list(torch.autograd.grad(loss, list(graph.module.parameters())))


def test_results_and_gradients_stay_near_and_are_float32(graph: Graph) -> None:
    plain, lowered = step(graph), step(graph.lowered(torch.bfloat16))
    for tolerance, exact, found in ((0.02, plain[0], lowered[0]), (0.1, plain[1], lowered[1])):
        for a, b in zip(exact, found, strict=True):
            assert b.dtype == torch.float32
            assert (a - b).norm() <= tolerance * a.norm() + 1e-4
    assert not torch.equal(plain[0][0], lowered[0][0])


def test_lowering_to_the_type_that_it_has_changes_nothing(graph: Graph) -> None:
    for exact, found in zip(step(graph), step(graph.lowered(torch.float32)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(exact, found, strict=True))


def test_the_last_layer_keeps_its_type_and_all_others_do_not(graph: Graph) -> None:
    network = graph.bind().lowered(torch.bfloat16)
    layers = [node.op for node in network.nodes if isinstance(node.op, Conv | Linear)]
    assert [layer.weight.dtype for layer in layers] == [torch.bfloat16] * 4 + [torch.float32]
    assert network(batch()[0]).dtype == torch.float32
    assert network.dtype == torch.float32


def test_a_network_that_ends_otherwise_stays_as_it_is() -> None:
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.ReLU()), SHAPE).bind()
    assert torch.equal(network.lowered(torch.bfloat16)(batch()[0]), network(batch()[0]))


def test_gradients_of_the_attack_point_the_same_way(graph: Graph) -> None:
    x, labels = batch()
    signs = []
    for network in (graph.bind().detach(), graph.bind().detach().lowered(torch.bfloat16)):
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(margins_of(network(point), labels).sum(), point)
        assert gradient.dtype == torch.float32
        signs.append(gradient.sign())
    assert (signs[0] == signs[1]).double().mean() > 0.95
