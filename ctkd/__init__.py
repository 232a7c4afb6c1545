# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified training with knowledge distillation.

The commands are functions of the same names in ``ctkd.run``. Importing ``ctkd`` itself does not import torch.
"""

from __future__ import annotations

import importlib.metadata
from types import ModuleType
from typing import Any

from ctkd.hookspecs import Paper, Registration, hookimpl

__all__ = ["Paper", "Registration", "__version__", "hookimpl", "register"]


def register(module: ModuleType, origin: str = "this program") -> None:
    """Make a plugin module known to this process, without a package and an entry point.

    Args:
        module: has ``CTKD_INTERFACE`` and hooks, as ``ctkd.hookspecs`` says; ``sys.modules[__name__]`` is your own.
        origin: how messages name it.

    Raises:
        BadInput: it was made for another interface, or a name is taken; nothing else of it is lost.
    """
    from ctkd.errors import BadInput
    from ctkd.plugins import registry

    before = len(registry().failures)
    registry().add(module, origin)
    if failures := registry().failures[before:]:
        raise BadInput(*(str(failure) for failure in failures))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("ctkd")
    raise AttributeError(f"module 'ctkd' has no attribute {name!r}")
