# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Batch norm against PyTorch and against plain formulas in loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ctkd.boxes import centre_radius, perturbation_box
from ctkd.propagate import Graph, propagate, trace

from .nets import Apply, close, make, randomise

NETS = {
    "behind linear": (lambda: [nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)], (4,)),
    "first": (lambda: [nn.BatchNorm1d(4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)], (4,)),
    "behind activation": (lambda: [nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 3)], (4,)),
    "twice": (
        lambda: [
            nn.Linear(4, 3),
            nn.BatchNorm1d(3),
            nn.BatchNorm1d(3, affine=False),
            nn.ReLU(),
            nn.Linear(3, 3),
        ],
        (4,),
    ),
    "sequence": (lambda: [nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)], (2, 3)),
    "behind conv": (
        lambda: [
            nn.Conv2d(2, 3, 2, bias=False),
            nn.BatchNorm2d(3, momentum=0.3, eps=0.1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(18, 3),
        ],
        (2, 4, 3),
    ),
    "behind pool": (
        lambda: [
            nn.AvgPool2d(2, 1),
            nn.BatchNorm2d(2, affine=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 3),
        ],
        (2, 4, 3),
    ),
    "shared input": (lambda: [nn.Linear(4, 4), Apply(lambda x: x + 0.5), Twice(), nn.Linear(4, 3)], (4,)),
}


class Twice(nn.Module):
    """The value behind batch norm, and the one before it, both used."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x)) + x


def build(name: str) -> tuple[nn.Module, Graph, Tensor]:
    torch.manual_seed(7)
    layers, shape = NETS[name]
    module = randomise(nn.Sequential(*layers())).double()
    return module, trace(module, shape), torch.rand(5, *shape, dtype=torch.float64)


def norms(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


def by_channel(x: Tensor) -> list[list[float]]:
    """All values of each channel."""
    return [x.transpose(0, 1)[c].flatten().tolist() for c in range(x.shape[1])]


@pytest.mark.parametrize("name", NETS)
def test_clean_pass_is_the_module_in_training_mode(name: str) -> None:
    module, graph, x = build(name)
    twin = copy.deepcopy(module).train()
    buffers = {key: value.clone() for key, value in module.state_dict().items()}
    result = graph.clean_pass(x)
    close(result.logits, twin(x), 1e-12)
    features = []
    twin[-1].register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0]))
    twin(x)
    close(result.features, features[0], 1e-12)
    assert all(torch.equal(value, buffers[key]) for key, value in module.state_dict().items())
    assert result.logits.requires_grad


@pytest.mark.parametrize("name", NETS)
def test_statistics_by_the_formula(name: str) -> None:
    module, graph, x = build(name)
    seen: list[Tensor] = []
    twin = copy.deepcopy(module).train()
    for layer in norms(twin):
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    twin(x)
    statistics = graph.clean_pass(x).statistics
    assert list(statistics) == list(graph.norms)
    for moments, value in zip(statistics.values(), seen, strict=True):
        for c, numbers in enumerate(by_channel(value)):
            mean = math.fsum(numbers) / len(numbers)
            variance = math.fsum((n - mean) ** 2 for n in numbers) / len(numbers)
            assert moments.mean[c].item() == pytest.approx(mean, rel=1e-12, abs=1e-14)
            assert moments.variance[c].item() == pytest.approx(variance, rel=1e-12)
            assert moments.size == len(numbers)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("steps", [1, 4])
def test_running_statistics_as_pytorch_keeps_them(name: str, steps: int) -> None:
    module, graph, _ = build(name)
    twin = copy.deepcopy(module).train()
    by_formula = [(layer.running_mean.tolist(), layer.running_var.tolist()) for layer in norms(module)]
    for step in range(steps):
        x = torch.rand(4 + step, *graph.input_shape, dtype=torch.float64)
        twin(x)
        statistics = graph.clean_pass(x).statistics
        graph.update_running(statistics, keep=None if step % 2 else torch.tensor(True))
        for (means, variances), moments, layer in zip(by_formula, statistics.values(), norms(module), strict=True):
            for c in range(len(means)):
                unbiased = moments.variance[c].item() * moments.size / (moments.size - 1)
                means[c] = (1 - layer.momentum) * means[c] + layer.momentum * moments.mean[c].item()
                variances[c] = (1 - layer.momentum) * variances[c] + layer.momentum * unbiased
    for layer, other, (means, variances) in zip(norms(module), norms(twin), by_formula, strict=True):
        close(layer.running_mean, other.running_mean, 1e-12)
        close(layer.running_var, other.running_var, 1e-12)
        assert layer.running_mean.tolist() == pytest.approx(means, rel=1e-12)
        assert layer.running_var.tolist() == pytest.approx(variances, rel=1e-12)
        assert layer.num_batches_tracked == other.num_batches_tracked == steps
    module.eval()
    twin.eval()
    x = torch.rand(3, *graph.input_shape, dtype=torch.float64)
    close(graph.bind()(x), twin(x), 1e-12)


def test_a_skipped_update_changes_nothing() -> None:
    module, graph, x = build("behind conv")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    bad = {i: type(m)(m.mean * math.nan, m.variance, m.size) for i, m in graph.clean_pass(x).statistics.items()}
    graph.update_running(bad, keep=torch.tensor(False))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_updates_carry_no_gradient_and_keep_the_buffers() -> None:
    module, graph, x = build("behind linear")
    (layer,) = norms(module)
    buffer = layer.running_mean
    graph.update_running(graph.clean_pass(x).statistics)
    assert layer.running_mean is buffer
    assert not buffer.requires_grad


@pytest.mark.parametrize("which", ["batch", "running"])
@pytest.mark.parametrize("name", ["behind linear", "behind conv", "sequence"])
def test_scale_for_centres_its_size_for_radii(name: str, which: str) -> None:
    """c' = s c + (beta - s mean), r' = |s| r with s = gamma / sqrt(variance + eps), channel by channel."""
    module, graph, x = build(name)
    ((node, norm),) = graph.norms.items()
    layer = norm.module
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = -0.7, 1.3
        moments = graph.clean_pass(x).statistics[node]
    batch = which == "batch"
    mean, variance = (moments.mean, moments.variance) if batch else (layer.running_mean, layer.running_var)
    network = graph.bind({node: moments} if batch else None).detach()

    box = perturbation_box(x, 0.1)
    centre, radius = centre_radius(box)
    before = nn.Sequential(*[m for m in module[: list(module).index(layer)] if not isinstance(m, nn.Flatten)])
    if len(before):  # one affine layer: its weights for the centre, their sizes for the radius
        with torch.no_grad():
            centre = before(centre)
            before[0].weight.abs_()
            radius = before(radius) - before(torch.zeros_like(radius))

    lower, upper = propagate(network, None, box).pre_activation[network.activations[0]]
    for c in range(layer.num_features):
        s = layer.weight[c].item() / math.sqrt(variance[c].item() + layer.eps)
        shift = layer.bias[c].item() - s * mean[c].item()
        close((lower + upper)[:, c] / 2, s * centre[:, c] + shift)
        close((upper - lower)[:, c] / 2, abs(s) * radius[:, c])


@pytest.mark.parametrize("name", ["shared input", "behind activation"])
def test_batch_norm_that_cannot_be_folded_stays_a_scale(name: str) -> None:
    module, graph, x = build(name)
    kinds = [type(node.op).__name__ for node in graph.bind().nodes]
    assert "Scale" in kinds
    close(graph.bind()(x), module.eval()(x), 1e-12)


@pytest.mark.parametrize("name", ["behind linear", "behind conv", "twice"])
def test_batch_norm_is_folded_into_the_layer_before(name: str) -> None:
    module, graph, x = build(name)
    kinds = [type(node.op).__name__ for node in graph.bind().nodes]
    assert "Scale" not in kinds
    close(graph.bind()(x), module.eval()(x), 1e-12)


def test_features_of_the_clean_pass_are_those_of_the_network() -> None:
    """With something merged into the last layer, and without a last affine layer at all."""
    scaled = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), Apply(lambda x: x / 10)).double()
    graph, x = trace(scaled, (4,)), torch.rand(2, 4, dtype=torch.float64)
    network = graph.bind()
    close(graph.clean_pass(x).features, network.evaluate(x, network.features_node)[0])
    bare = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double(), (4,))
    assert bare.bind().features_node is None
    assert bare.clean_pass(x).features is None


@pytest.mark.parametrize("seed", range(6))
def test_clean_pass_of_generated_networks(seed: int) -> None:
    for kind in ("mlp", "conv", "residual"):
        case = make(kind, seed, batch=4)
        twin = copy.deepcopy(case.module).train()
        result = case.graph.clean_pass(case.x)
        close(result.logits, twin(case.x))
        case.graph.update_running(result.statistics)
        for layer, other in zip(norms(case.module), norms(twin), strict=True):
            close(layer.running_mean, other.running_mean)
            close(layer.running_var, other.running_var)
