# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""All checks of a plugin, as callables, as results or as a pytest function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctkd.errors import BadInput, nearest
from ctkd.testing.subject import HOOKS, ConformanceError, NotApplicable, Subject, one_line

Function = Callable[[Subject], None]
TESTED = (*(kind for kind in HOOKS if kind != "command"), "logger")
"""Kinds of plugins that can be tested."""


@dataclass(frozen=True)
class Check:
    """One check of one plugin; calling it runs it.

    Attributes:
        name: such as ``gradient-reaches-every-parameter``.
        summary: one line: what holds if it passes.
    """

    name: str
    summary: str
    subject: Subject
    function: Function

    def __call__(self) -> None:
        """Leaves global state as it was, whatever the plugin does.

        Raises:
            ConformanceError: the plugin breaks the contract, or raised.
            NotApplicable: there is nothing to check.
        """
        from ctkd.testing.state import preserved

        with preserved():
            try:
                self.function(self.subject)
            except (ConformanceError, NotApplicable):
                raise
            except Exception as error:  # a foreign plugin: anything may come out of it
                raise ConformanceError(
                    str(self.subject),
                    f"it raised {one_line(error)}",
                    self.summary,
                    "look at the exception above; core uses the plugin in the same way",
                ) from error


@dataclass(frozen=True)
class Result:
    """What became of a check. ``message`` says why it failed or does not apply; it is empty otherwise."""

    check: Check
    status: Literal["passed", "failed", "not applicable"]
    message: str = ""


def checks(
    kind: str, name: str, options: Mapping[str, Any] | None = None, *, data_dir: Path | str | None = None
) -> list[Check]:
    """The checks of a registered plugin. Nothing of it is loaded before one is called.

    Args:
        kind: ``bound``, ``teacher``, ``distill``, ``attack``, ``model``, ``dataset``, ``propagation``, ``stage``,
            ``verifier`` or ``logger`` (a plugin with lifecycle hooks).
        name: its registered name; for a logger that of its entry point, or of its distribution.
        options: as in a configuration; needed where an option has no default.
        data_dir: the folder with a data set's files.

    Raises:
        BadInput: there is no such kind.
    """
    if kind not in TESTED:
        raise BadInput(f"kind {kind!r} has no conformance test: {nearest(kind, TESTED)}")
    subject = Subject(kind, name, dict(options or {}), None if data_dir is None else Path(data_dir))
    room = importlib.import_module(f"ctkd.testing.kinds.{kind}")
    functions: tuple[Function, ...] = room.CHECKS
    return [Check(_name(function), _summary(function), subject, function) for function in functions]


def run_checks(
    kind: str, name: str, options: Mapping[str, Any] | None = None, *, data_dir: Path | str | None = None
) -> list[Result]:
    """All checks run, whatever their result. Arguments as for ``checks``."""
    return [_result(check) for check in checks(kind, name, options, data_dir=data_dir)]


def conformance(
    kind: str, name: str, options: Mapping[str, Any] | None = None, *, data_dir: Path | str | None = None
) -> Callable[..., None]:
    """A pytest function with one test for each check. Arguments as for ``checks``. Needs pytest."""
    import pytest

    found = checks(kind, name, options, data_dir=data_dir)

    @pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in found])
    def test_conformance(check: Check) -> None:
        try:
            check()
        except NotApplicable as reason:
            pytest.skip(str(reason))
        except ConformanceError as error:
            if error.__cause__ is not None:
                raise  # pytest shows where the plugin raised
            pytest.fail(str(error), pytrace=False)

    return test_conformance


def _name(function: Function) -> str:
    return function.__name__.replace("_", "-")


def _summary(function: Function) -> str:
    assert function.__doc__ is not None
    return function.__doc__.strip().splitlines()[0]


def _result(check: Check) -> Result:
    try:
        check()
    except NotApplicable as reason:
        return Result(check, "not applicable", str(reason))
    except ConformanceError as error:
        return Result(check, "failed", str(error))
    return Result(check, "passed")
