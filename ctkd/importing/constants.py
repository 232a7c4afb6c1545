# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Nodes of constants alone: how exporters compute the sizes of a Reshape. Nothing is computed with weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ctkd.importing.builder import Array, Refused

MOVES = ("Cast", "Concat", "Gather", "Identity", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that put numbers elsewhere."""
SUMS = ("Add", "Div", "Mul", "Sub")
"""Accepted on integers: on weights they would round."""
LARGEST = 2**16
"""Numbers of any constant that such a node reads, unless it only renames or turns a weight."""


def constant(node: onnx.NodeProto) -> Array:
    """The value of a ``Constant`` node."""
    (attribute,) = node.attribute
    value: Any = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise Refused(f"holds {attribute.name}; accepted: a tensor, floats or integers")


def folded(node: onnx.NodeProto, inputs: list[Array | None], opset: int) -> Array:
    """One node's value by ONNX's own reference implementation, for a few harmless operators.

    Raises: Refused for any other operator, and for large inputs.
    """
    known = [value for value in inputs if value is not None]
    if node.op_type == "Identity":
        return known[0]
    if node.op_type not in (*MOVES, *SUMS):
        raise Refused("computes with constants of the model; fold constants before, as exporters do")
    if node.op_type in SUMS and any(value.dtype.kind not in "iu" for value in known):
        raise Refused("computes with weights of the model; fold constants before, as exporters do")
    if any(value.size > LARGEST for value in known) and node.op_type != "Transpose":
        raise Refused(f"acts on a constant of more than {LARGEST} numbers; fold constants before, as exporters do")
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    given = dict(zip(names, known, strict=True))
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), None) for name, v in given.items()
    ]
    graph = helper.make_graph([node], "constants", ends, [onnx.ValueInfoProto(name=node.output[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        (result,) = list(ReferenceEvaluator(model).run(None, given))
        return np.asarray(result)
    except Exception as error:  # whatever numpy makes of sizes that do not fit
        raise Refused(f"cannot be computed: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
