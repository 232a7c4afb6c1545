# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Fully connected layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.propagate.ops.base import Affine

WORTH = 2**22
"""Multiplications from which on oneDNN is called directly; below, the call costs more than it saves."""


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` in the weight's type; large float32 products on a CPU by oneDNN, since MKL is slow on AMD."""
    x = x.to(weight.dtype)
    if _onednn(x, weight):
        result: Tensor = _Dense.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return F.linear(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 2
        and x.shape[0] * weight.numel() >= WORTH
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Dense(torch.autograd.Function):
    """The three products of a fully connected layer by oneDNN; it takes transposed operands as they lie."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), wanted = gradients, ctx.saved_tensors, ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wanted[0] else None,
            _product(gradient.t(), x.t()) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """``weight`` (out, in), ``bias`` (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        return dense(inputs[0], self.weight, self.bias)

    def radius(self, radius: Tensor) -> Tensor:
        return dense(radius, self.weight.abs(), None)

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        return dense(rows, self.weight.t(), None), rows @ self.bias.to(rows.dtype)

    def then_scale(self, scale: Tensor, shift: Tensor) -> Linear:
        scale, shift = scale.flatten(), shift.flatten()
        return Linear(self.weight * scale[:, None], self.bias * scale + shift)
