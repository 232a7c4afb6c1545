# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A bound network: plain tensors, no batch norm, no PyTorch modules. What is bounded, attacked, exported and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctkd.propagate.ops import Activation, Conv, Linear, Nonlinear, Op

FORMAT = "ctkd-network-1"


@dataclass(frozen=True, eq=False)
class Node:
    """One operator in the graph. ``shape`` is that of its output, without the batch dimension."""

    op: Op | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    path: str

    def apply(self, values: Mapping[int, Tensor]) -> Tensor:
        assert self.op is not None
        return self.op(*(values[i] for i in self.inputs))

    def lowered(self, dtype: torch.dtype) -> Node:
        """The same node, computing in ``dtype`` if it is a convolution or fully connected."""
        return dataclasses.replace(self, op=self.op and lowered(self.op, dtype))


def lowered(op: Op, dtype: torch.dtype) -> Op:
    """The same operator, computing in ``dtype`` if it is a convolution or fully connected."""
    return op.map(lambda tensor: tensor.to(dtype)) if isinstance(op, Conv | Linear) else op


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in topological order. Node 0 is the input (it has no operator); the last node is the logits."""

    nodes: tuple[Node, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def classes(self) -> int:
        return self.nodes[-1].shape[0]

    @property
    def output(self) -> int:
        return len(self.nodes) - 1

    @property
    def head(self) -> Linear | None:
        """The last affine layer, where the network ends in one."""
        op = self.nodes[-1].op
        return op if isinstance(op, Linear) else None

    @property
    def features_node(self) -> int | None:
        """The input of the last affine layer: what distillation calls the features. None without such a layer."""
        return self.nodes[-1].inputs[0] if self.head is not None else None

    @cached_property
    def activations(self) -> tuple[int, ...]:
        """Elementwise activations: what has neurons that are active or not. Pooling is not among them."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.op, Activation))

    @cached_property
    def nonlinear(self) -> tuple[int, ...]:
        """All nodes that need bounds of their input and a relaxation: activations and max pooling."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.op, Nonlinear))

    @cached_property
    def last_use(self) -> dict[int, int]:
        """For each node the index of the last node that reads it."""
        return {source: i for i, node in enumerate(self.nodes) for source in node.inputs}

    def evaluate(self, x: Tensor, *nodes: int) -> tuple[Tensor, ...]:
        """The values of ``nodes`` at a batch of points."""
        values: dict[int, Tensor] = {0: x}
        for i, node in enumerate(self.nodes[1 : max(nodes) + 1], start=1):
            values[i] = node.apply(values)
            for source in node.inputs:
                if self.last_use[source] == i and source not in nodes:
                    values.pop(source, None)
        return tuple(values[i] for i in nodes)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        return self.evaluate(x, self.output)[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Network:
        return Network(tuple(dataclasses.replace(node, op=node.op and node.op.map(function)) for node in self.nodes))

    def detach(self) -> Network:
        return self.map(Tensor.detach)

    def to(self, target: torch.dtype | torch.device | str) -> Network:
        return self.map(lambda tensor: tensor.to(target))

    def lowered(self, dtype: torch.dtype) -> Network:
        """The same network with convolutions and hidden fully connected layers computing in ``dtype``.

        The last affine layer keeps its type, and logits with it; a network that does not end in one stays as it is.
        Operators take what they get into their own type.
        """
        if self.head is None:
            return self
        last = self.output
        return Network(tuple(node if i == last else node.lowered(dtype) for i, node in enumerate(self.nodes)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the last layer that has tensors."""
        return next(tensor.dtype for node in reversed(self.nodes) if node.op for _, tensor in node.op.tensors())

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU if it has none."""
        every = (tensor for node in self.nodes if node.op for _, tensor in node.op.tensors())
        return next((tensor.device for tensor in every), torch.device("cpu"))

    # Storage ---------------------------------------------------------------------------------------------

    def structure(self) -> list[dict[str, Any]]:
        return [
            {
                "op": type(node.op).__name__ if node.op else None,
                "attributes": node.op.attributes() if node.op else {},
                "tensors": [name for name, _ in node.op.tensors()] if node.op else [],
                "inputs": node.inputs,
                "shape": node.shape,
                "path": node.path,
            }
            for node in self.nodes
        ]

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor.detach().cpu().contiguous()
            for i, node in enumerate(self.nodes)
            if node.op
            for name, tensor in node.op.tensors()
        }

    def sha256(self) -> str:
        """A fingerprint of structure and weights; paths of layers do not count."""
        plain = [{k: v for k, v in entry.items() if k != "path"} for entry in self.structure()]
        digest = hashlib.sha256(json.dumps(plain).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        from ctkd.storage import write_tensors

        metadata = {"format": FORMAT, "structure": json.dumps(self.structure()), "sha256": self.sha256()}
        write_tensors(path, self.tensors(), metadata)

    @staticmethod
    def load(path: Path) -> Network:
        """Raises: BadInput if the file is not a network written by ``save`` or was damaged since."""
        from ctkd.errors import BadInput
        from ctkd.storage import read_tensors

        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise BadInput(f"{path} is a safetensors file, but not a network that ctkd wrote (format {FORMAT})")
        nodes = []
        try:
            for i, entry in enumerate(json.loads(metadata["structure"])):
                own = {name: tensors[f"{i}.{name}"] for name in entry["tensors"]}
                op = Op.restore(entry["op"], entry["attributes"], own) if entry["op"] else None
                nodes.append(Node(op, tuple(entry["inputs"]), tuple(entry["shape"]), entry["path"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: the network's structure cannot be read ({error!r})") from None
        network = Network(tuple(nodes))
        if network.sha256() != metadata.get("sha256"):
            raise BadInput(f"{path}: the weights do not match their checksum; the file is damaged")
        return network
