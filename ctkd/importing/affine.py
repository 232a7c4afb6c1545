# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Convolutions, matrix products, batch normalisation and pools."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.importing.builder import Call, Pads, Ref, Refused
from ctkd.propagate.ops import AvgPool, Conv, Linear, MaxPool, Scale

Pair = tuple[int, int]
LARGEST_STEP = 2**15
"""Of kernels, strides, pads and dilations."""


def conv(call: Call) -> Ref:
    x = call.image()
    weight = call.weight(1, "weight")
    if weight.dim() != 4:
        raise Refused(f"weight of shape {tuple(weight.shape)}; accepted: two-dimensional convolutions")
    kernel = (weight.shape[2], weight.shape[3])
    given = call.take("kernel_shape", list(kernel))
    if tuple(given) != kernel:
        raise Refused(f"kernel_shape={given}, but the weight is {kernel}")
    stride, dilation, groups = _pair(call, "strides"), _pair(call, "dilations"), call.take("group", 1)
    bias = call.weight(2, "bias") if call.has(2) else torch.zeros(weight.shape[0])
    if (
        groups < 1
        or weight.shape[0] % groups
        or weight.shape[1] * groups != x.shape[0]
        or bias.shape != weight.shape[:1]
    ):
        raise Refused(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit {x.shape[0]} channels")
    pads: Any = tuple(a + b for a, b in zip(_pads(call, x, kernel, stride, dilation), x.pads, strict=True))
    weight, padding = _symmetric(weight, pads, dilation)
    op = Conv(weight, bias, stride, padding, dilation, groups)
    shape = (weight.shape[0], *_sizes(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation))
    return call.add(op, shape, Ref(x.index, x.shape))


def _pair(call: Call, name: str, default: int = 1) -> Pair:
    found = call.take(name, [default, default])
    if len(found) != 2 or not all(1 <= v <= LARGEST_STEP for v in found):
        raise Refused(f"{name}={found}; accepted: two numbers from 1 to {LARGEST_STEP}")
    return found[0], found[1]


def _pads(call: Call, x: Ref, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    automatic, pads = call.take("auto_pad", "NOTSET"), call.take("pads", [0, 0, 0, 0])
    if automatic == "VALID":
        return 0, 0, 0, 0
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        if x.pads != (0, 0, 0, 0):
            raise Refused(f"auto_pad={automatic} behind a Pad; write pads instead")
        before, after = [], []
        for size, k, s, d in zip(x.shape[1:], kernel, stride, dilation, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            less, more = total // 2, total - total // 2
            before.append(less if automatic == "SAME_UPPER" else more)
            after.append(total - before[-1])
        return before[0], before[1], after[0], after[1]
    if automatic != "NOTSET" or len(pads) != 4 or not all(0 <= v <= LARGEST_STEP for v in pads):
        raise Refused(f"auto_pad={automatic}, pads={pads}; accepted: four numbers from 0 to {LARGEST_STEP}")
    top, left, bottom, right = pads
    return top, left, bottom, right


def _symmetric(weight: Tensor, pads: Pads, dilation: Pair) -> tuple[Tensor, Pair]:
    """Zeros on one side more than on the other are rows of zeros of the kernel: exact."""
    padding, grow = [], []
    for before, after, step in ((pads[0], pads[2], dilation[0]), (pads[1], pads[3], dilation[1])):
        if (after - before) % step:
            raise Refused(f"pads={list(pads)} with dilation {dilation}; accepted: the same on both sides")
        more = abs(after - before) // step
        if more > LARGEST_STEP // 8:
            raise Refused(f"pads={list(pads)}; accepted: nearly the same on both sides")
        padding.append(max(before, after))
        # Fewer zeros before the image: the kernel starts with zeros; fewer behind it: it ends with them.
        grow.append((more, 0) if after > before else (0, more))
    return F.pad(weight, (*grow[1], *grow[0])), (padding[0], padding[1])


def _sizes(x: Ref, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Pair:
    high, wide = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[1:], kernel, stride, padding, dilation, strict=True)
    )
    return high, wide


def gemm(call: Call) -> Ref:
    x = call.ref()
    call.only("alpha", 1.0, 1.0)
    call.only("transA", 0, 0)
    beta = call.take("beta", 1.0)
    weight = call.weight(1, "weight")
    weight = weight if call.take("transB", 0) else weight.t()
    return _linear(call, x, weight, 2 if beta != 0 else None, beta)


def mat_mul(call: Call) -> Ref:
    x, weight = call.ref(), call.weight(1, "second factor")
    return _linear(call, x, weight.t() if weight.dim() == 2 else weight, None, 1.0)


def _linear(call: Call, x: Ref, weight: Tensor, bias: int | None, beta: float) -> Ref:
    if len(x.shape) != 1 or weight.dim() != 2:
        raise Refused(f"acts on (batch, features), found {len(x.shape) + 1} dimensions; flatten the input before it")
    if weight.shape[1] != x.shape[0]:
        raise Refused(f"its weight takes {weight.shape[1]} features, found {x.shape[0]}")
    constant = torch.zeros(weight.shape[0])
    if bias is not None and call.has(bias):
        if beta != 1:
            raise Refused(f"beta={beta}; accepted: 0 and 1")
        found = call.weight(bias, "bias")
        if found.dim() > 2 or found.numel() not in (1, weight.shape[0]) or (found.dim() == 2 and found.shape[0] != 1):
            raise Refused(f"bias of shape {tuple(found.shape)} for {weight.shape[0]} outputs")
        constant = found.reshape(-1).expand(weight.shape[0]).contiguous()
    return call.add(Linear(weight.contiguous(), constant), (weight.shape[0],))


def batch_normalization(call: Call) -> Ref:
    """A scale with float64 constants, so that nothing is rounded to another network."""
    x = call.ref()
    call.only("training_mode", 0, 0)
    call.take("momentum")
    call.only("spatial", 1, 1)
    epsilon = call.take("epsilon", 1e-5)
    names = ("scale", "bias", "mean", "variance")
    parts = [call.weight(i, name).double() for i, name in enumerate(names, start=1)]
    if any(part.shape != (x.shape[0],) for part in parts):
        raise Refused(f"its statistics do not fit {x.shape[0]} channels")
    scale, bias, mean, variance = (part.reshape(1, -1, *[1] * (len(x.shape) - 1)) for part in parts)
    if not ((variance + epsilon) > 0).all():
        raise Refused("its variance plus epsilon is not above 0")
    factor = scale / (variance + epsilon).sqrt()
    return call.add(Scale(factor, bias - mean * factor), x.shape)


def _window(call: Call, x: Ref) -> tuple[Pair, Pair, Pair]:
    kernel = _pair(call, "kernel_shape", 0)
    stride, dilation = _pair(call, "strides"), _pair(call, "dilations")
    if dilation != (1, 1):
        raise Refused(f"dilations={list(dilation)}; accepted: 1")
    pads = _pads(call, x, kernel, stride, dilation)
    if pads[:2] != pads[2:]:
        raise Refused(f"pads={list(pads)}; accepted: the same on both sides")
    if any(2 * p > k for p, k in zip(pads, kernel, strict=False)):
        raise Refused(f"pads={list(pads)} are more than half of the kernel {list(kernel)}")
    sizes = list(zip(x.shape[1:], pads[:2], kernel, stride, strict=True))
    if call.take("ceil_mode", 0) and any((size + 2 * p - k) % s for size, p, k, s in sizes):
        raise Refused("ceil_mode=1 with windows that reach over the edge; accepted: ceil_mode=0")
    if any(size + 2 * p < k for size, p, k, _ in sizes):
        raise Refused(f"its kernel {list(kernel)} is larger than its input {x.shape[1:]}")
    return kernel, stride, (pads[0], pads[1])


def max_pool(call: Call) -> Ref:
    x = call.image()
    call.take("storage_order")  # of the indices, which nothing here reads
    kernel, stride, padding = _window(call, x)
    return call.add(MaxPool(kernel, stride, padding), (x.shape[0], *_sizes(x, kernel, stride, padding)))


def average_pool(call: Call) -> Ref:
    x = call.image()
    counts_zeros = call.take("count_include_pad", 0)
    kernel, stride, padding = _window(call, x)
    if padding != (0, 0) and not counts_zeros:
        raise Refused(f"pads={list(padding)} that do not count; accepted: no pads, or count_include_pad=1")
    return call.add(AvgPool(kernel, stride, padding), (x.shape[0], *_sizes(x, kernel, stride, padding)))


def global_average_pool(call: Call) -> Ref:
    x = call.image()
    size = (x.shape[1], x.shape[2])
    return call.add(AvgPool(size, size, (0, 0)), (x.shape[0], 1, 1))


def reduce_mean(call: Call) -> Ref:
    """Over height and width: how some exporters write a global average pool."""
    x = call.image()
    axes = call.take("axes") or (call.integers(1, "axes") if call.has(1) else [])
    call.only("noop_with_empty_axes", 0, 0)
    keep = call.take("keepdims", 1)
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise Refused(f"axes={axes}; accepted: height and width, [2, 3]")
    size = (x.shape[1], x.shape[2])
    pooled = call.add(AvgPool(size, size, (0, 0)), (x.shape[0], 1, 1))
    return pooled if keep else call.builder.reshaped(pooled, (x.shape[0],), call.path)
