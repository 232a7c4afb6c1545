# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training state on disk: two generations, each with a checksum, so that one damaged file loses one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ctkd.errors import BadInput
from ctkd.storage import digest_tensors, read_tensors, write_tensors

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one before it is kept."""
    current = folder / CURRENT
    if current.exists():
        current.replace(folder / PREVIOUS)
    write_tensors(current, tensors, {"values": json.dumps(values), "sha256": digest_tensors(tensors)})


def load(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there never was one.

    Raises:
        BadInput: checkpoints exist and none can be read.
    """
    problems = []
    for name in (CURRENT, PREVIOUS):
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
        return found
    if problems:
        raise BadInput(*problems)
    return None


def _read(path: Path) -> Checkpoint:
    tensors, metadata = read_tensors(path)
    if digest_tensors(tensors) != metadata.get("sha256"):
        raise BadInput(f"{path} does not match its checksum; the file is damaged")
    return Checkpoint(tensors, json.loads(metadata["values"]))
