# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Fast paths against the plain ones: equal values, equal gradients, whatever the memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctkd.propagate.ops import Activation, Relu, Reshape
from ctkd.propagate.ops.layout import fast_layout


def gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    weights = [torch.rand(o.shape, generator=torch.Generator().manual_seed(i)) for i, o in enumerate(outputs)]
    return list(torch.autograd.grad(outputs, inputs, [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)]))


@pytest.mark.parametrize("points", [0, 2, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_relu_joint_is_the_plain_joint(points: int, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(points + 3, 4, 5, 6, generator=generator).contiguous(memory_format=layout).requires_grad_()
    radius = torch.rand(3, 4, 5, 6, generator=generator).contiguous(memory_format=layout).requires_grad_()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-15)):
        inputs = (value.detach().to(dtype).requires_grad_(), radius.detach().to(dtype).requires_grad_())
        fast, plain = Relu().joint(*inputs, points), Activation.joint(Relu(), *inputs, points)
        for a, b in zip(fast, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
def test_layout_changes_no_value(channels: int) -> None:
    x = torch.rand(2, channels, 5, 4)
    assert torch.equal(fast_layout(x), x)
    layer = nn.Conv2d(channels, 6, 3)
    torch.testing.assert_close(layer(fast_layout(x)), layer(x))
    assert fast_layout(x.double()).stride() == x.stride()


def test_reshape_hands_its_gradient_back_in_the_layout_it_was_given() -> None:
    seen: list[Tensor] = []
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    between = x * 1
    between.register_hook(seen.append)
    (flat,) = (Reshape((48,))(between),)
    assert torch.equal(flat, x.detach().reshape(2, 48))
    weight = torch.arange(96.0).reshape(2, 48)
    (gradient,) = torch.autograd.grad(flat, x, weight)
    assert torch.equal(gradient, weight.reshape(2, 3, 4, 4))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
