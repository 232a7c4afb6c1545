# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What determines a trained teacher, as one hash: the name under which it is cached."""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ctkd.api import Data
from ctkd.attribution import is_own
from ctkd.config import Choice, RunConfig
from ctkd.machine import device_name
from ctkd.plugins import registry
from ctkd.propagate import Network
from ctkd.storage import digest_tensors
from ctkd.train.options import TrainOptions


def fit_key(
    config: RunConfig,
    data: Data,
    model: Choice,
    fresh: Network,
    train: TrainOptions,
    attack: Mapping[str, Any],
    bound: Mapping[str, Any],
    selection: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    """A hash of everything that determines a teacher's weights, bit for bit.

    ``fresh``: the untrained network, for its structure; ``selection``: the attack by which epochs are compared.
    """
    parts = [registry().find(kind, table["name"]) for kind, table in (("attack", attack), ("bound", bound))]
    parts += [choice.entry for choice in (model, config.propagation, config.data)]
    key = {
        "data": [data_fingerprint(data), config.data.table()],
        "model": [model.table(), fresh.structure()],
        "train": train.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "attack": dict(attack),
        "bound": dict(bound),
        "propagation": config.propagation.table(),
        "selection": None if train.keep == "last" else dict(selection),
        "versions": dict(versions),
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability(), device_name(train.device)],
        "code": code_digest(Path(__file__).parent),
        "plugins": {entry.target: [entry.origin, plugin_digest(entry.target)] for entry in parts if not is_own(entry)},
        "factory": plugin_digest(model.table()["factory"]) if model.name == "import" else "",
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def code_digest(folder: Path) -> str:
    """A fingerprint of code: a cached teacher is not reused after the code that made it changed."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def plugin_digest(target: str) -> str:
    """A fingerprint of the code around ``"module:Object"``: its package as a whole, or its one file."""
    module = importlib.import_module(target.partition(":")[0])
    root = sys.modules[module.__name__.partition(".")[0]]
    place = getattr(root, "__file__", None) or getattr(module, "__file__", None)  # a namespace has no file
    if place is None:
        return ""
    path = Path(place)
    return code_digest(path.parent if path.name == "__init__.py" else path)


def data_fingerprint(data: Data) -> str:
    parts = {
        f"{name}/{part}": getattr(getattr(data, name), part)
        for name in ("train", "validation", "test")
        for part in ("images", "labels")
    }
    return digest_tensors(parts)
