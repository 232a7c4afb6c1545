# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Random crops and mirrored images: what they may be, how often, and that they belong to the sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctkd.data.augment import crop_and_flip
from ctkd.randomness import Noise

HEIGHT, WIDTH = 5, 6


def keyed(samples: Tensor, seed: int = 0) -> Noise:
    return Noise(seed, "test-augmentation", samples=samples)


def literal(image: Tensor, dy: int, dx: int, padding: str, mirrored: bool) -> Tensor:
    """The window at (dy, dx), pixel by pixel."""
    result = torch.zeros_like(image)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            y, x = row + dy, (WIDTH - 1 - column if mirrored else column) + dx
            near = (min(max(y, 0), HEIGHT - 1), min(max(x, 0), WIDTH - 1))
            if padding == "edge" or near == (y, x):
                result[:, row, column] = image[:, near[0], near[1]]
    return result


@pytest.mark.parametrize("padding", ["edge", "zeros"])
@pytest.mark.parametrize(("crop", "flip"), [(0, True), (1, False), (2, True)])
def test_every_crop_comes_as_often_as_the_others(crop: int, flip: bool, padding: Any) -> None:
    image = torch.arange(1, 2 * HEIGHT * WIDTH + 1, dtype=torch.float32).reshape(2, HEIGHT, WIDTH) / 100
    count = 6000
    moved = crop_and_flip(image.expand(count, -1, -1, -1), keyed(torch.arange(count)), crop, padding, flip)
    choices = [(dy, dx) for dy in range(-crop, crop + 1) for dx in range(-crop, crop + 1)]
    seen = 0
    for mirrored in (False, True) if flip else (False,):
        for dy, dx in choices:
            same = (moved == literal(image, dy, dx, padding, mirrored)).all((1, 2, 3)).sum()
            share = 1 / len(choices) / (2 if flip else 1)
            assert abs(float(same) / count - share) < 5 * (share / count) ** 0.5
            seen += int(same)
    assert seen == count


@given(st.permutations(range(9)), st.integers(1, 8), st.sampled_from(["edge", "zeros"]))
def test_a_sample_is_changed_alike_in_any_batch(order: list[int], cut: int, padding: Any) -> None:
    x = torch.rand(9, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))

    def changed(rows: Tensor) -> Tensor:
        return crop_and_flip(x[rows], keyed(rows), 2, padding, flip=True)

    whole = changed(torch.arange(9))
    parts = torch.tensor(order[:cut]), torch.tensor(order[cut:])
    assert torch.equal(torch.cat([changed(part) for part in parts]), whole[torch.tensor(order)])


def test_another_seed_changes_other_images_and_the_input_is_left_alone() -> None:
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    rows = torch.arange(50)
    first, second = (crop_and_flip(x, keyed(rows, seed), 2, "zeros", True) for seed in (0, 1))
    assert torch.equal(x, before)
    assert not torch.equal(first, second)
    assert torch.equal(first, crop_and_flip(x, keyed(rows), 2, "zeros", True))


def test_single_rows_types_and_no_images() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.rand(3, 1, 8, 8).to(dtype)
        assert crop_and_flip(x, keyed(torch.arange(3)), 1, "zeros", True).dtype == dtype
    assert crop_and_flip(torch.empty(0, 1, 8, 8), keyed(torch.arange(0)), 2).shape == (0, 1, 8, 8)


def test_nothing_waits_for_the_device() -> None:
    """On a device without values nothing can be read back."""
    x = torch.empty(4, 3, 8, 8, device="meta")
    noise = keyed(torch.arange(4, device="meta"))
    for padding in ("edge", "zeros"):
        assert crop_and_flip(x, noise, 2, padding, True).shape == x.shape  # type: ignore[arg-type]
