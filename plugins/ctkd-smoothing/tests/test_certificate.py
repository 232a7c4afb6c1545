# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The statistics against exact sums, and certificates of classifiers whose smoothed version is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ctkd_smoothing.certificate import CHUNK, certificate, certify_sample, lower_confidence_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, poisson
from torch import Tensor

from ctkd.api import Noise

SIGMA = 0.25


def certify(logits: Callable[[Tensor], Tensor], x: Tensor, sample: int = 0, **more: float) -> tuple[int | None, float]:
    values = {"sigma": SIGMA, "selection": 100, "draws": 2000, "alpha": 0.001, "seed": 0, **more}
    found = certify_sample(logits, x, sample, **values)  # type: ignore[arg-type]
    return found.predicted, found.radius


@given(count=st.integers(1, 300), more=st.integers(0, 300), alpha=st.floats(1e-6, 0.5))
def test_the_bound_is_where_so_large_a_count_has_probability_alpha(count: int, more: int, alpha: float) -> None:
    """That is its definition."""
    bound = lower_confidence_bound(count, count + more, alpha)
    assert binom.sf(count - 1, count + more, bound) == pytest.approx(alpha, rel=2e-9)


@pytest.mark.parametrize(("count", "draws", "low"), [(81, 263, 0.2527), (15, 148, 0.0578)])
def test_published_values(count: int, draws: int, low: float) -> None:
    """Lower ends, alpha 0.025, of exact two-sided intervals of 95 % in Newcombe 1998 (Statistics in Medicine 17)."""
    assert lower_confidence_bound(count, draws, 0.025) == pytest.approx(low, abs=5e-5)


def test_none_and_all() -> None:
    assert lower_confidence_bound(0, 100, 0.001) == 0.0
    assert lower_confidence_bound(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000))
    assert lower_confidence_bound(100, 100, 1e-20) == pytest.approx(1e-20 ** (1 / 100))  # 1 - alpha is 1 in floats


@pytest.mark.parametrize("draws", [1, 10, 117])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_it_is_wrong_with_probability_at_most_alpha(draws: int, alpha: float) -> None:
    """Summed over all counts, for every true probability on a grid: no sampling error in this test."""
    counts = np.arange(draws + 1)
    bounds = np.array([lower_confidence_bound(int(k), draws, alpha) for k in counts])
    for true in np.linspace(0.01, 0.99, 99):
        wrong = binom.pmf(counts, draws, true)[bounds > true].sum()
        assert wrong <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(
    ("count", "draws", "alpha"),
    [
        (878_181_585, 878_182_584, 1.00238e-6),  # SciPy's quantile is too large here, by 22,000 times alpha
        (99_999_001, 100_000_000, 0.001),
        (10**9, 10**9, 0.999),
        (9, 10, 1e-300),  # and here it is not a number
        (10, 10, 1 - 1e-16),
    ],
)
def test_the_bound_holds_at_the_ends(count: int, draws: int, alpha: float) -> None:
    bound = lower_confidence_bound(count, draws, alpha)
    missed = draws - count
    # So few misses, at the bound: their distribution is Poisson's but for a part in a million; below, exact.
    chance = poisson.cdf(missed, draws * (1 - bound)) if draws > 1000 else binom.sf(count - 1, draws, bound)
    assert 0 < bound < 1
    assert chance <= alpha * (1 + 1e-4)
    assert math.isfinite(certificate(3, count, draws, alpha, SIGMA).radius)


def test_what_is_no_number_certifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctkd_smoothing.certificate.lower_confidence_bound", lambda *given: math.nan)
    assert certificate(3, 10, 10, 0.001, SIGMA).predicted is None


def test_it_abstains_up_to_one_half() -> None:
    assert certificate(3, 500, 1000, 0.001, SIGMA) == certificate(7, 500, 1000, 0.001, SIGMA)
    undecided = certificate(3, 530, 1000, 0.001, SIGMA)
    assert undecided.predicted is None
    assert undecided.radius == 0
    assert undecided.probability < 0.5
    sure = certificate(3, 560, 1000, 0.001, SIGMA)
    assert sure.predicted == 3
    assert sure.radius == SIGMA * norm.ppf(sure.probability) > 0


def test_the_largest_radius_is_what_the_readme_says() -> None:
    assert certificate(0, 10_000, 10_000, 0.001, 0.25).radius == pytest.approx(0.80, abs=0.005)


def linear(
    seed: int, distance: float | None = None, pixels: int = 12
) -> tuple[Callable[[Tensor], Tensor], Tensor, int, float]:
    """Two classes by the sign of ``w x + b``: the smoothed classifier is the same, its exact radius the distance."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(pixels, generator=generator)
    x = torch.rand(pixels, generator=generator)
    distance = 0.8 * float(torch.rand(1, generator=generator)) if distance is None else distance
    bias = distance * weight.norm() - weight @ x

    def logits(points: Tensor) -> Tensor:
        value = points @ weight + bias
        return torch.stack([-value, value], 1)

    return logits, x, 1, abs(float((weight.double() @ x.double() + bias.double()) / weight.double().norm()))


def test_radii_of_linear_classifiers_stay_below_the_exact_ones_and_near_them() -> None:
    shares, abstained = [], 0
    for seed in range(120):
        logits, x, label, exact = linear(seed)
        predicted, radius = certify(logits, x, seed)
        if predicted is None:
            abstained += 1
            assert exact < 0.15 * SIGMA
            continue
        assert predicted == label
        assert radius <= exact  # in all but alpha = 1/1000 of the cases, and these are seeded
        if exact < 2 * SIGMA:  # beyond, the number of draws limits it
            shares.append(radius / exact)
    assert abstained < 15
    assert sum(shares) / len(shares) > 0.8


def test_bounds_are_wrong_about_as_often_as_they_say() -> None:
    """With alpha = 1/5 one in five radii may be too large: more must not, and far fewer would waste the draws."""
    wrong = 0
    for sample in range(300):
        logits, x, _, exact = linear(5, distance=0.2)
        wrong += certify(logits, x, sample, draws=400, alpha=0.2)[1] > exact
    assert 30 <= wrong <= 75  # binomial: 60 +- 7, less what the discrete bound gives away


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sigma=st.floats(0.05, 1.0))
def test_more_noise_than_the_image_is_away_gives_no_larger_radius_than_the_draws_allow(seed: int, sigma: float) -> None:
    logits, x, _, _ = linear(seed)
    radius = certify(logits, x, sigma=sigma, draws=300)[1]
    assert radius <= sigma * norm.ppf(0.001 ** (1 / 300)) * (1 + 1e-12)


def test_a_fair_coin_abstains() -> None:
    weight = torch.ones(12)

    def logits(points: Tensor) -> Tensor:
        value = (points - 0.5) @ weight
        return torch.stack([-value, value], 1)

    found = [certify(logits, torch.full((12,), 0.5), sample)[0] for sample in range(40)]
    assert found.count(None) >= 39


def test_the_class_is_chosen_by_other_noise_than_it_is_counted_by() -> None:
    seen: list[Tensor] = []

    def logits(points: Tensor) -> Tensor:
        seen.append(points)
        return torch.stack([torch.ones(len(points)), torch.zeros(len(points))], 1)

    certify(logits, torch.zeros(3), selection=100, draws=CHUNK + 50)
    assert [len(part) for part in seen] == [100, CHUNK, 50]
    drawn = torch.cat(seen).flatten()
    assert len(drawn.unique()) > 0.999 * len(drawn)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(SIGMA, rel=0.03)


def test_the_noise_is_drawn_in_double_precision() -> None:
    """So that its tails reach 8.5 sigma instead of 5.8."""
    x, noise = torch.full((3,), 0.5), Noise(0, "ctkd-smoothing-estimation", samples=torch.tensor([7]))
    seen: list[Tensor] = []

    def logits(points: Tensor) -> Tensor:
        seen.append(points)
        return points[:, :2]

    certify(logits, x, 7, selection=10, draws=50)
    assert seen[1].equal((x + SIGMA * noise.normal(torch.empty(1, 50, 3, dtype=torch.float64))[0]).float())


def test_a_samples_noise_is_its_own_and_repeats() -> None:
    logits, x, _, _ = linear(1)
    assert certify(logits, x, 3) == certify(logits, x, 3)
    assert len({certify(logits, x, sample)[1] for sample in range(8)}) > 1
    assert len({certify(logits, x, 3, seed=seed)[1] for seed in range(8)}) > 1


def test_logits_that_are_not_finite_count_against_the_class() -> None:
    def logits(points: Tensor) -> Tensor:
        value = torch.where(points[:, 0] > 0, torch.nan, 1.0)  # on every second draw
        return torch.stack([value, torch.zeros_like(value)], 1)

    assert certify(logits, torch.zeros(3)) == (None, 0.0)
    assert certify(lambda points: points.new_full((len(points), 2), math.nan), torch.zeros(3)) == (None, 0.0)
