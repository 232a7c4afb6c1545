# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The two bound methods: conformance, the loss that they say, and the search for the shift."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ctkd_smoothing.options import GaussianNoiseOptions, NoisyAdversarialOptions
from ctkd_smoothing.training import GaussianNoise, NoisyAdversarial, worst_shift
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctkd.api import Box, Enclosure, Noise
from ctkd.config import resolve
from ctkd.errors import BadInput
from ctkd.pairs import check_pair
from ctkd.propagate import Network, trace
from ctkd.testing import conformance

test_gaussian_noise_conforms = conformance("bound", "gaussian-noise")
test_noisy_adversarial_conforms = conformance("bound", "noisy-adversarial")


@pytest.mark.parametrize("bound", ["gaussian-noise", "noisy-adversarial"])
def test_training_without_a_radius_would_be_without_noise_and_is_refused(bound: str) -> None:
    with pytest.raises(BadInput, match=f"bound.name={bound} acts where the radius is above 0"):
        check_pair(resolve({"bound.name": bound, "train.eps": 0, "teacher.name": "none"}))


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    return trace(module, (1, 4, 4)).bind().detach()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 1, 4, 4, generator=generator).double(), torch.randint(3, (6,), generator=generator)


class Step(SimpleNamespace):
    """What these methods use of a step, on the network above."""

    def __init__(self) -> None:
        x, labels = batch()
        super().__init__(labels=labels, network=network(), recorded={}, heard=[])
        self.noise = Noise(0, "test", samples=torch.arange(len(x)))
        self.clean = Enclosure(Box(x, x), "point", None, None, None)

    def __getitem__(self, name: str) -> Enclosure:
        assert name == "clean"
        return self.clean

    def record(self, name: str, value: Tensor) -> Tensor:
        self.recorded[name] = value
        return value

    def loss(self, enclosure: Enclosure) -> Tensor:
        self.heard.append(enclosure.inputs.lower)
        return enclosure.robust_loss()


def combined(method: Any) -> tuple[Tensor, Step]:
    step = Step()
    return method.combine(step), step


def test_the_loss_is_the_mean_cross_entropy_at_noisy_images() -> None:
    loss, step = combined(GaussianNoise(GaussianNoiseOptions(sigma=0.5, draws=3)))
    (x, labels), noise = batch(), Noise(0, "test", samples=torch.arange(6))
    expected = torch.zeros(6).double()
    for _ in range(3):
        expected += cross_entropy(network()(x + 0.5 * noise.normal(x)), labels, reduction="none") / 3
    torch.testing.assert_close(loss, expected)
    spread = torch.cat(step.heard) - x.repeat(3, 1, 1, 1)
    assert float(spread.std()) == pytest.approx(0.5, rel=0.15)


def test_without_steps_noisy_adversarial_learning_is_training_with_noise() -> None:
    plain, _ = combined(GaussianNoise(GaussianNoiseOptions(draws=2)))
    found, step = combined(NoisyAdversarial(NoisyAdversarialOptions(draws=2, steps=0)))
    assert found.equal(plain)
    assert not step.recorded["noisy-adversarial/distance"].any()


def test_the_search_makes_the_loss_larger_and_the_noise_stays() -> None:
    plain, still = combined(NoisyAdversarial(NoisyAdversarialOptions(steps=0)))
    found, moved = combined(NoisyAdversarial(NoisyAdversarialOptions(penalty=0.3, steps=20, cost="plain")))
    assert (found > plain).all()
    shift = [a - b for a, b in zip(moved.heard, still.heard, strict=True)]
    for other in shift[1:]:
        torch.testing.assert_close(other, shift[0])
    lengths = shift[0].flatten(1).norm(dim=1)
    torch.testing.assert_close(moved.recorded["noisy-adversarial/distance"], lengths)


@pytest.mark.parametrize("cost", ["noisy", "plain"])
def test_the_search_is_algorithm_1_of_the_source(cost: Any) -> None:
    """Two steps by hand: noise of its own for each, its mean in the distance unless that is plain, η1 = 0.5 / γ."""
    options = NoisyAdversarialOptions(draws=3, steps=2, penalty=0.8, sigma=0.3, cost=cost)
    _, step = combined(NoisyAdversarial(options))
    (x, labels), noise = batch(), Noise(0, "test", samples=torch.arange(6))
    own, *searched = [[0.3 * noise.normal(x) for _ in range(3)] for _ in range(3)]
    point = x
    for drawn in searched:
        point = point.detach().requires_grad_()
        total = torch.zeros(()).double()
        for z in drawn:
            total = total + cross_entropy(network()(point + z), labels, reduction="sum") / 3
            paid = point + z - x if cost == "noisy" else point - x
            total = total - 0.8 * paid.square().sum() / 3
        (gradient,) = torch.autograd.grad(total, point)
        point = point + 0.5 / 0.8 * gradient
    for heard, z in zip(step.heard, own, strict=True):
        torch.testing.assert_close(heard, point + z)


def test_the_shift_is_not_learned_from() -> None:
    _, step = combined(NoisyAdversarial(NoisyAdversarialOptions()))
    assert all(not heard.requires_grad for heard in step.heard)


def objective(net: Network, point: Tensor, x: Tensor, labels: Tensor, noise: list[Tensor], options: Any) -> Tensor:
    losses = [cross_entropy(net(point + z), labels, reduction="none") for z in noise]
    paid = [point - x + (z if options.cost == "noisy" else 0) for z in noise]
    distances = torch.stack(paid).square().flatten(2).sum(2)
    return torch.stack(losses).mean(0) - options.penalty * distances.mean(0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.floats(1.0, 10.0), cost=st.sampled_from(["noisy", "plain"]))
def test_the_search_ends_where_the_gradient_pays_for_the_distance(seed: int, penalty: float, cost: Any) -> None:
    """With noise that stays the penalised loss grows in each step, until its gradient is zero."""
    net, (x, labels) = network(seed), batch(seed)
    drawn = Noise(seed, "test", samples=torch.arange(6))
    noise = [0.25 * drawn.normal(x) for _ in range(3)]
    values = []
    for steps in (0, 1, 3, 200):
        options = NoisyAdversarialOptions(penalty=penalty, steps=steps, step_size=0.4 / (2 * penalty), cost=cost)
        point = worst_shift(net, x, labels, lambda: noise, options)
        values.append(objective(net, point, x, labels, noise, options))
    for before, after in itertools.pairwise(values):
        assert (after >= before - 1e-9).all()
    point.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(net, point, x, labels, noise, options).sum(), point)
    assert float(gradient.abs().max()) < 1e-6


def test_a_samples_shift_does_not_depend_on_the_others() -> None:
    net, (x, labels) = network(), batch()
    noise = [0.1 * torch.ones_like(x)]
    whole = worst_shift(net, x, labels, lambda: noise, NoisyAdversarialOptions())
    alone = worst_shift(net, x[2:3], labels[2:3], lambda: [noise[0][2:3]], NoisyAdversarialOptions())
    torch.testing.assert_close(whole[2:3], alone)
    assert not whole.requires_grad
