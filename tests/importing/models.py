# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ONNX models in the forms that exporters write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = Any
RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """``inputs`` and ``output`` are names, several separated by blanks."""
    return helper.make_node(kind, inputs.split(" "), output.split(" "), name=f"{kind.lower()}-{output}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    *,
    shape: Sequence[int | str | None] = ("batch", 1, 4, 4),
    out: Sequence[int | str | None] | None = ("batch", 3),
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from ``x`` to ``y``."""
    ends = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, out)
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [ends[0]], [ends[1]], initializer=initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def written(path: Path, built: onnx.ModelProto) -> Path:
    path.write_bytes(built.SerializeToString())
    return path


def tail(source: str, size: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Flatten and a fully connected layer to ``y``."""
    nodes = [node("Flatten", source, "flat"), node("Gemm", "flat w9 b9", "y", transB=1)]
    return nodes, {"w9": weights(3, size), "b9": weights(3)}


def through(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    size: int,
    **settings: Any,
) -> onnx.ModelProto:
    """Nodes from ``x`` to ``h``, which has so many numbers, and the tail."""
    more, own = tail("h", size)
    return model([*nodes, *more], {**constants, **own}, **settings)
