# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Global state that plugins leave alone: what it is, what changed, and how it is put back."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

Group = Literal["arithmetic", "randomness", "process"]


@dataclass(frozen=True)
class Part:
    """One part of global state. ``read`` gives a value that can be compared, ``write`` takes it back."""

    group: Group
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, keys.tobytes(), *rest)  # type: ignore[union-attr]


def _set_numpy_state(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))


def _set_torch_state(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _set_environment(values: Mapping[str, str]) -> None:
    for name in os.environ.keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _set_search_path(values: tuple[str, ...]) -> None:
    sys.path[:] = values


def _set_handlers(values: Mapping[signal.Signals, Any]) -> None:
    for number, handler in values.items():
        signal.signal(number, handler)


def _set_logging(values: tuple[int, tuple[logging.Handler, ...]]) -> None:
    root = logging.getLogger()
    root.setLevel(values[0])
    root.handlers[:] = values[1]


def _set_grad_enabled(value: bool) -> None:
    torch.set_grad_enabled(value)


def _set_device(value: torch.device) -> None:
    torch.set_default_device(None if value.type == "cpu" else value)  # None takes the mode away


def _set_anomaly(value: bool) -> None:
    torch.autograd.set_detect_anomaly(value)


def _flag(owner: Any, name: str) -> Part:
    return Part("arithmetic", lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


SIGNALS = (signal.SIGINT, signal.SIGTERM)
PARTS = {
    "torch's default dtype": Part("arithmetic", torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": Part("arithmetic", torch.get_default_device, _set_device),
    "torch's number of threads": Part("arithmetic", torch.get_num_threads, torch.set_num_threads),
    "torch's gradient mode": Part("arithmetic", torch.is_grad_enabled, _set_grad_enabled),
    "torch's anomaly detection": Part("arithmetic", torch.is_anomaly_enabled, _set_anomaly),
    "torch's deterministic algorithms": Part(
        "arithmetic", _deterministic, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    ),
    "torch's float32 matmul precision (TF32)": Part(
        "arithmetic", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "torch.backends.cudnn.allow_tf32": _flag(torch.backends.cudnn, "allow_tf32"),
    "torch.backends.cudnn.benchmark": _flag(torch.backends.cudnn, "benchmark"),
    "torch.backends.cudnn.deterministic": _flag(torch.backends.cudnn, "deterministic"),
    "torch's global random numbers": Part(
        "randomness", lambda: torch.get_rng_state().numpy().tobytes(), _set_torch_state
    ),
    "numpy's global random numbers": Part("randomness", _numpy_state, _set_numpy_state),
    "Python's global random numbers": Part("randomness", random.getstate, random.setstate),
    "os.environ": Part("process", lambda: dict(os.environ), _set_environment),
    "the working directory": Part("process", Path.cwd, os.chdir),
    "sys.path": Part("process", lambda: tuple(sys.path), _set_search_path),
    "the warnings filters": Part("process", lambda: list(warnings.filters), lambda value: None),  # see ``preserved``
    "the root logger": Part("process", lambda: (logging.root.level, tuple(logging.root.handlers)), _set_logging),
    "the handlers of SIGINT and SIGTERM": Part(
        "process", lambda: {number: signal.getsignal(number) for number in SIGNALS}, _set_handlers
    ),
}
"""By the name that messages use."""


def snapshot() -> dict[str, Any]:
    return {name: part.read() for name, part in PARTS.items()}


def changes(before: Mapping[str, Any], *groups: Group) -> list[str]:
    """What is different now, in words; of the groups named, or of all."""
    found = []
    for name, part in PARTS.items():
        after = part.read()
        if after == before[name] or (groups and part.group not in groups):
            continue
        short = part.group == "arithmetic"
        found.append(f"{name} ({before[name]} -> {after})" if short else name)
    return found


def restore(before: Mapping[str, Any]) -> None:
    for name, part in PARTS.items():
        if part.read() != before[name]:
            part.write(before[name])


@contextmanager
def preserved() -> Iterator[dict[str, Any]]:
    """Put all global state back at the end of the block; gives the snapshot from its beginning."""
    with warnings.catch_warnings():
        before = snapshot()
        try:
            yield before
        finally:
            restore(before)


def seed_everything(seed: int) -> None:
    """Other global random numbers: what a plugin computes must not depend on them."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
