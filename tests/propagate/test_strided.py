# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Strided convolutions with a gradient of their own, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ctkd.propagate.ops import strided

Pair = tuple[int, int]


@settings(deadline=None)
@given(
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    times=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    beyond=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
def test_gradients_are_those_of_the_plain_convolution(
    stride: Pair, times: Pair, padding: Pair, beyond: Pair, channels: Pair, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    kernel = tuple(s * t for s, t in zip(stride, times, strict=True))
    size = tuple(max(1, k - 2 * p) + b for k, p, b in zip(kernel, padding, beyond, strict=True))
    x = torch.rand(2, channels[0], *size, generator=draw).double().requires_grad_()
    weight = torch.randn(channels[1], channels[0], *kernel, generator=draw).double().requires_grad_()
    bias = torch.randn(channels[1], generator=draw).double().requires_grad_()
    plain = F.conv2d(x, weight, bias, stride, padding)
    ours = strided._Strided.apply(x, weight, bias, stride, padding)
    assert torch.equal(plain, ours)
    upstream = torch.randn(plain.shape, generator=draw).double()
    expected = torch.autograd.grad(plain, (x, weight, bias), upstream)
    found = torch.autograd.grad(ours, (x, weight, bias), upstream)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_it_is_used_where_it_pays_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        strided, "input_gradient", lambda g, w, size, *rest: called.append(1) or g.new_zeros(1, 2, *size)
    )
    for kernel, stride, groups, used in ((4, 2, 1, True), (3, 2, 1, False), (3, 1, 1, False), (4, 2, 2, False)):
        x = torch.rand(1, 2, 8, 8, requires_grad=True)
        weight = torch.rand(2, 2 // groups, kernel, kernel)
        strided.convolve(x, weight, None, (stride, stride), (1, 1), (1, 1), groups).sum().backward()
        assert bool(called) is used
        called.clear()
