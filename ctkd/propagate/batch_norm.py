# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Batch norm in training mode, with gradients through the statistics that it returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctkd.distributed import all_sum, whole
from ctkd.propagate.ops.base import channels


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by the statistics of this very batch, all of it where several processes share one.

    Args:
        x: (batch, channels, ...); float32 and float64, or a shorter type, whose statistics are made in float32.
        weight, bias: (channels,); None are 1 and 0.

    Returns:
        The normalised batch in the type of ``x``, and the mean and biased variance per channel. All carry gradients.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = torch.ones(x.shape[1], dtype=wide, device=x.device) if weight is None else weight
    bias = torch.zeros(x.shape[1], dtype=wide, device=x.device) if bias is None else bias
    # PyTorch's own kernel takes float32 parameters, and would have to see the whole batch, which of several processes
    # none does.
    short = x.dtype != wide and weight.dtype == bias.dtype == torch.float32 and whole(1) == 1
    function = _Short if short else _Normalise
    return function.apply(x, weight, bias, eps)  # type: ignore[no-any-return, no-untyped-call]


class _Normalise(torch.autograd.Function):
    """Written out for few passes over memory. The variance takes two, and sums are PyTorch's pairwise ones: as exact as
    ``torch.var_mean``, which is several times slower on a CPU; ``torch.native_batch_norm`` is as fast, and less exact.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        dims, rank = _dims(x), x.dim()
        size = whole(x.numel() // x.shape[1])
        mean = all_sum(x.sum(dims, dtype=weight.dtype)) / size
        centred = torch.sub(x, channels(mean, rank), out=torch.empty_like(x))
        variance = all_sum((centred * centred).sum(dims, dtype=weight.dtype)) / size
        inverse = (variance + eps).rsqrt()
        result = torch.addcmul(channels(bias, rank), centred, channels(weight * inverse, rank)).to(x.dtype)
        ctx.save_for_backward(centred, weight, inverse)
        ctx.size = size
        return result, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        result, mean, variance = gradients
        centred, weight, inverse = ctx.saved_tensors
        dims, rank, factor = _dims(centred), centred.dim(), weight * inverse
        total = result.sum(dims, dtype=weight.dtype)
        product = (result * centred).sum(dims, dtype=weight.dtype)
        variance = variance - product * factor * inverse.square() / 2
        mean = mean - total * factor
        mean, variance = all_sum(torch.stack([mean, variance])) / ctx.size
        # What comes through the statistics, and what comes straight.
        through = torch.addcmul(channels(mean, rank), centred, channels(2 * variance, rank))
        return through.addcmul_(result, channels(factor, rank)).to(centred.dtype), product * inverse, total, None


class _Short(torch.autograd.Function):
    """By PyTorch's kernels, which compute a shorter type in float32 registers; ``_Normalise`` would have to copy it to
    float32 and back at each pass. Their sums are a little less exact, the products of short numbers much more so.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        result, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        return result, mean, inverse.square().reciprocal() - eps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        result, mean, variance = gradients
        x, weight, centre, inverse = ctx.saved_tensors
        size = x.numel() // x.shape[1]
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            result, x, weight, None, None, centre, inverse, True, ctx.eps, [True, True, True]
        )
        # What comes through the statistics that were returned: (x - centre) * slope + shift, in one pass.
        slope, shift = 2 * variance / size, mean / size
        one = torch.ones_like(centre)
        through, _, _ = torch.native_batch_norm(x, slope, shift, centre, one, False, 0.0, 0.0)
        return by_x.add_(through), by_weight, by_bias, None


def _dims(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]
