# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""From an ONNX classifier to a bound network, node by node; what is not known is refused, never approximated."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from ctkd.boxes import Box
from ctkd.errors import BadInput
from ctkd.importing.builder import Array, Builder, Call, Ref, Refused, Value
from ctkd.importing.compare import compare
from ctkd.importing.constants import constant, folded
from ctkd.importing.file import read_file
from ctkd.importing.table import HINTS, RULES
from ctkd.propagate import Network, Node
from ctkd.propagate.ops import Conv, Linear, Scale

EXAMPLE_BATCH = 3
"""Batch size that shapes are computed with where the model takes any; odd, so that no literal size fits by chance."""


@dataclass(frozen=True, eq=False)
class Imported:
    """A model and the network that it became.

    Attributes:
        network: computes what the file says in real arithmetic, up to float64 rounding of constants that were joined.
        batch: the only batch size that the model takes; None for any.
        sha256: of the model with all its data.
        difference: the largest difference of a logit between network and onnxruntime that was seen.
    """

    network: Network
    batch: int | None
    sha256: str
    difference: float


def import_model(path: Path, box: Box | None = None) -> Imported:
    """Read a classifier: one float32 input with the batch first, one output of logits.

    Args:
        path: an ONNX file; data files may lie in its folder.
        box: float32 boxes, (count, *shape), in which network and onnxruntime are compared beside [0, 1].

    Raises:
        BadInput: the file is none or is unsafe; one line for each node that is not read; or what was read computes
            something else than onnxruntime does.
    """
    model = read_file(path)
    network, batch = to_network(model, str(path))
    difference = compare(model, network, batch, box, str(path))
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return Imported(network, batch, digest, difference)


def to_network(model: onnx.ModelProto, where: str) -> tuple[Network, int | None]:
    """The network, not compared with anything yet, and the model's fixed batch size."""
    domains = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if model.functions or any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
        raise BadInput(f"{where} uses operators of its own; export it with standard ONNX operators only")
    if model.graph.sparse_initializer:
        raise BadInput(f"{where} has sparse weights; store them dense")
    values: dict[str, Value | None] = {"": None}
    for tensor in model.graph.initializer:
        values[tensor.name] = _array(tensor, where)
    name, batch, shape = _input(model, where, set(values))
    builder = Builder(batch or EXAMPLE_BATCH, domains.get("ai.onnx", 1))
    builder.nodes.append(Node(None, (), shape, "input"))
    values[name] = Ref(0, shape)
    problems = _walk(model, values, builder)
    if problems:
        accepted = f"accepted operators: {', '.join(sorted([*RULES, 'Constant']))}"
        raise BadInput(*(f"{where}: {problem}" for problem in problems), f"{where}: {accepted}")
    return _network(builder, _output(model, values, where)), batch


def _array(tensor: onnx.TensorProto, where: str) -> Array:
    try:
        value = numpy_helper.to_array(tensor)
    except Exception as error:  # whatever a malformed tensor leads to
        raise BadInput(f"{where}: weight {tensor.name!r} cannot be read: {error}") from None
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise BadInput(f"{where}: weight {tensor.name!r} holds values that are not finite")
    return value


def _input(model: onnx.ModelProto, where: str, constants: set[str]) -> tuple[str, int | None, tuple[int, ...]]:
    """Name, fixed batch size and shape without the batch."""
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    if len(inputs) != 1:
        raise BadInput(f"{where} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); accepted: one")
    (entry,) = inputs
    kind = entry.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        found = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise BadInput(f"{where}: its input is {found}; accepted: FLOAT (float32). Cast the model and test it again")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    shown = f"({', '.join(dim.dim_param or str(dim.dim_value or '?') for dim in kind.shape.dim)})"
    accepted = "accepted: (batch, features) and (batch, channels, height, width), with batch a name or 1"
    if not kind.HasField("shape") or len(sizes) < 2 or any(not size or size < 1 for size in sizes[1:]):
        raise BadInput(f"{where}: its input has shape {shown}; {accepted}, and all other sizes fixed")
    if (sizes[0] or 1) != 1:
        raise BadInput(f"{where}: its input has shape {shown}, which fixes a batch of {sizes[0]}; {accepted}")
    return entry.name, sizes[0] or None, tuple(size for size in sizes[1:] if size)


def _walk(model: onnx.ModelProto, values: dict[str, Value | None], builder: Builder) -> list[str]:
    """Every node in order; returns what is wrong, one line a node."""
    problems = []
    unknown: set[str] = set()
    for place, node in enumerate(model.graph.node):
        path = node.name or f"node {place}"
        if unknown.intersection(node.input):  # refused because of what was refused before
            unknown.update(node.output)
            if node.op_type not in (*RULES, "Constant"):
                problems.append(f"{path!r} ({node.op_type}): {_unread(node.op_type)}")
            continue
        try:
            value = _node(node, [values[name] for name in node.input], path, builder)
            if any(node.output[1:]):
                raise Refused("has a second output; accepted: one")
            values[node.output[0]] = value
        except Refused as reason:
            problems.append(f"{path!r} ({node.op_type}): {reason}")
            unknown.update(node.output)
    return problems


def _node(node: onnx.NodeProto, inputs: list[Value | None], path: str, builder: Builder) -> Value:
    if node.op_type == "Constant":
        return constant(node)
    constants = [value for value in inputs if not isinstance(value, Ref)]
    if len(constants) == len(inputs):
        return folded(node, constants, builder.opset)
    rule = RULES.get(node.op_type)
    if rule is None:
        raise Refused(_unread(node.op_type))
    attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
    call = Call(node, inputs, path, builder, attributes)
    result = rule(call)
    call.finish()
    return result


def _unread(op_type: str) -> str:
    return HINTS.get(op_type, "no operator that is bounded here; replace it by accepted ones")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _output(model: onnx.ModelProto, values: dict[str, Value | None], where: str) -> Ref:
    outputs = [entry.name for entry in model.graph.output]
    if len(outputs) != 1:
        raise BadInput(f"{where} has {len(outputs)} outputs ({', '.join(outputs)}); accepted: one")
    found = values.get(outputs[0])
    if not isinstance(found, Ref) or found.index == 0:
        raise BadInput(f"{where}: its output does not depend on its input; there is nothing to bound")
    if len(found.shape) != 1 or found.shape[0] < 2 or found.pads != (0, 0, 0, 0):
        raise BadInput(
            f"{where}: its output has shape (batch, {', '.join(map(str, found.shape))}); "
            "accepted: (batch, outputs) with at least 2 outputs"
        )
    return found


def _network(builder: Builder, output: Ref) -> Network:
    """What leads to the output, and constants that are added behind a layer without bias as its bias: exactly so."""
    nodes = list(builder.nodes)
    needed, readers = {output.index}, dict.fromkeys(range(len(nodes)), 0)
    for i in range(output.index, 0, -1):
        if i in needed:
            needed.update(nodes[i].inputs)
            for source in nodes[i].inputs:
                readers[source] += 1
    kept: list[Node] = []
    place: dict[int, int] = {}
    for i in sorted(needed | {0}):
        node = nodes[i]
        inputs = tuple(place[source] for source in node.inputs)
        joined = _with_bias(node, kept[inputs[0]]) if inputs and readers[node.inputs[0]] == 1 else None
        if joined is not None:
            kept[inputs[0]] = joined
            place[i] = inputs[0]
            continue
        kept.append(dataclasses.replace(node, inputs=inputs))
        place[i] = len(kept) - 1
    return Network(tuple(kept))


def _with_bias(node: Node, before: Node) -> Node | None:
    op, layer = node.op, before.op
    if not isinstance(op, Scale) or not isinstance(layer, Conv | Linear) or bool(layer.bias.any()):
        return None
    shift = op.shift.expand(1, *node.shape)[0].reshape(node.shape[0], -1)
    if bool((op.scale != 1).any()) or bool((shift != shift[:, :1]).any()) or shift.dtype != torch.float32:
        return None
    return dataclasses.replace(before, op=dataclasses.replace(layer, bias=shift[:, 0].contiguous()))
