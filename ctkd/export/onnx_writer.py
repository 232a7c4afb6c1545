# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A bound network as ONNX, in the few forms that every verifier we tried reads, and reads rightly.

One file, float32, opset 13, IR 8, a symbolic batch dimension, weights as initializers. Only Conv, Relu,
LeakyRelu, Sigmoid, Tanh, MaxPool, Flatten, Reshape, Gemm and Add are written. For other forms (a constant that
broadcasts, say) some verifiers silently compute another function, so an operator without an accepted form is
refused. Average pools, global ones too, are written as Conv: Marabou reads no other form of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from ctkd.errors import BadInput
from ctkd.export.check import compare
from ctkd.propagate.ops import (
    Add,
    AvgPool,
    Conv,
    LeakyRelu,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
    Scale,
    Sigmoid,
    Tanh,
)
from ctkd.storage import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from ctkd.propagate import Network, Node

OPSET = 13
IR_VERSION = 8
INPUT = "input"
OUTPUT = "logits"
WIDEST_DIAGONAL = 4096
"""Most features of a flat scale; its diagonal weight is dense (64 MiB at this width)."""


class Refused(Exception):
    """Why one layer has no accepted ONNX form."""


@dataclass
class Layer:
    """Where one operator is written.

    Attributes:
        output: name of the operator's result.
        inputs: names of its inputs.
        in_shape: of its first input, without the batch dimension.
        nodes, weights: what has been written so far, of all layers.
    """

    path: str
    output: str
    inputs: tuple[str, ...]
    in_shape: tuple[int, ...]
    nodes: list[onnx.NodeProto]
    weights: list[onnx.TensorProto]

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """A new initializer's name."""
        full = f"{self.output}_{name}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), full))
        return full

    def node(self, kind: str, inputs: tuple[str, ...], output: str = "", **attributes: Any) -> str:
        """Append one ONNX node; returns its output's name."""
        output = output or self.output
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"node_{output}", doc_string=self.path, **attributes)
        )
        return output

    def conv(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        inputs = (*self.inputs, self.weight("weight", _array(weight)), self.weight("bias", _array(bias)))
        self.node(
            "Conv",
            inputs,
            dilations=[1, 1],
            group=1,
            kernel_shape=list(weight.shape[2:]),
            pads=[*padding, *padding],
            strides=list(stride),
        )

    def gemm(self, weight: Tensor, bias: Tensor) -> None:
        inputs = (*self.inputs, self.weight("weight", _array(weight)), self.weight("bias", _array(bias)))
        self.node("Gemm", inputs, alpha=1.0, beta=1.0, transB=1)


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()


def _conv(op: Conv, layer: Layer) -> None:
    if op.groups != 1:
        raise Refused(f"Conv with groups={op.groups}; accepted: groups=1")
    if op.dilation != (1, 1):
        raise Refused(f"Conv with dilation={op.dilation}; accepted: dilation=1")
    layer.conv(op.weight, op.bias, op.stride, op.padding)


def _linear(op: Linear, layer: Layer) -> None:
    layer.gemm(op.weight, op.bias)


def _activation(op: Relu | Sigmoid | Tanh, layer: Layer) -> None:
    layer.node(type(op).__name__, layer.inputs)


def _leaky_relu(op: LeakyRelu, layer: Layer) -> None:
    """The slope is an attribute of float32, and a scalar of float32 in the network."""
    layer.node("LeakyRelu", layer.inputs, alpha=op.negative_slope.item())


def _max_pool(op: MaxPool, layer: Layer) -> None:
    if op.padding != (0, 0):
        raise Refused(f"MaxPool with padding={op.padding}, which Marabou misreads; accepted: padding=0")
    if op.stride != op.kernel:
        raise Refused(
            f"MaxPool with kernel {op.kernel} and stride {op.stride}; accepted: a stride equal to the kernel, "
            "because auto_LiRPA relaxes no other"
        )
    layer.node("MaxPool", layer.inputs, kernel_shape=list(op.kernel), pads=[0, 0, 0, 0], strides=list(op.stride))


def _add(op: Add, layer: Layer) -> None:
    layer.node("Add", layer.inputs)


def _reshape(op: Reshape, layer: Layer) -> None:
    """To flat: Flatten. To an image: Reshape [-1, C, H, W] of something flat. Other ranks are untried."""
    if len(op.shape) not in (1, 3):
        raise Refused(f"Reshape to {op.shape}; accepted: (features,) and (channels, height, width)")
    source = layer.inputs
    if len(op.shape) == 1:
        layer.node("Flatten", source, axis=1)
        return
    if len(layer.in_shape) != 1:
        source = (layer.node("Flatten", source, f"{layer.output}_flat", axis=1),)
    layer.node("Reshape", (*source, layer.weight("shape", np.array([-1, *op.shape], np.int64))))


def _scale(op: Scale, layer: Layer) -> None:
    """On an image a dense 1x1 Conv, on flat features a Gemm, both with a diagonal weight.

    Not folded into a padded Conv behind it (its zeros would no longer be zeros), nor into a Gemm: that rounds
    weights, and the exported network has to be the certified one.
    """
    scale, shift = (torch.broadcast_to(t, (1, *layer.in_shape))[0] for t in (op.scale, op.shift))
    if scale.dim() == 1:
        if scale.shape[0] > WIDEST_DIAGONAL:
            raise Refused(
                f"a scale of {scale.shape[0]} flat features would need a dense square weight; "
                f"at most {WIDEST_DIAGONAL} features, or scale the image's channels before flattening"
            )
        layer.gemm(torch.diag(scale), shift)
        return
    if scale.dim() != 3:
        raise Refused(f"a scale of shape {layer.in_shape}; accepted: (features,) and (channels, height, width)")
    per_channel = [t[:, 0, 0] for t in (scale, shift)]
    if any((t != c[:, None, None]).any() for t, c in zip((scale, shift), per_channel, strict=True)):
        raise Refused("a constant that differs between the pixels of one channel; accepted: one value per channel")
    layer.conv(torch.diag(per_channel[0])[:, :, None, None], per_channel[1], (1, 1), (0, 0))


def _avg_pool(op: AvgPool, layer: Layer) -> None:
    """A dense Conv. Exact with padding too, because padded zeros count in the mean."""
    channels = layer.in_shape[0]
    window = torch.full(op.kernel, 1 / (op.kernel[0] * op.kernel[1]))
    weight = torch.eye(channels)[:, :, None, None] * window
    layer.conv(weight, torch.zeros(channels), op.stride, op.padding)


# One row per operator that has an accepted form.
WRITERS: dict[type[Op], Callable[[Any, Layer], None]] = {
    Add: _add,
    AvgPool: _avg_pool,
    Conv: _conv,
    LeakyRelu: _leaky_relu,
    Linear: _linear,
    MaxPool: _max_pool,
    Relu: _activation,
    Reshape: _reshape,
    Scale: _scale,
    Sigmoid: _activation,
    Tanh: _activation,
}


@dataclass
class _Writer:
    network: Network
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def name(self, i: int) -> str:
        """Only letters, digits and underscores: converters turn names into attributes."""
        if i in (0, self.network.output):
            return OUTPUT if i else INPUT
        return f"{type(self.network.nodes[i].op).__name__.lower()}_{i}"

    def write(self, i: int, node: Node) -> None:
        op = node.op
        layer = Layer(
            path=node.path,
            output=self.name(i),
            inputs=tuple(self.name(source) for source in node.inputs),
            in_shape=self.network.nodes[node.inputs[0]].shape,
            nodes=self.nodes,
            weights=self.weights,
        )
        try:
            if op is None or type(op) not in WRITERS:
                raise Refused(f"{type(op).__name__}; accepted: {', '.join(kind.__name__ for kind in WRITERS)}")
            for name, tensor in op.tensors():
                if tensor.dtype != torch.float32:
                    raise Refused(f"its {name} is {tensor.dtype}; only float32 is exported")
                if not tensor.isfinite().all():
                    raise Refused(f"its {name} holds values that are not finite")
            WRITERS[type(op)](op, layer)
        except Refused as reason:
            self.problems.append(f"layer {node.path!r} has no ONNX form that all verifiers read: {reason}")


def to_onnx(network: Network) -> onnx.ModelProto:
    """The network as an ONNX model: input "input" (batch, *input_shape), output "logits" (batch, classes).

    Weights are the network's own, bit for bit. Not checked here; see ``compare``.

    Raises:
        BadInput: one line per layer without an accepted form, with the layer's path and the reason.
    """
    writer = _Writer(network)
    if len(network.input_shape) not in (1, 3):
        shape = network.input_shape
        writer.problems.append(f"input shape {shape}; accepted: (features,) and (channels, height, width)")
    if network.output == 0 or len(network.nodes[-1].shape) != 1:
        writer.problems.append(
            f"the network must end in logits of shape (batch, classes), found {network.nodes[-1].shape}"
        )
    for i, node in enumerate(network.nodes[1:], start=1):
        writer.write(i, node)
    if writer.problems:
        raise BadInput(*writer.problems)
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])
        for name, shape in ((INPUT, network.input_shape), (OUTPUT, (network.classes,)))
    ]
    graph = helper.make_graph(writer.nodes, "network", ends[:1], ends[1:], initializer=writer.weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="ctkd"
    )
    helper.set_model_props(model, {"ctkd.network.sha256": network.sha256()})
    return model


def write_onnx(network: Network, path: Path) -> None:
    """Write the network as one ONNX file, after checking it; ``path`` is whole or untouched.

    Raises:
        BadInput: a layer has no accepted form, or the path cannot be written.
        RunFailed: the model does not compute what the network computes.
    """
    model = to_onnx(network)
    compare(model, network)
    try:
        write_bytes(path, model.SerializeToString(deterministic=True))
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None
