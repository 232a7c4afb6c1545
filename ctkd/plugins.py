# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Loads plugins, built-in and foreign, through one door, and hands out what they registered."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from ctkd.errors import BadInput, CtkdError, RunFailed, nearest
from ctkd.hookspecs import INTERFACE, KINDS, Hooks, Paper, Registration

if TYPE_CHECKING:
    from ctkd.options import Options

GROUP = "ctkd"
BUILTIN = "ctkd.builtin"
SELECT = "CTKD_LOAD_PLUGINS"
"""Environment variable: names of the entry points to load, separated by commas; empty loads none but the built-ins."""


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
    owners: dict[str, str] = field(default_factory=dict)
    """Packages that hold plugin code, and the distribution each belongs to."""

    def names(self, kind: str) -> list[str]:
        return sorted(name for entry_kind, name in self.entries if entry_kind == kind)

    def find(self, kind: str, name: str, role: str = "") -> Registration:
        """Raises: BadInput naming the nearest registered name."""
        try:
            return self.entries[kind, name]
        except KeyError:
            hint = f" ({SELECT} is set, so some plugins are not loaded)" if os.environ.get(SELECT) is not None else ""
            origins = ", ".join(sorted({failure.origin for failure in self.failures}))
            failed = f" (not loaded: {origins})" if origins else ""
            raise BadInput(
                f"{role or kind} {name!r} is not known: {nearest(name, self.names(kind))}{hint}{failed}"
            ) from None

    def add(self, module: Any, origin: str) -> None:
        """Register a plugin module. What goes wrong is recorded, never raised."""
        try:
            if not isinstance(module, ModuleType):
                raise RunFailed(f"the entry point names a {type(module).__name__}; it must name a module")
            version = getattr(module, "CTKD_INTERFACE", None)
            if version != INTERFACE:
                stated = "does not say CTKD_INTERFACE" if version is None else f"was made for interface {version}"
                raise RunFailed(
                    f"{stated}; this ctkd has interface {INTERFACE}: install a release of the plugin, or of ctkd, so "
                    "that the two agree"
                )
            taken = self.manager.has_plugin(origin)  # one distribution may bring several modules
            self.manager.register(module, name=f"{origin} ({module.__name__})" if taken else origin)
        except (Exception, SystemExit) as error:  # a foreign module: anything may come out of it
            self.failures.append(LoadFailure(origin, one_line(error)))
            return
        self.owners[_package(module.__name__)] = origin
        known = [name for name in dir(Hooks) if name.startswith("ctkd_")]
        for name in [name for name in dir(module) if name.startswith("ctkd_") and callable(getattr(module, name))]:
            if name not in known:
                reason = f"{name} is no hook: {nearest(name, known)}"
            elif self.manager.parse_hookimpl_opts(module, name) is None:
                reason = f"{name} is not marked with @hookimpl, so it is not called"
            else:
                continue
            self.failures.append(LoadFailure(origin, reason))
        for hook, kind in KINDS.items():
            for implementation in getattr(self.manager.hook, hook).get_hookimpls():
                if implementation.plugin is module:
                    self._collect(implementation.function, hook, kind, origin)

    def _collect(self, function: Any, hook: str, kind: str, origin: str) -> None:
        try:
            found = [dataclasses.replace(_checked(entry), kind=kind, origin=origin) for entry in function()]
        except (Exception, SystemExit) as error:  # a foreign hook: anything may come out of it
            self.failures.append(LoadFailure(origin, f"{hook} raised {one_line(error)}"))
            return
        for entry in found:
            self.owners.setdefault(_package(entry.target.partition(":")[0]), origin)
            other = self.entries.setdefault((kind, entry.name), entry)
            if other is not entry:
                self.failures.append(
                    LoadFailure(
                        origin,
                        f"{kind} {entry.name!r} is already registered by {other.origin}, which is kept",
                    )
                )


def _checked(entry: Any) -> Registration:
    if not isinstance(entry, Registration):
        raise RunFailed(f"it returned a {type(entry).__name__} in the list; it must hold ctkd.Registration")
    texts = isinstance(entry.name, str) and isinstance(entry.target, str) and isinstance(entry.summary, str)
    if not texts or not entry.name or not all(entry.target.partition(":")[::2]):
        raise RunFailed(f"{entry!r}: name, target and summary must be text, target as module:Object")
    if not isinstance(entry.papers, tuple) or not all(isinstance(paper, Paper) for paper in entry.papers):
        raise RunFailed(f"{entry.name!r}: papers must be a tuple of ctkd.Paper")
    return entry


def one_line(error: BaseException) -> str:
    """An exception as one line; its type only where the message is not ctkd's own."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, CtkdError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _package(module: str) -> str:
    return module.rpartition(".")[0] or module


_active: Registry | None = None


def registry() -> Registry:
    """The registry in use; the first call loads it."""
    global _active
    if _active is None:
        _active = load_registry()
    return _active


@contextlib.contextmanager
def using(other: Registry) -> Iterator[Registry]:
    """Another registry in the place of the process's, for the length of a block."""
    global _active
    before, _active = _active, other
    try:
        yield other
    finally:
        _active = before


def load_registry() -> Registry:
    """Every entry point of the group ``ctkd``, in order of name, built-ins first.

    The environment variable ``CTKD_LOAD_PLUGINS`` restricts it to the entry points it names.
    """
    manager = pluggy.PluginManager("ctkd")
    manager.add_hookspecs(Hooks)
    result = Registry(manager)
    points = importlib.metadata.entry_points(group=GROUP)
    for point in _selected(sorted(points, key=lambda p: (p.value != BUILTIN, p.name)), result.failures):
        distribution = point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else point.value
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to results
                module = point.load()
        except (Exception, SystemExit) as error:  # a foreign module: anything may come out of it
            result.failures.append(LoadFailure(origin, one_line(error)))
            continue
        result.add(module, origin)
    return result


def _selected(
    points: list[importlib.metadata.EntryPoint], failures: list[LoadFailure]
) -> list[importlib.metadata.EntryPoint]:
    wanted = os.environ.get(SELECT)
    if wanted is None:
        return points
    names = {name.strip() for name in wanted.split(",") if name.strip()}
    foreign = {point.name for point in points if point.value != BUILTIN}
    failures += [
        LoadFailure(name, f"{SELECT} names it, and no such entry point is installed: {nearest(name, foreign)}")
        for name in sorted(names - foreign)
    ]
    return [point for point in points if point.value == BUILTIN or point.name in names]


def load(reference: str, origin: str) -> Any:
    """The object behind ``"module:Object"``.

    Raises:
        RunFailed: the import failed; the plugin is named.
    """
    module, _, name = reference.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (Exception, SystemExit) as error:  # foreign code: anything may come out of it
        raise RunFailed(f"plugin {origin}: {reference} cannot be loaded: {one_line(error)}") from error


def options_class(entry: Registration) -> type[Options]:
    """The option class of a registered plugin."""
    if entry.options is not None:
        return load(entry.options, entry.origin)  # type: ignore[no-any-return]
    from ctkd.options import Options as Base

    found = getattr(load(entry.target, entry.origin), "Options", None)
    if found is None:
        return Base
    if not (isinstance(found, type) and issubclass(found, Base)):
        raise RunFailed(
            f"plugin {entry.origin}: {entry.kind} {entry.name!r} has Options that are no ctkd.options.Options"
        )
    return found


def create(entry: Registration, options: Options) -> Any:
    """An instance of a registered plugin. Raises: RunFailed naming it, or what ctkd's own errors it raises itself."""
    target = load(entry.target, entry.origin)
    try:
        return target(options)
    except CtkdError:
        raise
    except Exception as error:  # foreign code: anything may come out of it
        if entry.target.startswith("ctkd."):
            raise
        raise RunFailed(
            f"{entry.kind} {entry.name!r} of {entry.origin} cannot be made from its options: {one_line(error)}"
        ) from error


def options_from(kind: str, table: Mapping[str, Any], role: str, problems: list[str]) -> Options | None:
    """The validated options of a table with ``name``; each mistake becomes one line in ``problems``."""
    from ctkd.options import validate

    values = dict(table)
    try:
        entry = registry().find(kind, values.pop("name"), role)
        return validate(options_class(entry), values, role, problems)
    except CtkdError as error:
        problems.append(str(error))
        return None


def create_from(kind: str, table: Mapping[str, Any]) -> Any:
    """An instance of the plugin that a table with ``name`` and options describes. Raises: BadInput."""
    problems: list[str] = []
    options = options_from(kind, table, kind, problems)
    if options is None:
        raise BadInput(*problems)
    return create(registry().find(kind, table["name"]), options)
