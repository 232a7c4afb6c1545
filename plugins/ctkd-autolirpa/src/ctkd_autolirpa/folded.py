# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A bound network as the ``nn.Module`` that auto_LiRPA traces, in the forms that all its versions bound rightly.

Not every form is: 0.3 bounds a padded AveragePool wrongly, and refuses constants that broadcast over images.
"""

from __future__ import annotations

import dataclasses
import json
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctkd.propagate import Network
from ctkd.propagate.ops import AvgPool, Conv, LeakyRelu, Linear, Op, Reshape, Scale


class Folded(nn.Module):
    """The network's operators, one after the other; while it is traced, it returns the value of every node.

    Its parameters are placeholders: newer auto_LiRPA looks at their values for layers that it can merge, and what it
    traces must not depend on the weights of one training step. They are positive, and differ.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = network.nodes
        self.names = [list(own) for own in _by_node(network)]
        for name, tensor in tensors(network).items():
            values = torch.linspace(0.1, 0.9, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            self.register_parameter(name, nn.Parameter(values.reshape(tensor.shape)))

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for i, node in enumerate(self.nodes[1:], start=1):
            own = {name: getattr(self, f"{i}_{name}") for name in self.names[i]}
            assert node.op is not None
            values.append(_apply(node.op, node.shape, own, [values[source] for source in node.inputs]))
        tracing = torch._C._get_tracing_state() is not None
        return (values[-1], *values[1:]) if tracing else values[-1]


def tensors(network: Network) -> dict[str, Tensor]:
    """The values of ``Folded``'s parameters for a network of its structure, differentiable."""
    return {f"{i}_{name}": tensor for i, own in enumerate(_by_node(network)) for name, tensor in own.items()}


def structure(network: Network) -> str:
    """What a trace depends on. Networks of equal structure differ in the values of their tensors alone."""
    own = {name: (tuple(t.shape), str(t.dtype), str(t.device)) for name, t in tensors(network).items()}
    slopes = [float(node.op.negative_slope) for node in network.nodes if isinstance(node.op, LeakyRelu)]
    return json.dumps([network.structure(), own, slopes])


def _by_node(network: Network) -> list[dict[str, Tensor]]:
    like = next(tensor for node in network.nodes if node.op for _, tensor in node.op.tensors())
    return [{} if node.op is None else _tensors(node.op, node.shape, like) for node in network.nodes]


def _tensors(op: Op, shape: tuple[int, ...], like: Tensor) -> dict[str, Tensor]:
    if isinstance(op, LeakyRelu):  # its slope is a number to auto_LiRPA
        return {}
    if isinstance(op, AvgPool):  # a convolution
        weight = like.new_full((shape[0], 1, *op.kernel), 1 / prod(op.kernel))
        return {"weight": weight, "bias": like.new_zeros(shape[0])}
    if not isinstance(op, Scale):
        return dict(op.tensors())
    if len(shape) == 3 and op.scale.shape[2:].numel() == op.shift.shape[2:].numel() == 1:  # a convolution, too
        scale, shift = (tensor.flatten().expand(shape[0]) for tensor in (op.scale, op.shift))
        return {"weight": scale.reshape(-1, 1, 1, 1), "bias": shift}
    return {name: tensor.expand(1, *shape).flatten() for name, tensor in op.tensors()}


def _apply(op: Op, shape: tuple[int, ...], own: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if isinstance(op, LeakyRelu):
        return F.leaky_relu(x, float(op.negative_slope))
    if isinstance(op, Reshape):
        return _reshape(x, op.shape)
    if isinstance(op, Linear):
        return F.linear(x, own["weight"], own["bias"])
    if isinstance(op, Conv):
        return F.conv2d(x, own["weight"], own["bias"], op.stride, op.padding, op.dilation, op.groups)
    if isinstance(op, AvgPool):
        return F.conv2d(x, own["weight"], own["bias"], op.stride, op.padding, groups=shape[0])
    if isinstance(op, Scale):
        if "weight" in own:
            return F.conv2d(x, own["weight"], own["bias"], groups=shape[0])
        return _reshape(_reshape(x, (prod(shape),)) * own["scale"] + own["shift"], shape)
    return dataclasses.replace(op, **own)(*inputs)


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) == shape:
        return x
    return torch.flatten(x, 1) if len(shape) == 1 else x.reshape(-1, *shape)
