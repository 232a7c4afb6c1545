# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which layers and calls are supported, and the operator each becomes. A new operator adds its row here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctkd.propagate import ops


class Unsupported(Exception):
    """Why one layer cannot be bounded."""


Make = Callable[[], ops.Op]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _linear(module: nn.Linear, x: Tensor) -> Make:
    if x.dim() != 2:
        raise Unsupported(f"Linear acts on {x.dim() - 1} dimensions {tuple(x.shape[1:])}; flatten the input before it")
    return lambda: ops.Linear(module.weight, _bias(module))


def _conv(module: nn.Conv2d, x: Tensor) -> Make:
    images(x)
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={module.padding_mode!r}; only zeros")
    padding = module.padding
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            raise Unsupported("padding='same' with an even kernel pads one side more; only symmetric padding")
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    sizes = _pair(module.stride), _pair(padding), _pair(module.dilation)
    return lambda: ops.Conv(module.weight, _bias(module), *sizes, module.groups)


def _bias(module: nn.Linear | nn.Conv2d) -> Tensor:
    return module.bias if module.bias is not None else module.weight.new_zeros(module.weight.shape[0])


def images(x: Tensor) -> None:
    if x.dim() != 4:
        raise Unsupported(f"acts on images (channels, height, width), found {tuple(x.shape[1:])}")


def _avg_pool(module: nn.AvgPool2d, x: Tensor) -> Make:
    images(x)
    return average(
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def average(
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil: bool = False,
    include: bool = True,
    divisor: Any = None,
) -> Make:
    sizes = _pair(kernel), _pair(kernel if stride is None else stride), _pair(padding)
    if ceil or divisor is not None or (not include and sizes[2] != (0, 0)):
        raise Unsupported("AvgPool2d with ceil_mode, divisor_override or count_include_pad=False")
    return lambda: ops.AvgPool(*sizes)


def _dropout(module: nn.Module, x: Tensor) -> Make:
    raise Unsupported("Dropout is random in training, so bounds would speak about another network; remove it")


# One row per supported layer: module type -> how to make its operator. None leaves the value as it is.
MODULES: dict[type[nn.Module], Callable[[Any, Tensor], Make] | None] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _avg_pool,
    nn.ReLU: lambda module, x: ops.Relu,
    nn.Identity: None,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
}
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d)
RESHAPES: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "reshape", "view")
RELUS: tuple[Any, ...] = (torch.relu, F.relu, "relu")
ADDS: tuple[Any, ...] = (operator.add, torch.add, "add")
SUBS: tuple[Any, ...] = (operator.sub, torch.sub, "sub")
MULS: tuple[Any, ...] = (operator.mul, torch.mul, "mul")
DIVS: tuple[Any, ...] = (operator.truediv, torch.div, "div")
PURE: tuple[Any, ...] = ("size", "dim", getattr, operator.getitem, "contiguous")

SUPPORTED = (
    "Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, AvgPool2d, Flatten, reshape, view, Identity, "
    "sums of two branches, and + - * / with constants"
)
