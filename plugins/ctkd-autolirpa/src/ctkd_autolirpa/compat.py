# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""auto_LiRPA 0.3 (the release on PyPI) and 0.7 or newer (its repository) beside a current torch and NumPy.

0.3 imports names that torch and NumPy have since moved. Its code is not changed; what it looks for is put where it
looks. Newer versions need none of that and get none. This is the one place that knows versions apart.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ctkd.errors import RunFailed

INSTALL = "pip install --no-deps auto_LiRPA==0.3"
ACCEPTED = "0.3, and 0.7 or newer from its repository"


def version() -> str:
    """The version that an import would find; nothing is imported.

    Raises: RunFailed if there is none, or one that this plugin does not know.
    """
    spec = importlib.util.find_spec("auto_LiRPA")
    if spec is None or spec.origin is None:
        raise RunFailed(f"auto_LiRPA is not installed; run: {INSTALL}")
    # Not the metadata: a source tree has none, and an installed copy may stand behind it.
    stated = re.search(r"""^__version__ = ['"](\d+)\.(\d+)(\S*)['"]""", Path(spec.origin).read_text("utf-8"), re.M)
    found = "".join((stated[1], ".", stated[2], stated[3])) if stated else "of an unknown version"
    if stated is None or not ((number := (int(stated[1]), int(stated[2]))) == (0, 3) or number >= (0, 7)):
        raise RunFailed(f"auto_LiRPA {found} is installed ({spec.origin}); accepted: {ACCEPTED}; run: {INSTALL}")
    return found


@functools.cache
def load() -> Any:
    """The module ``auto_LiRPA``, ready to use.

    Raises: RunFailed if it is missing, of an unknown version, or cannot be imported.
    """
    found = version()
    old = found.startswith("0.3")
    if old:
        _prepare()
    try:
        with _nothing_left_behind():
            package = importlib.import_module("auto_LiRPA")
    except Exception as error:  # a foreign package: anything may come out of it
        raise RunFailed(f"auto_LiRPA {found} cannot be imported: {type(error).__name__}: {error}") from error
    if old:
        _repair(package)
    return package


def set_input(bounded: Any, x: Any) -> None:
    """Forget all bounds and take a new input."""
    (bounded.set_input if hasattr(bounded, "set_input") else bounded._set_input)(x)


@contextlib.contextmanager
def quiet(dtype: torch.dtype) -> Iterator[None]:
    """Run auto_LiRPA without its prints and warnings, with ``dtype`` as the default: it makes tensors of that type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Recorded as well as ignored: importing auto_LiRPA puts a filter of its own in front.
        with warnings.catch_warnings(record=True), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def exporter_untouched() -> Iterator[None]:
    """Tracing sets options of torch's ONNX exporter for the whole process; they are put back."""
    settings = _exporter_settings()
    before = dict(vars(settings))
    try:
        yield
    finally:
        vars(settings).update(before)


@contextlib.contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Importing auto_LiRPA changes warning filters, logging and the JIT for the whole process; all are put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    executor, mode = torch._C._jit_set_profiling_executor(True), torch._C._jit_set_profiling_mode(True)
    logging.getLogger("auto_LiRPA").addHandler(logging.NullHandler())
    try:
        with quiet(torch.get_default_dtype()):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        torch._C._jit_set_profiling_executor(executor)
        torch._C._jit_set_profiling_mode(mode)


def _exporter_settings() -> Any:
    try:
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        from torch.onnx._globals import GLOBALS  # type: ignore[no-redef, import-not-found]
    return GLOBALS


def _prepare() -> None:
    """What 0.3 looks for while it is imported and while it traces."""
    import numpy

    symbolic_helper: Any = importlib.import_module("torch.onnx.symbolic_helper")  # not what torch.onnx exposes
    if "numpy.lib.arraysetops" not in sys.modules:
        moved: Any = types.ModuleType("numpy.lib.arraysetops")
        moved.isin = numpy.isin
        sys.modules[moved.__name__] = moved

    def set_opset_version(number: int) -> None:
        _exporter_settings().export_onnx_opset_version = number

    def attribute(node: Any, key: str) -> Any:
        return getattr(node, node.kindOf(key))(key)

    symbolic_helper._set_opset_version = set_opset_version
    torch._C.Node.__getitem__ = attribute  # type: ignore[method-assign]


def _repair(package: Any) -> None:
    """``named_parameters`` of a current torch passes one argument more than 0.3 takes."""
    original = package.BoundedModule._named_members

    def named_members(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return original(self, get_members_fn, prefix, recurse)

    package.BoundedModule._named_members = named_members
