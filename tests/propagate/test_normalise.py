# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Batch norm in a shorter type against the same numbers in float64: only the results are rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.propagate.batch_norm import _Normalise, _Short, normalise

ROUNDING = 2**-8
"""Of bfloat16."""


def inputs(shape: tuple[int, ...], offset: float) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=rng) * 2 + offset).bfloat16()
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return [x, torch.rand(shape[1], generator=rng) + 0.5, torch.randn(shape[1], generator=rng)]


def results(function: Any, x: Tensor, weight: Tensor, bias: Tensor, seeds: list[Tensor]) -> list[Tensor]:
    given = [t.clone().requires_grad_() for t in (x, weight, bias)]
    found = function.apply(*given, 1e-3)
    return [*found, *torch.autograd.grad(found, given, [s.to(f.dtype) for s, f in zip(seeds, found, strict=True)])]


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("shape", [(16, 3, 5, 7), (16, 6), (8, 2, 9)])
@pytest.mark.parametrize("through", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], ids=str)
def test_short_types_are_rounded_and_no_more(
    shape: tuple[int, ...], offset: float, through: tuple[int, int, int]
) -> None:
    x, weight, bias = inputs(shape, offset)
    rng = torch.Generator().manual_seed(1)
    shapes = (x.shape, weight.shape, weight.shape)
    seeds = [on * torch.randn(s, generator=rng).bfloat16() for on, s in zip(through, shapes, strict=True)]
    found = results(_Short, x, weight, bias, seeds)
    wanted = results(_Normalise, x.double(), weight.double(), bias.double(), seeds)
    assert found[0].dtype == found[3].dtype == torch.bfloat16
    assert {t.dtype for t in (*found[1:3], *found[4:])} == {torch.float32}
    for k, (got, right) in enumerate(zip(found, wanted, strict=True)):
        # The gradient of the input is a sum of rounded parts, and PyTorch rounds that of the bias; the rest are sums in
        # float32.
        allowed = {0: 1, 3: 4, 5: 1}.get(k, 1e-5 / ROUNDING) * ROUNDING
        assert (got.double() - right).abs().max() <= allowed * right.abs().max().clamp(min=1e-6), k


def test_which_types_take_which_way() -> None:
    x, weight, bias = inputs((16, 3, 5, 7), 0.0)
    for dtype, wanted in ((torch.bfloat16, _Short), (torch.float32, _Normalise), (torch.float64, _Normalise)):
        result, mean, _ = normalise(x.to(dtype).requires_grad_(), weight, bias, 1e-3)
        assert result.grad_fn.name() == f"{wanted.__name__}Backward"
        assert mean.dtype == (torch.float32 if dtype == torch.bfloat16 else weight.dtype)
