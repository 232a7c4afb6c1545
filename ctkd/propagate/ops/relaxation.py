# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Linear relaxations: what a backward pass puts in the place of a nonlinear operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


class Relaxation:
    """Affine functions below and above a nonlinear one, for a batch of boxes."""

    def backward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """A lower bound of ``rows . f(x)`` as rows on x, (batch, specs, *in_shape), and a constant for each row.

        Args:
            rows: (batch, specs, *out_shape), the functionals of each box. A positive coefficient takes the function
                below, a negative one that above.

        Returns:
            The constant is (batch, specs), or None where it is zero.
        """
        raise NotImplementedError

    def __getitem__(self, samples: Tensor | slice) -> Self:
        """The relaxation of some of the boxes; an index tensor may repeat them, in any order."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Lines(Relaxation):
    """``lower_slope x + lower_shift <= f(x) <= upper_slope x + upper_shift``; a shift of None is zero.

    All are (batch, *shape).
    """

    lower_slope: Tensor
    upper_slope: Tensor
    lower_shift: Tensor | None
    upper_shift: Tensor | None

    def backward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        shifts = self.lower_shift, self.upper_shift
        result, constant = _Substitute.apply(rows, self.lower_slope, self.upper_slope, *shifts)  # type: ignore[no-untyped-call]
        return result, None if shifts == (None, None) else constant

    def __getitem__(self, samples: Tensor | slice) -> Lines:
        lower, upper = (None if shift is None else shift[samples] for shift in (self.lower_shift, self.upper_shift))
        return Lines(self.lower_slope[samples], self.upper_slope[samples], lower, upper)


class _Substitute(torch.autograd.Function):
    """``max(rows, 0) * lower_slope + min(rows, 0) * upper_slope``, and the sums of shifts by the same rule.

    Most of a backward relaxation's time goes into passes over memory: these are few, forwards and backwards, and the
    operations are those that PyTorch vectorises (``where`` is not). Where a coefficient is zero the gradient is that
    of a negative one.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, lower_slope: Tensor, upper_slope: Tensor, *shifts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, lower_slope, upper_slope, *shifts)
        negative, result = rows.clamp(max=0), rows.clamp(min=0)
        constant = rows.new_zeros(rows.shape[:2])
        for shift, part in zip(shifts, (result, negative), strict=True):
            if shift is not None:
                constant = constant + _inner(part, shift)
        return result.mul_(lower_slope.unsqueeze(1)).addcmul_(negative, upper_slope.unsqueeze(1)), constant

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With g and k the gradients of result and constant: g slope + k shift, by sign, is that of a coefficient."""
        by_result, by_constant = gradients
        rows, lower_slope, upper_slope, lower_shift, upper_shift = ctx.saved_tensors
        needs = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 5
        scale = by_constant.reshape(*by_constant.shape, *[1] * (rows.dim() - 2))
        if needs[0]:
            where_negative = by_result * upper_slope.unsqueeze(1)
            more = by_result * (lower_slope - upper_slope).unsqueeze(1)  # what a positive one has beyond that
            if upper_shift is not None:
                where_negative.addcmul_(upper_shift.unsqueeze(1), scale)
            if lower_shift is not None or upper_shift is not None:
                more.addcmul_(_difference(lower_shift, upper_shift).unsqueeze(1), scale)
            torch.ops.aten.threshold_backward.grad_input(more, rows, 0, grad_input=more)
            found[0] = where_negative.add_(more)
        for slope, shift, bound in ((1, 3, {"min": 0}), (2, 4, {"max": 0})):
            if needs[slope]:
                found[slope] = _summed(rows.clamp(**bound).mul_(by_result))
            if needs[shift]:
                found[shift] = _summed(rows.clamp(**bound).mul_(scale))
        return tuple(found)


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor:
    """a - b, where one of them may be None for zero."""
    if b is None:
        assert a is not None
        return a
    return -b if a is None else a - b


def _summed(x: Tensor) -> Tensor:
    """(batch, specs, ...) to (batch, ...)."""
    return x.squeeze(1) if x.shape[1] == 1 else x.sum(1)


def _inner(rows: Tensor, vector: Tensor) -> Tensor:
    """(batch, specs, ...) and (batch, ...) to (batch, specs), without a copy of rows that lie channels last."""
    if rows.dim() == 5 and rows.stride(2) == 1:
        rows, vector = rows.permute(0, 1, 3, 4, 2), vector.permute(0, 2, 3, 1)
    return (rows.flatten(2).to(vector.dtype) @ vector.flatten(1).unsqueeze(2)).squeeze(2)
