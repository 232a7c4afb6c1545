# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified training with knowledge distillation.

The commands are functions of the same names in ``ctkd.run``. Importing ``ctkd`` itself does not import torch.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ctkd.hookspecs import Paper, Registration, hookimpl

__all__ = ["Paper", "Registration", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("ctkd")
    raise AttributeError(f"module 'ctkd' has no attribute {name!r}")
