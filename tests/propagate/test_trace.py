# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What tracing accepts, and that it leaves the module alone. See test_trace_refusals.py for the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctkd.propagate import trace

from .nets import FLATTEN, Apply, Normalise, close, make


class Layers(nn.Module):
    """A few layers, and a forward given as a function of them and x."""

    def __init__(self, function: Callable[[Layers, Tensor], object]) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.full((4,), 2.0))
        self.rectify = nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def layers(function: Callable[[Layers, Tensor], object]) -> Layers:
    torch.manual_seed(0)
    return Layers(function).double().eval()


def agrees(module: nn.Module, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 2, 3, 5)) -> None:
    network = trace(module, shape).bind()
    for batch in batches:
        x = torch.randn(batch, *shape, dtype=torch.float64)
        close(network(x), module(x.clone()), 1e-12)


# Accepted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLATTEN)
def test_every_way_to_flatten(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), Apply(FLATTEN[name]), nn.Linear(18, 3)).double()
    agrees(module, (2, 3, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.head(x + 0.5),
        lambda m, x: m.head(0.5 + x),
        lambda m, x: m.head(x - 0.5),
        lambda m, x: m.head(1 - x),
        lambda m, x: m.head(x * 3),
        lambda m, x: m.head(3 * x),
        lambda m, x: m.head(x / 4),
        lambda m, x: m.head(-x),
        lambda m, x: m.head(torch.neg(x)),
        lambda m, x: m.head(x + m.shift),
        lambda m, x: m.head(m.shift - x),
        lambda m, x: m.head(torch.mul(x, m.shift)),
        lambda m, x: m.head(x.div(m.shift)),
        lambda m, x: m.head(torch.sub(x, m.shift.view(1, -1))),
        lambda m, x: m.head(x / m.shift) * 0.5 - 1,
        lambda m, x: m.head(x + m.inner(x)),
        lambda m, x: m.head(m.inner(x) - x),
        lambda m, x: m.head(x + x),
        lambda m, x: m.head(x - x),
        lambda m, x: m.head(torch.relu(x)),
        lambda m, x: m.head(F.relu(x)),
        lambda m, x: m.head(x.relu()),
        lambda m, x: m.head(F.relu(input=x)),
        lambda m, x: m.head(F.leaky_relu(x)),
        lambda m, x: m.head(F.leaky_relu(x, 0.2)),
        lambda m, x: m.head(F.leaky_relu(m.inner(x), negative_slope=0, inplace=True)),
        lambda m, x: m.head(torch.sigmoid(x)),
        lambda m, x: m.head(F.sigmoid(x)),
        lambda m, x: m.head(x.sigmoid()),
        lambda m, x: m.head(torch.tanh(x)),
        lambda m, x: m.head(F.tanh(x)),
        lambda m, x: m.head(x.tanh()),
        lambda m, x: m.head(m.norm(x) + x),
        lambda m, x: m.head(m.rectify(m.norm(m.inner(x)))),
    ],
)
def test_forms_of_arithmetic(function: Callable[[Layers, Tensor], object]) -> None:
    agrees(layers(function), (4,))


def test_convolution_settings() -> None:
    for settings in (
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (1, 3), "padding": "same", "dilation": (1, 2)},
        {"kernel_size": (3, 2), "padding": "valid", "stride": (2, 1)},
        {"kernel_size": 2, "groups": 2, "padding": (2, 1), "dilation": (3, 1), "bias": False},
    ):
        layer = nn.Conv2d(2, 4, **settings)
        with torch.no_grad():
            width = layer(torch.zeros(1, 2, 6, 7)).numel()
        agrees(nn.Sequential(layer, nn.Flatten(), nn.Linear(width, 3)).double(), (2, 6, 7))


def test_average_pooling_settings() -> None:
    for pool in (
        nn.AvgPool2d(2),
        nn.AvgPool2d((2, 3), 1, (1, 1)),
        Apply(lambda x: F.avg_pool2d(x, 2, padding=1)),
    ):
        width = pool(torch.zeros(1, 2, 5, 7)).numel()
        agrees(nn.Sequential(pool, nn.Flatten(), nn.Linear(width, 3)).double(), (2, 5, 7))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d((2, 3), 1, (1, 1)),
        nn.MaxPool2d(3, stride=2, padding=1),
        Apply(lambda x: F.max_pool2d(x, 2)),
        Apply(lambda x: F.max_pool2d(x, kernel_size=(3, 1), stride=(1, 2), padding=(1, 0))),
        Apply(lambda x: torch.max_pool2d(x, 3, 2, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, None)),
        nn.AdaptiveAvgPool2d((2, 8)),
        Apply(lambda x: F.adaptive_avg_pool2d(x, (1, 4))),
    ],
)
def test_other_pooling_settings(pool: nn.Module) -> None:
    """On negative values as well, where a zero in the padding would be the largest."""
    width = pool(torch.zeros(1, 2, 6, 8)).numel()
    agrees(nn.Sequential(Apply(lambda x: x - 3), pool, nn.Flatten(), nn.Linear(width, 3)).double(), (2, 6, 8))


@pytest.mark.parametrize("layer", [nn.LeakyReLU(), nn.LeakyReLU(0.5, inplace=True), nn.Sigmoid(), nn.Tanh()])
def test_activation_layers(layer: nn.Module) -> None:
    agrees(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3)).double(), (4,))


def test_a_module_used_twice_shares_its_weights() -> None:
    module = layers(lambda m, x: m.head(m.inner(torch.relu(m.norm(m.inner(x))))))
    agrees(module, (4,))
    graph = trace(module, (4,))
    assert sum(node.path.startswith("inner") for node in graph.nodes) == 2
    x = torch.rand(2, 4, dtype=torch.float64)
    found, expected = (torch.autograd.grad(f(x).sum(), module.inner.weight)[0] for f in (graph.bind(), module))
    close(found, expected)


def test_layers_that_nobody_uses_do_not_matter() -> None:
    def forward(m: Layers, x: Tensor) -> object:
        torch.exp(m.inner(x))
        return m.head(x)

    agrees(layers(forward), (4,))


def test_the_graph_follows_training() -> None:
    case = make("residual", 3)
    before = case.graph.bind()(case.x)
    with torch.no_grad():
        for parameter in case.module.parameters():
            parameter.add_(0.1)
        for layer in case.module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.add_(0.5)
                layer.running_var.mul_(1.5)
        close(case.graph.bind()(case.x), case.module(case.x))
    assert not torch.allclose(case.graph.bind()(case.x), before)


def test_the_graph_follows_buffers() -> None:
    """A checkpoint loaded after tracing brings its own normalisation."""
    module = nn.Sequential(Normalise(torch.full((4,), 0.5), torch.full((4,), 0.5)), nn.Linear(4, 3)).double()
    graph = trace(module, (4,))
    module.load_state_dict({key: value + 0.25 for key, value in module.state_dict().items()})
    x = torch.rand(2, 4, dtype=torch.float64)
    close(graph.bind()(x), module(x))


def test_paths_and_shapes() -> None:
    module = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    graph = trace(module, (1, 3, 3))
    assert [(node.path, node.shape) for node in graph.nodes] == [
        ("input", (1, 3, 3)), ("0.0", (2, 2, 2)), ("1", (2, 2, 2)), ("2", (8,)), ("3", (3,)),
    ]  # fmt: skip
    assert graph.input_shape == (1, 3, 3)
    assert graph.classes == 3


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_module_alone(training: bool) -> None:
    module = layers(lambda m, x: m.head(torch.relu(m.norm(m.inner(x + 0.5)))))
    module.train(training)
    module.norm.eval()
    modes = [part.training for part in module.modules()]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    random = torch.get_rng_state()
    graph = trace(module, (4,))
    graph.bind()
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_tracing_leaves_no_attributes_behind() -> None:
    """torch.fx stores a tensor that a forward makes as an attribute of what it traces."""
    module = layers(lambda m, x: m.head(x + torch.tensor([0.5]).double()))
    before = set(vars(module))
    agrees(module, (4,))
    assert set(vars(module)) == before
