# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Loads plugins, built-in and foreign, through one door, and hands out what they registered."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from ctkd.errors import BadInput, RunFailed, nearest
from ctkd.hookspecs import INTERFACE, KINDS, Hooks, Registration

if TYPE_CHECKING:
    from ctkd.options import Options

GROUP = "ctkd"


@dataclass(frozen=True)
class LoadFailure:
    """A plugin, or a part of it, that could not be loaded."""

    origin: str
    error: str

    def __str__(self) -> str:
        return f"plugin {self.origin} was not loaded: {self.error}"


@dataclass
class Registry:
    """Everything that is registered, and what failed to be."""

    manager: pluggy.PluginManager
    entries: dict[tuple[str, str], Registration] = field(default_factory=dict)
    failures: list[LoadFailure] = field(default_factory=list)

    def names(self, kind: str) -> list[str]:
        return sorted(name for entry_kind, name in self.entries if entry_kind == kind)

    def find(self, kind: str, name: str, role: str = "") -> Registration:
        """Raises: BadInput naming the nearest registered name."""
        try:
            return self.entries[kind, name]
        except KeyError:
            raise BadInput(f"{role or kind} {name!r} is not known: {nearest(name, self.names(kind))}") from None

    def add(self, module: Any, origin: str) -> None:
        """Register a plugin module. What goes wrong is recorded, never raised."""
        try:
            version = getattr(module, "CTKD_INTERFACE", None)
            if version != INTERFACE:
                stated = "does not say CTKD_INTERFACE" if version is None else f"was made for interface {version}"
                raise RunFailed(f"{stated}; this ctkd has interface {INTERFACE}")
            self.manager.register(module, name=origin)
        except Exception as error:  # a foreign module: anything may come out of it
            self.failures.append(LoadFailure(origin, _one_line(error)))
            return
        for hook, kind in KINDS.items():
            for implementation in getattr(self.manager.hook, hook).get_hookimpls():
                if implementation.plugin is module:
                    self._collect(implementation.function, hook, kind, origin)

    def _collect(self, function: Any, hook: str, kind: str, origin: str) -> None:
        try:
            found = [dataclasses.replace(entry, kind=kind, origin=origin) for entry in function()]
        except Exception as error:  # a foreign hook: anything may come out of it
            self.failures.append(LoadFailure(origin, f"{hook} raised {_one_line(error)}"))
            return
        for entry in found:
            other = self.entries.setdefault((kind, entry.name), entry)
            if other is not entry:
                self.failures.append(
                    LoadFailure(
                        origin,
                        f"{kind} {entry.name!r} is already registered by {other.origin}, which is kept",
                    )
                )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@functools.cache
def registry() -> Registry:
    """The process-wide registry: every entry point of the group ``ctkd``, in order of name, built-ins first."""
    manager = pluggy.PluginManager("ctkd")
    manager.add_hookspecs(Hooks)
    result = Registry(manager)
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda p: (p.value != "ctkd.builtin", p.name)):
        distribution = point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else point.value
        try:
            module = point.load()
        except Exception as error:  # a foreign module: anything may come out of it
            result.failures.append(LoadFailure(origin, _one_line(error)))
            continue
        result.add(module, origin)
    return result


def load(reference: str, origin: str) -> Any:
    """The object behind ``"module:Object"``.

    Raises:
        RunFailed: the import failed; the plugin is named.
    """
    module, _, name = reference.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:  # foreign code: anything may come out of it
        raise RunFailed(f"plugin {origin}: {reference} cannot be loaded: {_one_line(error)}") from error


def options_class(entry: Registration) -> type[Options]:
    """The option class of a registered plugin."""
    if entry.options is not None:
        return load(entry.options, entry.origin)  # type: ignore[no-any-return]
    found = getattr(load(entry.target, entry.origin), "Options", None)
    if found is None:
        from ctkd.options import Options

        return Options
    return found  # type: ignore[no-any-return]


def create(entry: Registration, options: Options) -> Any:
    """An instance of a registered plugin."""
    return load(entry.target, entry.origin)(options)
