# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Noise keyed by sample: the numbers of SplitMix64, uniform and independent, whatever batch a sample is in."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctkd.randomness import Noise

COUNT, SIZE = 500, 200
BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def noise(samples: Tensor | None = None, seed: int = 0, place: int = 0) -> Noise:
    return Noise(seed, "test", place, samples=torch.arange(COUNT) if samples is None else samples)


def like(count: int = COUNT, size: int = SIZE, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(count, size, dtype=dtype)


def split_mix(state: int) -> int:
    """The finaliser of Steele, Lea and Flood, on Python's numbers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


@pytest.mark.parametrize("dtype", BITS)
def test_the_numbers_are_those_of_split_mix(dtype: torch.dtype) -> None:
    golden = 0x9E3779B97F4A7C15
    key = int.from_bytes(hashlib.sha256(b"7/purpose/3/4").digest()[:8], "big")
    one = Noise(7, "purpose", 3, 4, samples=torch.tensor([5, 60_000]))
    one.uniform(torch.empty(2))
    found = one.uniform(torch.empty(2, 3, 2, dtype=dtype)).double().flatten(1)
    for row, sample in enumerate((5, 60_000)):
        stream = split_mix((key + (sample + 1) * golden) % 2**64)
        second = split_mix((stream + 2 * golden) % 2**64)
        numbers = [split_mix((second + i * golden) % 2**64) for i in range(1, 7)]
        assert found[row].tolist() == [(number >> (64 - BITS[dtype])) / 2 ** BITS[dtype] for number in numbers]


@pytest.mark.parametrize("dtype", BITS)
def test_uniform_on_the_half_open_interval(dtype: torch.dtype) -> None:
    drawn = noise().uniform(like(dtype=dtype)).double()
    count = drawn.numel()
    assert 0 <= float(drawn.min()) < 0.01
    assert float(drawn.max()) <= 1 - 2.0 ** -BITS[dtype]
    for power in (1, 2, 3):  # moments, less what rounding down to multiples of 2^-bits takes
        error = abs(float((drawn + 2.0 ** -(BITS[dtype] + 1)).pow(power).mean()) - 1 / (power + 1))
        assert error < 4 / math.sqrt(count)
    bins = torch.histc(drawn.float(), 64, 0, 1)
    chi_square = float((bins - count / 64).square().sum() / (count / 64))
    assert abs(chi_square - 63) < 4 * math.sqrt(2 * 63)


def test_normal() -> None:
    for dtype in (torch.float64, torch.float32):
        drawn = noise().normal(like(dtype=dtype)).double()
        assert drawn.isfinite().all()
        error = 4 / math.sqrt(drawn.numel())
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
            assert abs(float(drawn.pow(power).mean()) - moment) < 10 * error
    assert noise().normal(like(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_samples_draws_elements_places_and_seeds_are_independent() -> None:
    one = noise()
    first, second = one.uniform(like()) - 0.5, one.uniform(like()) - 0.5
    others = [second, noise(place=1).uniform(like()) - 0.5, noise(seed=1).uniform(like()) - 0.5, first.roll(1, 0)]
    others += [first.roll(1, 1), first.roll((1, 1), (0, 1)), noise()[:].uniform(like()) - 0.5]
    for other in others:
        correlation = float((first * other).mean()) * 12
        assert abs(correlation) < 4 / math.sqrt(first.numel())
    # Between all pairs of samples, and of elements.
    for rows in (first, first.T):
        table = rows.double().corrcoef()
        table.fill_diagonal_(0)
        assert float(table.abs().max()) < 5.5 / math.sqrt(rows.shape[1])


@given(st.permutations(range(12)), st.integers(1, 11), st.sampled_from([torch.float32, torch.float64]))
def test_a_sample_has_its_numbers_in_any_batch(order: list[int], cut: int, dtype: torch.dtype) -> None:
    def draws(source: Noise) -> Tensor:
        x = torch.empty(len(source), 3, 2, dtype=dtype)
        later = source[torch.arange(len(source))]
        return torch.stack([source.uniform(x), source.normal(x), later.uniform(x), source.uniform(x)], 1)

    whole = draws(noise(torch.arange(12)))
    parts = [torch.tensor(order[:cut]), torch.tensor(order[cut:])]
    found = torch.cat([draws(noise(part)) for part in parts])
    assert torch.equal(found, whole[torch.tensor(order)])
    mask = torch.tensor([i in order[:cut] for i in range(12)])
    chosen = noise(torch.arange(12))[mask].uniform(like(cut, 5, dtype))
    assert torch.equal(chosen, noise(torch.arange(12))[:].uniform(like(12, 5, dtype))[mask])


def test_a_large_batch_is_drawn_in_blocks_of_the_same_numbers() -> None:
    drawn = noise(torch.arange(7)).uniform(like(7, 9000, torch.float32))
    assert torch.equal(drawn[3], noise(torch.tensor([3])).uniform(like(1, 9000, torch.float32))[0])
    assert torch.equal(drawn[:, :10], noise(torch.arange(7)).uniform(like(7, 10, torch.float32)))


def test_draws_and_children_are_fresh() -> None:
    one = noise()
    drawn = [one.uniform(like()), one[:].uniform(like()), one[:].uniform(like()), one.uniform(like())]
    child = one[:]
    drawn += [child.uniform(like()), child.uniform(like())]
    for i, left in enumerate(drawn):
        for right in drawn[i + 1 :]:
            assert not (left == right).all(1).any()


def test_its_generator_is_that_of_the_batch() -> None:
    def number(samples: list[int]) -> float:
        return float(torch.rand((), generator=noise(torch.tensor(samples)).generator))

    assert number([1, 2]) == number([1, 2])
    assert len({number([1, 2]), number([2, 1]), number([1]), number([1, 3])}) == 4
    one = noise()
    assert one.generator is one.generator


def test_any_shape_and_layout() -> None:
    assert noise(torch.arange(0)).uniform(torch.empty(0, 3)).shape == (0, 3)
    assert noise(torch.arange(0))[:].normal(torch.empty(0, 3)).shape == (0, 3)
    assert noise(torch.arange(4)).uniform(torch.empty(4)).shape == (4,)
    last = torch.empty(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert torch.equal(noise(torch.arange(4)).uniform(last), noise(torch.arange(4)).uniform(last.contiguous()))
    assert noise(torch.arange(4)).uniform(torch.empty(4, 1).expand(4, 6)).unique().numel() == 24


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"noise for 500 samples does not fit a tensor of shape \(3, 2\).*noise\[rows\]"
    ):
        noise().uniform(torch.empty(3, 2))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        noise().uniform(torch.empty(500, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"noise\[rows\]"):
        list(noise())
