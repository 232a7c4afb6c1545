# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How far margins spread over a box of features, for any number of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 2**16}
"""How many differences of weights are held at once, by device, but at least one sample's: what a CPU's cache holds."""
ELSEWHERE = 2**26


class Spread(torch.autograd.Function):
    """``sum over f of |base_bf - weight_jf| radius_bf``: (batch, f), (classes, f) and (batch, f) to (batch, classes).

    The half-width of ``(base_b - weight_j) . x`` over the box; with the label's weights as base, of the margins. The
    differences, (batch, classes, f), are made again in the backward pass and never held as a whole. All chunks are made
    in one place: with many classes most of the time would go into fresh memory.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, weight: Tensor, radius: Tensor) -> Tensor:
        ctx.save_for_backward(base, weight, radius)
        result = base.new_empty(base.shape[0], weight.shape[0])
        for rows, difference in _differences(base, weight):
            result[rows] = (difference.abs_() @ radius[rows].unsqueeze(2)).squeeze(2)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (base, weight, radius) = gradients, ctx.saved_tensors
        of_weights, of_radius = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        by_base, by_weight, by_radius = torch.empty_like(base), torch.zeros_like(weight), torch.empty_like(radius)
        size = None
        for rows, difference in _differences(base, weight):
            by_rows = gradient[rows].unsqueeze(1)
            if of_radius:
                size = torch.empty_like(difference) if size is None else size
                by_radius[rows] = (by_rows @ torch.abs(difference, out=size[: len(difference)])).squeeze(1)
            if of_weights:
                moved = difference.sgn_().mul_(radius[rows].unsqueeze(1))
                by_base[rows] = (by_rows @ moved).squeeze(1)
                if len(moved) == 1:
                    by_weight.addcmul_(moved[0], by_rows[0].t(), value=-1)
                else:
                    by_weight -= (gradient[rows].t().unsqueeze(1) @ moved.transpose(0, 1)).squeeze(1)
        if not of_weights:
            return None, None, by_radius
        return by_base, by_weight, by_radius if of_radius else None


def _differences(base: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows and their ``base - weight``, (rows, classes, f), valid until the next: all are made in one place."""
    batch, size = base.shape[0], max(1, CHUNK.get(weight.device.type, ELSEWHERE) // weight.numel())
    place = base.new_empty(min(size, batch), *weight.shape)
    for start in range(0, batch, size):
        rows = slice(start, start + size)
        some = base[rows].unsqueeze(1)
        yield rows, torch.sub(some, weight, out=place[: len(some)])
