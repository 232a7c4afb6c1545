# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How far margins spread over a box of features, for any number of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 2**19}
"""How many differences of weights are held at once, by device: what a CPU's cache holds."""
ELSEWHERE = 2**26


class Spread(torch.autograd.Function):
    """``sum over f of |base_bf - weight_jf| radius_bf``: (batch, f), (classes, f) and (batch, f) to (batch, classes).

    The half-width of ``(base_b - weight_j) . x`` over the box; with the label's weights as base, of the margins. The
    differences, (batch, classes, f), are made again in the backward pass and never held as a whole, so a thousand
    classes cost arithmetic in cache and no memory.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, weight: Tensor, radius: Tensor) -> Tensor:
        ctx.save_for_backward(base, weight, radius)
        found = [
            _differences(base[rows], weight).abs_() @ radius[rows].unsqueeze(2)
            for rows in _chunks(base.shape[0], weight)
        ]
        return torch.cat(found).squeeze(2) if found else base.new_zeros(0, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (base, weight, radius) = gradients, ctx.saved_tensors
        of_weights, of_radius = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        by_base, by_weight, by_radius = torch.empty_like(base), torch.zeros_like(weight), torch.empty_like(radius)
        for rows in _chunks(base.shape[0], weight):
            difference, by_rows = _differences(base[rows], weight), gradient[rows].unsqueeze(1)
            if of_radius:
                by_radius[rows] = (by_rows @ difference.abs()).squeeze(1)
            if of_weights:
                moved = difference.sgn_().mul_(radius[rows].unsqueeze(1))
                by_base[rows] = (by_rows @ moved).squeeze(1)
                by_weight -= (gradient[rows].t().unsqueeze(1) @ moved.transpose(0, 1)).squeeze(1)
        if not of_weights:
            return None, None, by_radius
        return by_base, by_weight, by_radius if of_radius else None


def _differences(base: Tensor, weight: Tensor) -> Tensor:
    """(rows, classes, f)."""
    return base.unsqueeze(1) - weight


def _chunks(batch: int, weight: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK.get(weight.device.type, ELSEWHERE) // weight.numel())
    return (slice(start, start + size) for start in range(0, batch, size))
