# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Plugins that are registered while a test runs, and taken away behind it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ctkd.hookspecs import INTERFACE, Registration, hookimpl
from ctkd.plugins import registry
from ctkd.testing.subject import HOOKS

Register = Callable[..., None]


def module(name: str, **hooks: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.CTKD_INTERFACE = INTERFACE  # type: ignore[attr-defined]
    for hook, function in hooks.items():
        setattr(made, hook, hookimpl(function))
    return made


@pytest.fixture
def register() -> Iterator[Register]:
    """Registers modules, or classes of one kind, each under its own name, in the registry of this process."""
    known = registry()
    entries, failures, owners = dict(known.entries), list(known.failures), dict(known.owners)
    added: list[Any] = []

    def add(what: Any, kind: str = "", origin: str = "stranger 1.0") -> None:
        if isinstance(what, type):
            target = f"{what.__module__}:{what.__qualname__}"
            found = [Registration(what.__name__, target, "as a stranger writes it")]
            what = module(f"stranger_{what.__name__}", **{HOOKS[kind]: lambda: found})
        known.add(what, origin)
        added.append(what)
        assert known.failures == failures

    yield add
    for each in added:
        known.manager.unregister(each)
    known.entries, known.failures, known.owners = entries, failures, owners
