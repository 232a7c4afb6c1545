# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training state on disk: two generations, each with a checksum, so that one damaged file loses one checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ctkd.errors import BadInput
from ctkd.storage import digest_tensors, read_tensors, write_tensors

CURRENT, PREVIOUS, NEXT = "checkpoint.safetensors", "checkpoint-previous.safetensors", "checkpoint-next.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one before it is kept."""
    text = json.dumps(values)
    write_tensors(folder / NEXT, tensors, {"values": text, "sha256": _digest(tensors, text)})
    if (folder / CURRENT).exists():
        (folder / CURRENT).replace(folder / PREVIOUS)
    (folder / NEXT).replace(folder / CURRENT)


def _digest(tensors: Mapping[str, Tensor], values: str) -> str:
    return hashlib.sha256(f"{digest_tensors(tensors)} {values}".encode()).hexdigest()


def load(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there never was one.

    Raises:
        BadInput: checkpoints exist and none can be read.
    """
    problems = []
    for name in (NEXT, CURRENT, PREVIOUS):  # NEXT is there only after a kill between the two renames
        path = folder / name
        if not path.exists():
            continue
        try:
            found = _read(path)
        except BadInput as problem:
            problems.append(str(problem))
            continue
        if problems:
            warn(f"{problems[0]}; going on from the checkpoint before it, step {found.values['step']}")
        if name == NEXT:
            path.replace(folder / CURRENT)  # what the kill left undone
        return found
    if problems:
        raise BadInput(*problems)
    return None


def _read(path: Path) -> Checkpoint:
    tensors, metadata = read_tensors(path)
    if _digest(tensors, metadata.get("values", "")) != metadata.get("sha256"):
        raise BadInput(f"{path} does not match its checksum; the file is damaged")
    return Checkpoint(tensors, json.loads(metadata["values"]))
