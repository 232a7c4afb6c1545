# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a sweep varies: parameters written as text, and what of them Optuna suggests."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctkd.config import RunConfig, resolve, split_path
from ctkd.errors import BadInput
from ctkd.options import parse_number
from ctkd.settings import nth

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from optuna.distributions import BaseDistribution

FORMS = "bound.alpha=0.1:0.9, train.l1=1e-7:1e-4:log or distill.name=none,features"
FIXED = {
    "certify": "a sweep measures every trial in the same way; give it with --set",
    "export": "nothing is exported in a sweep",
    **dict.fromkeys(
        (
            f"data.{key}"
            for key in ("name", "dir", "path", "validation", "batches", "size", "colour", "layout", "classes")
        ),
        "trials on different data cannot be compared",
    ),
    "train.eps": "certified accuracies at different radii cannot be compared",
    "train.seed": "a seed is no hyper-parameter; --seeds 0 1 2 trains each trial with several",
    "teacher.seed": "a seed is no hyper-parameter; --seeds 0 1 2 trains teachers with several, too",
    "train.final": "the validation images choose, so that they cannot be trained on",
    "train.device": "it belongs to the machine",
    "train.threads": "it belongs to the machine",
}
"""Keys that cannot be varied, and why."""
RANGE = re.compile(r"([-+.\de/]+):([-+.\de/]+)(:log)?", re.ASCII)


@dataclass(frozen=True)
class Choices:
    """A parameter with a few values."""

    key: str
    values: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        """What Optuna knows them by."""
        return [str(value) for value in self.values]

    @property
    def count(self) -> float:
        """How many values it has."""
        return len(self.values)

    def draw(self, generator: np.random.Generator) -> Any:
        """Any value, as Optuna knows it."""
        return self.texts[int(generator.integers(len(self.values)))]

    def ends(self) -> tuple[Any, ...]:
        """Values that must be accepted: all."""
        return self.values

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)

    def value(self, suggested: Any) -> Any:
        """From what Optuna suggested."""
        return self.values[self.texts.index(suggested)]


@dataclass(frozen=True)
class Range:
    """A parameter between two numbers, both included."""

    key: str
    low: float
    high: float
    log: bool
    integer: bool = False

    @property
    def count(self) -> float:
        """How many values it has; infinity for real numbers."""
        return int(self.high) - int(self.low) + 1 if self.integer else math.inf

    def draw(self, generator: np.random.Generator) -> Any:
        """Any value."""
        if self.integer:
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        return float(generator.uniform(self.low, self.high))

    def ends(self) -> tuple[Any, ...]:
        """Values that must be accepted: both ends."""
        return self.low, self.high

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, suggested: Any) -> Any:
        """From what Optuna suggested."""
        return suggested


Parameter = Choices | Range


def parse(text: str) -> Parameter:
    """A parameter from ``key=low:high``, ``key=low:high:log`` or ``key=first,second,...``.

    Raises: BadInput if the text is none of these, or the key cannot be varied.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or "." not in key or not rest:
        raise BadInput(f"--over {text}: write {FORMS}")
    why = FIXED.get(key) or FIXED.get(key.split(".")[0])
    if why:
        raise BadInput(f"--over {key}: cannot be varied: {why}")
    match = RANGE.fullmatch(rest)
    if match is None:
        values = [_toml(part.strip()) for part in rest.split(",") if part.strip()]
        names = [str(value) for value in values]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise BadInput(f"--over {text}: {twice} comes twice; name different values, or a range; write {FORMS}")
        if len(values) < 2:
            raise BadInput(f"--over {text}: name at least two different values, or a range of numbers; write {FORMS}")
        return Choices(key, tuple(values))
    try:
        low, high = (float(parse_number(part)) for part in match.groups()[:2])
    except ValueError as error:
        raise BadInput(f"--over {text}: {error}") from None
    log = match[3] is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"--over {text}: the first number must be below the second")
    if log and low <= 0:
        raise BadInput(f"--over {text}: a logarithmic range begins above 0")
    return Range(key, low, high, log)


def _toml(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def space_of(texts: Sequence[str], settings: Mapping[str, Any], file: Path | None) -> dict[str, Parameter]:
    """The parameters of a sweep, each tried at its ends in a configuration.

    Args:
        texts: as ``parse`` takes them.
        settings, file: the configuration around them, as ``ctkd.config.resolve`` takes it.

    Raises:
        BadInput: a text is wrong, a key comes twice or is also set, is unknown, or does not take a value: all at once.
    """
    problems: list[str] = []
    found: dict[str, Parameter] = {}
    for text in texts:
        try:
            parameter = parse(text)
        except BadInput as problem:
            problems += problem.messages
            continue
        if parameter.key in found:
            problems.append(f"--over {parameter.key} is given twice")
        if parameter.key in settings:
            problems.append(f"{parameter.key} is both set and varied; choose one")
        found[parameter.key] = parameter
    if not texts:
        problems.append(f"name at least one parameter to vary with --over, such as {FORMS}")
    if problems:
        raise BadInput(*problems)
    first = {parameter.key: parameter.ends()[0] for parameter in found.values()}
    for parameter in found.values():
        whole = []
        for value in parameter.ends():
            try:
                config = resolve({**settings, **first, parameter.key: _whole(value)}, file)
            except BadInput as problem:
                problems += problem.messages
                continue
            whole.append(isinstance(look_up(config, parameter.key), int))
        if isinstance(parameter, Range):
            found[parameter.key] = Range(parameter.key, parameter.low, parameter.high, parameter.log, all(whole))
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    return found


def cells_of(space: Mapping[str, Parameter]) -> float:
    """How many different trials there can be."""
    return math.prod(parameter.count for parameter in space.values())


def _whole(value: Any) -> Any:
    """Whole numbers as int, which options for floats take, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def look_up(config: RunConfig, path: str) -> Any:
    """The value of ``role.key`` in a resolved configuration."""
    role, key = split_path(path)
    tables = config.tables()
    teachers = tables.pop("teacher")
    for i, table in enumerate(teachers if isinstance(teachers, list) else [teachers], start=1):
        tables[nth("teacher", i)] = table
    value = tables[role]
    for part in key.split("."):
        value = value[part]
    return value
