# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""auto_LiRPA 0.3, the oracle of the reference tests, beside a current torch and NumPy.

The release on PyPI imports names that torch and NumPy have since moved. Its own code is not changed; what it
looks for is put where it looks, once, when ``load`` is called.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
import warnings
from typing import Any

VERSION = "0.3"
HINT = f"auto_LiRPA {VERSION} is what bounds are compared with; ./check installs it (pip install --no-deps)"


def load() -> Any:
    """The module ``auto_LiRPA``, ready to use. Fails, with what to do, where it is not installed."""
    try:
        found = importlib.metadata.version("auto_LiRPA")
    except importlib.metadata.PackageNotFoundError:
        raise AssertionError(f"auto_LiRPA is not installed. {HINT}") from None
    if found != VERSION:
        raise AssertionError(f"auto_LiRPA {found} is installed. {HINT}")
    if "auto_LiRPA" not in sys.modules:
        _prepare()
        with warnings.catch_warnings(record=True):  # the package also replaces the warning filters
            package = importlib.import_module("auto_LiRPA")
        _repair(package)
    return sys.modules["auto_LiRPA"]


def _prepare() -> None:
    import numpy
    import torch

    symbolic_helper: Any = importlib.import_module("torch.onnx.symbolic_helper")  # not what torch.onnx exposes

    if "numpy.lib.arraysetops" not in sys.modules:
        moved = types.ModuleType("numpy.lib.arraysetops")
        moved.isin = numpy.isin  # type: ignore[attr-defined]
        sys.modules[moved.__name__] = moved
    try:
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        from torch.onnx._globals import GLOBALS  # type: ignore[no-redef]

    def set_opset_version(version: int) -> None:
        GLOBALS.export_onnx_opset_version = version

    def attribute(node: Any, key: str) -> Any:
        return getattr(node, node.kindOf(key))(key)

    symbolic_helper._set_opset_version = set_opset_version
    torch._C.Node.__getitem__ = attribute


def _repair(package: Any) -> None:
    original = package.BoundedModule._named_members

    def named_members(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return original(self, get_members_fn, prefix, recurse)

    package.BoundedModule._named_members = named_members
