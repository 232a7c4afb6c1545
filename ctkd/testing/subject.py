# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The plugin under test, and how a check says that it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ctkd import plugins
from ctkd.errors import BadInput
from ctkd.hookspecs import KINDS, Registration
from ctkd.options import Options, validate

HOOKS = {kind: hook for hook, kind in KINDS.items()}
"""The registration hook of each kind."""


class ConformanceError(AssertionError):
    """A plugin breaks its contract.

    Attributes:
        found: what the plugin did.
        contract: what it must do.
        advice: what to change.
    """

    def __init__(self, who: str, found: str, contract: str, advice: str) -> None:
        super().__init__(f"{who}\n  found:    {found}\n  contract: {contract}\n  advice:   {advice}")
        self.found, self.contract, self.advice = found, contract, advice


class NotApplicable(Exception):
    """A check has nothing to look at, such as soundness of a method that claims none."""


@dataclass(frozen=True)
class Subject:
    """A registered plugin with the options it is tested with.

    Attributes:
        values: options as a configuration has them.
        data_dir: for data sets that need files.
    """

    kind: str
    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    data_dir: Path | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    def reject(self, found: str, contract: str, advice: str) -> NoReturn:
        """Raises: ConformanceError."""
        raise ConformanceError(str(self), found, contract, advice)

    @cached_property
    def entry(self) -> Registration:
        """Raises: ConformanceError if nothing of that kind and name is registered."""
        registry = plugins.registry()
        try:
            return registry.find(self.kind, self.name)
        except BadInput as problem:
            failures = "; ".join(map(str, registry.failures))
            self.reject(
                f"{problem}{f'; {failures}' if failures else ''}",
                f"the entry point's module, group 'ctkd', lists it in {HOOKS[self.kind]}() as a ctkd.Registration",
                "install the package (pip install -e .), and compare the entry point in pyproject.toml, "
                "CTKD_INTERFACE and the name in the Registration",
            )

    @cached_property
    def options_class(self) -> type[Options]:
        return plugins.options_class(self.entry)

    def options(self) -> Options:
        """Raises: ConformanceError if the options of the test are not accepted."""
        problems: list[str] = []
        found = validate(self.options_class, self.values, self.kind, problems)
        if found is None:
            self.reject(
                "; ".join(problems),
                "a plugin is tested with options that it accepts",
                f"correct them, or give those that have no default: "
                f'conformance("{self.kind}", "{self.name}", options={{...}})',
            )
        return found

    def create(self) -> Any:
        """A new object of the plugin."""
        return plugins.create(self.entry, self.options())

    def settings(self, role: str) -> dict[str, Any]:
        """The plugin and its options as settings of a run."""
        values = {key: "none" if value is None else value for key, value in self.values.items()}
        return {f"{role}.name": self.name, **{f"{role}.{key}": value for key, value in values.items()}}


def one_line(error: BaseException) -> str:
    """An exception and its message."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
