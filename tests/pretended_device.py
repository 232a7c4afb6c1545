# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A pretended device: the CPU computes, and tensors on it mix with the CPU's as little as CUDA's would.

With it a machine without a GPU finds what would fail on one: a CPU mask beside a device tensor, an ``arange`` without
``device=``, ``numpy()`` of a result. Values are real, so control flow that depends on them works, and so do the
branches for devices other than the CPU. What it does not show is a kernel that a real device lacks, or its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "pretended"
MIXES = {"aten::_to_copy", "aten::copy_", "aten::copy"}
"""What moves values between devices."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""A CPU index serves a device tensor; a device index serves no CPU tensor."""
CPU_VALUE = {"aten::masked_fill", "aten::masked_fill_", "aten::index_put", "aten::index_put_", "aten::fill_"}
"""These take a CPU number as a tensor without dimensions, and so does all elementwise arithmetic."""


class _Module(_DummyBackendModule):
    """What PyTorch asks of ``torch.pretended``. It stays for the rest of the process, where nothing may mind it."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None: ...


@cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Inside, ``torch.device("pretended")`` can be computed on; yields it."""
    _register()
    # A thread of the device's own, as autograd starts for each, would call Python while it shuts down.
    with _Mode(), torch.autograd.set_multithreading_enabled(False):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is made on the CPU and moved
        try:
            yield torch.device(DEVICE, 0)
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


class Pretended(torch.Tensor):
    """A tensor on the pretended device; its values are those of ``held``, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(DEVICE, 0),
        )
        made.held = inner
        return made

    def tolist(self) -> Any:  # PyTorch has none for subclasses
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees also what has no tensor argument: ``torch.zeros(..., device=...)``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors: list[torch.Tensor] = []

    def held(x: torch.Tensor) -> torch.Tensor:
        tensors.append(x)
        return x.held if isinstance(x, Pretended) else x

    plain, named = _mapped(held, (args, kwargs))
    here = any(isinstance(x, Pretended) for x in tensors)
    _check(func, args, tensors)
    wanted = kwargs.get("device")
    if wanted is not None:
        here = torch.device(wanted).type == DEVICE
        named = {**named, "device": torch.device("cpu") if here else wanted}
    with torch.no_grad():
        found = func(*plain, **named)
    if not here:
        return found
    return return_and_correct_aliasing(func, args, kwargs, _mapped(Pretended, found))


def _mapped(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """With each tensor replaced, also those in lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {key: _mapped(function, part) for key, part in value.items()}
    return value


def _check(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raises: RuntimeError where CUDA would."""
    name = func._schema.name
    count = sum(isinstance(x, Pretended) for x in tensors)
    if name in MIXES or count in (0, len(tensors)):
        return
    if name in INDEXING:
        if not isinstance(args[0], Pretended):
            raise RuntimeError(f"{name}: indices of {DEVICE} cannot index a tensor of the CPU")
        tensors = [x for x in args[2:3] if isinstance(x, torch.Tensor)]
    number = torch.Tag.pointwise in func.tags or name in CPU_VALUE
    for x in tensors:
        if not isinstance(x, Pretended) and not (number and x.dim() == 0):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {DEVICE} and cpu")
