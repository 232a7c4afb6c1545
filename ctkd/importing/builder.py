# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the import knows while it walks through a model's nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctkd.propagate import Node
from ctkd.propagate.ops import Op, Reshape

LARGEST_VALUE = 2**24
"""Numbers of one node's output for one input: what a padding or a kernel asks for is checked before it is made."""

Array = NDArray[Any]
Pads = tuple[int, int, int, int]
"""Rows and columns of zeros: top, left, bottom, right."""


class Refused(Exception):
    """Why one ONNX node is not read, and what to do."""


@dataclass(frozen=True)
class Ref:
    """A value that depends on the input: a node of the network, and zeros that a Pad has put around it so far."""

    index: int
    shape: tuple[int, ...]
    pads: Pads = (0, 0, 0, 0)


Value = Ref | Array


@dataclass
class Builder:
    """The network so far.

    Attributes:
        batch: the batch size that shapes are computed with; literal sizes in a model are read against it.
        opset: of the default domain.
    """

    batch: int
    opset: int
    nodes: list[Node] = field(default_factory=list)

    def add(self, op: Op, inputs: tuple[Ref, ...], shape: tuple[int, ...], path: str) -> Ref:
        """Append an operator. ``shape`` is that of its output without the batch."""
        if any(ref.pads != (0, 0, 0, 0) for ref in inputs):
            raise Refused("it reads zeros that a Pad has added; only a Conv may do so")
        if not all(size >= 1 for size in shape):
            raise Refused(f"its output would be empty: {shape}")
        if prod(shape) > LARGEST_VALUE:
            raise Refused(f"its output would have {prod(shape)} numbers for one input; at most {LARGEST_VALUE}")
        for name, tensor in op.tensors():
            if not tensor.isfinite().all():
                raise Refused(f"its {name} holds values that are not finite")
        self.nodes.append(Node(op, tuple(ref.index for ref in inputs), shape, path))
        return Ref(len(self.nodes) - 1, shape)

    def reshaped(self, x: Ref, shape: tuple[int, ...], path: str) -> Ref:
        """The same numbers in another shape, nothing where it is the same."""
        return x if shape == x.shape else self.add(Reshape(shape), (x,), shape, path)


@dataclass
class Call:
    """One ONNX node with the values of its inputs."""

    node: onnx.NodeProto
    inputs: list[Value | None]
    path: str
    builder: Builder
    attributes: dict[str, Any]

    def take(self, name: str, default: Any = None) -> Any:
        """An attribute; what no rule takes is refused."""
        return self.attributes.pop(name, default)

    def only(self, name: str, accepted: Any, default: Any) -> None:
        """An attribute that must have one value."""
        found = self.take(name, default)
        if found != accepted:
            raise Refused(f"{name}={found}; accepted: {accepted}")

    def finish(self) -> None:
        """Nothing is left that was not read."""
        if self.attributes:
            names = ", ".join(f"{name}={value}" for name, value in self.attributes.items())
            raise Refused(f"its {names} is not known here")

    def ref(self, i: int = 0) -> Ref:
        value = self.inputs[i]
        if not isinstance(value, Ref):
            raise Refused(f"its input {i} does not depend on the network's input; accepted: one that does")
        return value

    def image(self) -> Ref:
        x = self.ref()
        if len(x.shape) != 3:
            raise Refused(f"acts on images (batch, channels, height, width), found (batch, {_sizes(x.shape)})")
        return x

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def array(self, i: int, what: str) -> Array:
        value = self.inputs[i] if i < len(self.inputs) else None
        if not isinstance(value, np.ndarray):
            raise Refused(f"its {what} must be a constant of the model")
        return value

    def weight(self, i: int, what: str) -> Tensor:
        """A float32 constant; other types would have to be rounded, and so become another network."""
        value = self.array(i, what)
        if value.dtype != np.float32:
            raise Refused(
                f"its {what} is {value.dtype}; accepted: float32. Cast the model to float32 and test it again"
            )
        return torch.from_numpy(value.copy())

    def integers(self, i: int, what: str) -> list[int]:
        value = self.array(i, what)
        if value.dtype.kind not in "iu" or value.ndim > 1:
            raise Refused(f"its {what} must be a list of integers")
        return [int(v) for v in value.reshape(-1)]

    def add(self, op: Op, shape: tuple[int, ...], *refs: Ref) -> Ref:
        return self.builder.add(op, refs or (self.ref(),), shape, self.path)


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
