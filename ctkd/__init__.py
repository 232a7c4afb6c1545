# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified training with knowledge distillation.

Importing ctkd does not import torch; the functions below load what they need when first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from ctkd.hookspecs import Registration, hookimpl

if TYPE_CHECKING:
    from ctkd.run import certify, check, export, resume, train

__all__ = ["Registration", "__version__", "certify", "check", "export", "hookimpl", "resume", "train"]

_LAZY = ("certify", "check", "export", "resume", "train")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module("ctkd.run"), name)
    if name == "__version__":
        return importlib.metadata.version("ctkd")
    raise AttributeError(f"module 'ctkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
