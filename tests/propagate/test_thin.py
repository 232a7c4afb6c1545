# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Kernels one pixel wide with a stride, against PyTorch's convolutions in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctkd.propagate.ops.conv import Conv

Pair = tuple[int, int]
SIZES = st.tuples(st.sampled_from([1, 1, 3]), st.integers(1, 3), st.integers(0, 2), st.integers(3, 7))
"""Of one direction: kernel, stride, padding, pixels."""


class Convolutions(TorchDispatchMode):
    """Notes the kernel's size and the stride of every convolution, and of every gradient of one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Pair, Pair]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "aten.convolution" in str(function):
            backward = "backward" in str(function)
            weight, stride = args[2 if backward else 1], args[4 if backward else 3]
            self.seen.append((tuple(weight.shape[2:]), tuple(stride)))
        return function(*args, **(kwargs or {}))


@settings(deadline=None)
@given(high=SIZES, wide=SIZES, channels=st.tuples(st.integers(1, 5), st.integers(1, 5)), grouped=st.booleans())
def test_values_and_gradients_are_those_of_the_plain_convolution(
    high: tuple[int, ...], wide: tuple[int, ...], channels: Pair, grouped: bool
) -> None:
    kernel, stride, padding, size = zip(high, wide, strict=True)
    draw, groups = torch.Generator().manual_seed(0), channels[0] if grouped else 1
    out = channels[1] * groups
    x = torch.rand(3, channels[0], *size, generator=draw)
    weight = torch.randn(out, channels[0] // groups, *kernel, generator=draw)
    bias = torch.randn(out, generator=draw)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, 1, groups)
    rows = torch.randn(expected.shape, generator=draw)

    def both(dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The convolution and its transpose, with the gradients of each."""
        given = [each.to(dtype).requires_grad_() for each in (x, weight, bias, rows)]
        conv = Conv(given[1], given[2], stride, padding, (1, 1), groups)
        value, pulled = conv(given[0]), conv.backward(given[3], tuple(x.shape[1:]))[0]
        of_value = torch.autograd.grad((value * value).sum(), given[:3])
        of_pulled = torch.autograd.grad((pulled * pulled).sum(), (given[1], given[3]))
        return value, pulled, *of_value, *of_pulled

    with Convolutions() as convolutions:
        found = both(torch.float32)
    for kernels, strides in convolutions.seen:
        assert all(step == 1 for k, step in zip(kernels, strides, strict=True) if k == 1)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, both(torch.float64), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_the_weight_gradient_of_few_channels_stays_within_its_memory() -> None:
    for channels in (1, 2, 4, 7):
        weight = torch.randn(8, channels, 1, 1, requires_grad=True)
        conv = Conv(weight, torch.zeros(8), (2, 2), (0, 0), (1, 1), 1)
        x = torch.rand(64, channels, 8, 8)
        for _ in range(20):
            conv(x).square().sum().backward()
            conv.backward(torch.rand(64, 8, 4, 4), (channels, 8, 8))[0].square().sum().backward()
    assert weight.grad is not None
