# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Your own model, without a plugin: ``--model pkg.mod:factory``."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from ctkd.errors import BadInput
from ctkd.options import Options

if TYPE_CHECKING:
    from torch import nn


def _check_reference(text: str) -> str:
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text):
        raise ValueError("write pkg.mod:factory, a module and what it defines")
    return text


class ImportedOptions(Options):
    """Whose code to run."""

    factory: Annotated[str, AfterValidator(_check_reference)]
    """``pkg.mod:factory``: called with the input shape and the number of classes, or with nothing; returns a module."""


class Imported:
    """A model that a function of the user's makes. The working directory is searched first, as ``python -m`` does."""

    Options = ImportedOptions

    def __init__(self, options: ImportedOptions) -> None:
        self.options = options

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Raises: BadInput if the import or the call fails, or gives no module."""
        from torch import nn

        reference = self.options.factory
        sys.path.insert(0, str(Path.cwd()))
        try:
            factory = load(reference)
            made: Any = factory(input_shape, classes) if _takes_two(factory) else factory()
        except (Exception, SystemExit) as error:  # the user's code: anything may come out of it
            missing = isinstance(error, ModuleNotFoundError) and reference.startswith(f"{error.name}")
            hint = f"; looked in {Path.cwd()} and among what is installed" if missing else ""
            raise BadInput(f"{reference} cannot be used: {type(error).__name__}: {error}{hint}") from None
        finally:
            sys.path.pop(0)
        if not isinstance(made, nn.Module):
            raise BadInput(f"{reference} must return a torch.nn.Module, found {type(made).__name__}")
        return made


def load(reference: str) -> Callable[..., Any]:
    """What ``pkg.mod:name`` names."""
    name, _, path = reference.partition(":")
    found: Callable[..., Any] = functools.reduce(getattr, path.split("."), importlib.import_module(name))  # type: ignore[assignment]
    return found


def _takes_two(factory: Callable[..., Any]) -> bool:
    """Whether it wants (input_shape, classes): two parameters must be given, or it names them."""
    parameters = list(inspect.signature(factory).parameters.values())
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind in places]
    return len(required) == 2 or [p.name for p in parameters[:2]] == ["input_shape", "classes"]
