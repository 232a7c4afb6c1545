# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Stands in for packages that alpha-beta-CROWN imports and does not need for ReLU networks; see the README.

Python runs this file by itself where its folder is on ``PYTHONPATH``. What is missing can be imported, and fails when
it is used; ``onnx2pytorch`` 0.6.0 takes the argument that only alpha-beta-CROWN's own version has.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

OPTIONAL = {"cplex", "docplex", "gurobipy", "onnxoptimizer", "onnxsim", "pyscipopt", "skl2onnx", "torchvision"}


class Absent:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise ImportError("it is not installed: ctkd's stand-in was imported in its place")


class Module(types.ModuleType):
    __path__: Sequence[str] = []

    def __getattr__(self, name: str) -> type[Absent]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: what is installed is used."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in OPTIONAL:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


class WithoutQuirks(importlib.abc.MetaPathFinder):
    """Lets the converter of ``onnx2pytorch`` from the package index take ``quirks={}``; others are refused."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "onnx2pytorch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_adapt(module: Any) -> None:
                load(module)
                convert = module.ConvertModel
                if "quirks" not in convert.__init__.__code__.co_varnames:
                    module.ConvertModel = lambda model, *, quirks=None, **others: adapted(
                        convert, model, quirks, others
                    )

            spec.loader.exec_module = load_and_adapt  # type: ignore[method-assign]
        return spec


def adapted(convert: Any, model: Any, quirks: Any, others: Any) -> Any:
    if quirks:
        raise TypeError("quirks need alpha-beta-CROWN's own version of onnx2pytorch")
    return convert(model, **others)


sys.meta_path.insert(0, WithoutQuirks())
sys.meta_path.append(StandIn())
