# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""An ONNX file as it lies on the disk: read without running anything, and with nothing from outside its folder."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from ctkd.errors import BadInput

LARGEST = 2**30
"""Bytes of a model, data files included. Protocol buffers end at twice that."""
MOST_NODES = 10_000


def read_file(path: Path) -> onnx.ModelProto:
    """A model that ONNX's own checker accepts, with data from files beside it in its tensors.

    Raises: BadInput if it is none, is too large, or names data outside its folder.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise BadInput(f"{path} has {size} bytes; at most {LARGEST} are read")
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's exceptions share no public base class
        raise BadInput(f"{path} is not an ONNX model: {first_line(error)}") from None
    if not model.graph.node:
        raise BadInput(f"{path} is not an ONNX model: it has no nodes")
    if len(model.graph.node) > MOST_NODES:
        raise BadInput(f"{path} has {len(model.graph.node)} nodes; at most {MOST_NODES} are read")
    left = LARGEST - size
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            left -= _fill(tensor, path.parent, left, str(path))
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's own, and others for what it did not expect
        raise BadInput(f"{path} is not valid ONNX: {first_line(error)}") from None
    return model


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    held = [a.t for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    return [*model.graph.initializer, *held]


def _fill(tensor: TensorProto, folder: Path, left: int, path: str) -> int:
    """Read a tensor's bytes from the file that it names; returns how many there are."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{path}: weight {tensor.name!r} lies in {entries.get('location', '')!r}"
    name = Path(entries.get("location", ""))
    if not name.name or name.is_absolute() or "\\" in str(name):
        raise BadInput(f"{where}; only files in the model's own folder are read")
    inside = folder.resolve()
    file = (inside / name).resolve()  # where links lead
    if inside not in file.parents:
        raise BadInput(f"{where}, which is outside of the model's folder; only files in it are read")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else None
        size = file.stat().st_size
        count = size - offset if length is None else length
        if offset < 0 or count < 0 or offset + count > size:
            raise BadInput(f"{where}, bytes {offset} to {offset + count}, but that file has {size}")
        if count > left:
            raise BadInput(f"{path} and its data files have more than {LARGEST} bytes")
        with file.open("rb") as opened:
            opened.seek(offset)
            tensor.raw_data = opened.read(count)
    except OSError as error:
        raise BadInput(f"{where}, which cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadInput(f"{where}, at an offset or length that is no number") from None
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return count


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
