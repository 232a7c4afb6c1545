# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A tiny instance with a known answer, for tests of verifiers whose real program was recorded on it.

The network computes y0 = relu(x0 - x1) and y1 = 0.25 + relu(x2) / 4. On inputs from 0 to ``high`` the violation
y0 >= y1 exists from high = 0.25 on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VIOLATION = "(assert (or (and (>= Y_0 Y_1))))"


def save_tiny_network(folder: Path) -> Path:
    """Write the network as ``net.onnx``, three inputs and two outputs; returns its path."""
    weights = {
        "a": np.array([[1, -1, 0], [0, 0, 1]], np.float32),
        "b": np.zeros(2, np.float32),
        "c": np.array([[1, 0], [0, 0.25]], np.float32),
        "d": np.array([0, 0.25], np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "c", "d"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 3), ("y", 2))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "net.onnx")
    return folder / "net.onnx"


def tiny_specification(high: float, violation: str = VIOLATION) -> str:
    """Its property in VNN-LIB 1.0, on inputs from 0 to ``high``, with the assertion about outputs."""
    lines = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0", "Y_1")]
    lines += [f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} {high}))" for i in range(3)]
    return "\n".join([*lines, violation]) + "\n"
