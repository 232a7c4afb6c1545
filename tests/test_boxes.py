# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The box against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from ctkd.boxes import Box, centre_radius, perturbation_box

TINY = 2.0**-149  # the smallest positive float32
quick = settings(max_examples=400, deadline=None, derandomize=True, database=None)

pixels = st.one_of(
    st.floats(0, 1, width=32),
    st.integers(0, 255).map(lambda level: float(np.float32(level / 255))),
    st.sampled_from([0.0, 1.0, TINY, 3 * TINY, 2.0**-126, 1 - 2.0**-24, 0.5, 0.5 - 2.0**-25, 0.5 + 2.0**-24]),
)
radii = st.one_of(
    st.floats(0, 1),
    st.sampled_from([n / 255 for n in range(9)] + [0.1, 0.3, 5e-324, 2.0**-1022, TINY, TINY / 2, TINY * 0.75]),
    st.floats(0, 1e-6),
    st.sampled_from([2.0**-24, 2.0**-25, 2.0**-26, 2.0**-25 * (1 + 2.0**-52), 2.0**-25 * (1 - 2.0**-53)]),
)


def step(value: float, direction: float) -> float:
    """The next float32."""
    return float(np.nextafter(np.float32(value), np.float32(direction), dtype=np.float32))


@quick
@given(pixels, radii)
@example(1.0, 2 / 255)
@example(0.0, 2 / 255)
@example(0.5, 2.0**-25)  # a tie between two float32 numbers
@example(1 - 2.0**-24, 2.0**-25)
@example(0.25, 5e-324)  # the double sum loses all of eps
@example(TINY, TINY / 2)
def test_float32_box_is_the_tightest_outside_the_exact_one(pixel: float, eps: float) -> None:
    box = perturbation_box(torch.tensor([pixel], dtype=torch.float32), eps)
    assert box.lower.dtype == box.upper.dtype == torch.float32
    lower, upper = box.lower.item(), box.upper.item()
    exact_lower = max(Fraction(0), Fraction(pixel) - Fraction(eps))
    exact_upper = min(Fraction(1), Fraction(pixel) + Fraction(eps))
    assert 0 <= Fraction(lower) <= exact_lower
    assert exact_upper <= Fraction(upper) <= 1
    assert lower == pixel or Fraction(step(lower, math.inf)) > exact_lower
    assert upper == pixel or Fraction(step(upper, -math.inf)) < exact_upper
    if eps == 0:
        assert lower == upper == pixel


@quick
@given(pixels)
def test_no_radius_is_the_point_itself(pixel: float) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([pixel], dtype=dtype)
        box = perturbation_box(x, 0.0)
        assert torch.equal(box.lower, x)
        assert torch.equal(box.upper, x)
        centre, radius = centre_radius(box)
        assert torch.equal(centre, x)
        assert radius.item() == 0


@quick
@given(pixels, pixels, st.sampled_from([torch.float32, torch.float64]))
@example(0.0, TINY, torch.float32)  # the centre rounds to one of the ends
@example(TINY, 3 * TINY, torch.float32)
def test_centre_and_radius_lose_nothing(a: float, b: float, dtype: torch.dtype) -> None:
    lower, upper = min(a, b), max(a, b)
    centre, radius = centre_radius(Box(torch.tensor([lower], dtype=dtype), torch.tensor([upper], dtype=dtype)))
    c, r = Fraction(centre.item()), Fraction(radius.item())
    assert c - r <= Fraction(lower)
    assert Fraction(upper) <= c + r
    half = (Fraction(upper) - Fraction(lower)) / 2
    assert r <= half + Fraction(2) ** -23  # and little is added
    assert (r == 0) == (lower == upper)


@quick
@given(pixels, radii, radii)
def test_boxes_are_nested_in_eps(pixel: float, a: float, b: float) -> None:
    x = torch.tensor([pixel], dtype=torch.float32)
    inner, outer = perturbation_box(x, min(a, b)), perturbation_box(x, max(a, b))
    assert outer.lower <= inner.lower <= x <= inner.upper <= outer.upper


@quick
@given(st.floats(0, 1), radii)
def test_float64_box_is_rounded_to_nearest(pixel: float, eps: float) -> None:
    box = perturbation_box(torch.tensor([pixel], dtype=torch.float64), eps)
    assert box.lower.item() == max(0.0, pixel - eps)
    assert box.upper.item() == min(1.0, pixel + eps)


def test_elements_do_not_mix() -> None:
    x = torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    box = perturbation_box(x, 8 / 255)
    for index in ((0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 4, 1)):
        alone = perturbation_box(x[index].reshape(1), 8 / 255)
        assert box.lower[index] == alone.lower[0]
        assert box.upper[index] == alone.upper[0]


def test_clamp_select_and_convert() -> None:
    box = Box(torch.tensor([[0.0, 0.5], [0.25, 0.25]]), torch.tensor([[0.5, 1.0], [0.25, 0.75]]))
    assert box.clamp(torch.tensor([[-1.0, 2.0], [0.5, 0.5]])).tolist() == [[0.0, 1.0], [0.25, 0.5]]
    assert box[1:].lower.tolist() == [[0.25, 0.25]]
    assert box[torch.tensor([True, False])].upper.tolist() == [[0.5, 1.0]]
    assert box.to(torch.float64).upper.dtype == torch.float64


@pytest.mark.parametrize("eps", [2 / 255, 0.1])
def test_a_sample_never_leaves_its_own_box(eps: float) -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    box = perturbation_box(x, eps)
    assert torch.equal(box.clamp(x), x)
