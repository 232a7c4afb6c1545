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


def _plain(op: Callable[[], ops.Op]) -> Callable[..., Make]:
    """The rule of an operator without settings; ``inplace`` is no setting (see ``trace._verify``)."""

    def rule(x: Tensor, inplace: bool = False) -> Make:
        return op

    return rule


# The arguments of the following have the names and the order of the functions in torch.nn.functional.


def _leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Make:
    if not (isinstance(negative_slope, int | float) and 0 <= negative_slope < 1):
        raise Unsupported(
            f"LeakyReLU with negative_slope={negative_slope}; accepted: a number of at least 0, less than 1"
        )
    slope = x.new_tensor(negative_slope)
    return lambda: ops.LeakyRelu(slope)


def _avg_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Make:
    images(x)
    sizes = _pair(kernel_size), _pair(kernel_size if stride is None else stride), _pair(padding)
    if ceil_mode or divisor_override is not None or (not count_include_pad and sizes[2] != (0, 0)):
        raise Unsupported("AvgPool2d with ceil_mode, divisor_override or count_include_pad=False")
    return lambda: ops.AvgPool(*sizes)


def _adaptive_avg_pool(x: Tensor, output_size: Any) -> Make:
    """Windows of equal size, so an ordinary average pool."""
    images(x)
    sizes = tuple(x.shape[2:])
    wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
    wanted = tuple(size if want is None else want for size, want in zip(sizes, wanted, strict=True))
    if any(want < 1 or size % want for size, want in zip(sizes, wanted, strict=True)):
        raise Unsupported(f"AdaptiveAvgPool2d from {sizes} to {wanted}; only sizes that divide evenly")
    kernel = (sizes[0] // wanted[0], sizes[1] // wanted[1])
    return lambda: ops.AvgPool(kernel, kernel, (0, 0))


def _max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Make:
    images(x)
    if _pair(dilation) != (1, 1) or ceil_mode or return_indices:
        raise Unsupported("MaxPool2d with dilation, ceil_mode or return_indices")
    sizes = _pair(kernel_size), _pair(kernel_size if stride is None else stride), _pair(padding)
    return lambda: ops.MaxPool(*sizes)


def _function(name: str) -> Callable[..., Make]:
    """The rule of a function that is evaluated here, but has no bounds."""
    return _plain(lambda: ops.Function(name))


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Make:
    if beta != 1 or threshold < 20:
        raise Unsupported("Softplus with beta other than 1 or a threshold below 20")
    return lambda: ops.Function("softplus")


def _power(x: Tensor, exponent: Any) -> Make:
    if not isinstance(exponent, int | float) or exponent != 2:
        raise Unsupported("a power other than 2")
    return lambda: ops.Function("square")


def _dropout(module: nn.Module, x: Tensor) -> Make:
    raise Unsupported("Dropout is random in training, so bounds would speak about another network; remove it")


# One row per supported layer: module type -> how to make its operator. None leaves the value as it is.
MODULES: dict[type[nn.Module], Callable[[Any, Tensor], Make] | None] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.AvgPool2d: lambda m, x: _avg_pool(
        x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m, x: _adaptive_avg_pool(x, m.output_size),
    nn.MaxPool2d: lambda m, x: _max_pool(
        x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.ReLU: lambda m, x: ops.Relu,
    nn.LeakyReLU: lambda m, x: _leaky_relu(x, m.negative_slope),
    nn.Sigmoid: lambda m, x: ops.Sigmoid,
    nn.Tanh: lambda m, x: ops.Tanh,
    nn.Softplus: lambda m, x: _softplus(x, m.beta, m.threshold),
    nn.SiLU: lambda m, x: lambda: ops.Function("silu"),
    nn.Identity: None,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
}
# One row per supported function, or name of a method: its rule takes the value and the call's other arguments.
FUNCTIONS: dict[Any, Callable[..., Make]] = {
    **dict.fromkeys((torch.relu, F.relu, "relu"), _plain(ops.Relu)),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _plain(ops.Sigmoid)),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), _plain(ops.Tanh)),
    F.leaky_relu: _leaky_relu,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    **dict.fromkeys((torch.max_pool2d, F.max_pool2d), _max_pool),
    **dict.fromkeys((torch.abs, operator.abs, "abs"), _function("abs")),
    **dict.fromkeys((torch.exp, "exp"), _function("exp")),
    **dict.fromkeys((torch.square, "square"), _function("square")),
    **dict.fromkeys((operator.pow, torch.pow, "pow"), _power),
    F.softplus: _softplus,
    F.silu: _function("silu"),
}
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d)
RESHAPES: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "reshape", "view")
ADDS: tuple[Any, ...] = (operator.add, torch.add, "add")
SUBS: tuple[Any, ...] = (operator.sub, torch.sub, "sub")
MULS: tuple[Any, ...] = (operator.mul, torch.mul, "mul")
DIVS: tuple[Any, ...] = (operator.truediv, torch.div, "div")
PURE: tuple[Any, ...] = ("size", "dim", getattr, operator.getitem, "contiguous")

SUPPORTED = (
    "Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, LeakyReLU, Sigmoid, Tanh, AvgPool2d, AdaptiveAvgPool2d, "
    "MaxPool2d, Flatten, reshape, view, Identity, sums of two branches, and + - * / with constants"
)
