# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""SABR's box, and what SABR, TAPS and STAPS reduce to."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from ctkd.api import BoxContext, Schedule
from ctkd.bounds._small_box import shrinking, small_box
from ctkd.boxes import perturbation_box
from ctkd.propagate import Network, trace
from ctkd.propagate.ops import Relu, Tanh

from ..train.steps import FULL, RAMP, make, one_step, same


def context(dtype: torch.dtype, eps: float = 0.2) -> BoxContext:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(50, 1, 4, 4, generator=rng).to(dtype)
    x[:10] = (x[:10] > 0.5).to(dtype)  # at the border of the pixel range
    box = perturbation_box(x, eps)
    point = box.lower + torch.rand(x.shape, dtype=dtype, generator=rng) * (box.upper - box.lower)
    corner = torch.where(torch.rand(x.shape, generator=rng) < 0.5, box.lower, box.upper)
    point[::2] = corner[::2]
    return BoxContext(x, torch.zeros(50, dtype=torch.long), box, {"adversarial": point}, FULL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lam", [1e-3, 0.3, 0.6, 0.999999, 1.0])
def test_the_small_box_lies_in_the_full_one(dtype: torch.dtype, lam: float) -> None:
    given = context(dtype)
    small, full = small_box(given, lam), given.box
    assert (small.lower >= full.lower).all()
    assert (small.upper <= full.upper).all()
    width = lam * (full.upper - full.lower)
    torch.testing.assert_close(small.upper - small.lower, width, rtol=0, atol=4 * torch.finfo(dtype).eps)
    # As near to the point as that allows: at distance 0 unless the box touches an edge of the full one.
    point = given.points["adversarial"]
    centre = (small.lower + small.upper) / 2
    off = (centre - point).abs() > 4 * torch.finfo(dtype).eps
    slack = torch.minimum(small.lower - full.lower, full.upper - small.upper)
    assert (slack[off] <= 4 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_one_is_the_full_box_bit_for_bit(dtype: torch.dtype) -> None:
    given = context(dtype)
    small = small_box(given, 1.0)
    assert torch.equal(small.lower, given.box.lower)
    assert torch.equal(small.upper, given.box.upper)


def test_needs() -> None:
    for name in ("sabr", "staps"):
        needs = make("bound", name).needs(RAMP)
        assert (needs.points, needs.searched, needs.tighten) == (frozenset(), {"adversarial"}, None)
        assert make("bound", name, lam=1).needs(RAMP).searched == frozenset()


def test_shrinking_concerns_unstable_inputs_only() -> None:
    shrink = shrinking(0.5)
    assert shrink is not None
    lower, upper = torch.tensor([-1.0, -1.0, 0.0, 1.0, -2.0]), torch.tensor([2.0, 0.0, 2.0, 2.0, -1.0])
    new_lower, new_upper = shrink(Relu(), lower, upper)
    assert torch.equal(new_lower, lower)
    assert new_upper.tolist() == [1.0, 0.0, 2.0, 2.0, -1.0]


def test_shrinking_changes_the_loss() -> None:
    assert one_step(make("bound", "sabr", relu_shrink=0.8))[0].total < one_step(make("bound", "sabr"))[0].total


exact = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("statistics", ["clean", "last-pass"])
def test_sabr_with_lambda_one_is_ibp(batch_norm: bool, statistics: str) -> None:
    given = {"batch_norm": batch_norm, "statistics": statistics, "schedule": FULL}
    ours = one_step(make("bound", "sabr", lam=1), **given)
    exact(ours[0].total, one_step(make("bound", "ibp"), **given)[0].total)
    same(ours, one_step(make("bound", "ibp"), **given))


@pytest.mark.parametrize("schedule", [RAMP, FULL], ids=["ramp", "full"])
@pytest.mark.parametrize("shrink", [1.0, 0.8])
def test_staps_without_second_block_and_product_is_sabr(schedule: Schedule, shrink: float) -> None:
    staps = make("bound", "staps", split=0, product=False, lam=0.3, relu_shrink=shrink)
    sabr = make("bound", "sabr", lam=0.3, relu_shrink=shrink)
    ours, theirs = one_step(staps, schedule=schedule), one_step(sabr, schedule=schedule)
    exact(ours[0].total, theirs[0].total)
    same(ours, theirs)


@pytest.mark.parametrize("schedule", [RAMP, FULL], ids=["ramp", "full"])
def test_taps_without_second_block_and_product_is_ibp(schedule: Schedule) -> None:
    taps = one_step(make("bound", "taps", split=0, product=False), schedule=schedule)
    same(taps, one_step(make("bound", "ibp"), schedule=schedule))


def test_taps_without_second_block_is_the_squared_loss_of_ibp() -> None:
    loss, _ = one_step(make("bound", "taps", split=0), schedule=FULL)
    ibp, _ = one_step(make("bound", "ibp"), schedule=FULL)
    torch.testing.assert_close(loss.total, ibp.total**2)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_while_the_radius_grows_taps_is_ibp_and_staps_is_sabr(split: int) -> None:
    same(one_step(make("bound", "taps", split=split)), one_step(make("bound", "ibp")))
    same(one_step(make("bound", "staps", split=split, lam=0.3)), one_step(make("bound", "sabr", lam=0.3)))


def test_staps_with_lambda_one_is_taps() -> None:
    same(
        one_step(make("bound", "staps", lam=1), schedule=FULL),
        one_step(make("bound", "taps"), schedule=FULL),
    )


def test_shrinking_leaves_other_activations_alone() -> None:
    shrink = shrinking(0.5)
    assert shrink is not None
    lower, upper = torch.tensor([-1.0, 0.5, -2.0]), torch.tensor([1.0, 2.0, -1.0])
    assert shrink(Relu(), lower, upper)[1].tolist() == [0.5, 2.0, -1.0]
    assert shrink(Tanh(), lower, upper)[1].tolist() == [1.0, 2.0, -1.0]
    assert shrinking(1.0) is None


def network(*layers: Any) -> Network:
    return trace(nn.Sequential(*layers), (4,)).bind()
