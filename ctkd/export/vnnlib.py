# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Robustness properties as VNN-LIB 1.0 text, in the one form that every verifier we tried reads.

Other forms are refused by some verifiers, and some silently drop an assertion they do not know. So the reader
here accepts what the writer writes and nothing else. The text itself is made in ``generate_properties``, the script
that competition benchmarks carry with them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctkd.errors import BadInput
from ctkd.export.generate_properties import exact, vnnlib_1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LARGEST = 1e5
"""Bounds beyond it are refused: from 1e7 a verifier was seen to answer wrongly, without a message."""
NUMBER = re.compile(r"-?[0-9]+\.[0-9]+")


@dataclass(frozen=True, eq=False)
class RobustnessProperty:
    """No input between ``lower`` and ``upper`` gives another class a logit that reaches the label's.

    Attributes:
        lower, upper: (inputs,), float32, the box in row-major order of the input. Kept as read-only copies.
        label: the class that has to win, in [0, classes).
        classes: number of logits, at least 2.

    Raises:
        BadInput: not float32, shapes differ, a bound not finite or beyond 1e5, lower > upper, no such label.
    """

    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    label: int
    classes: int

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            array = np.array(getattr(self, name))
            if array.dtype != np.float32 or array.ndim != 1 or not array.size:
                raise BadInput(f"{name} bounds must be a flat float32 array, found {array.dtype} {array.shape}")
            if not (np.abs(array) <= LARGEST).all():
                raise BadInput(f"{name} bounds must be finite and at most {LARGEST:g} in size")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.lower.shape != self.upper.shape:
            raise BadInput(f"{self.lower.size} lower bounds, but {self.upper.size} upper bounds")
        if (self.lower > self.upper).any():
            i = int((self.lower > self.upper).argmax())
            raise BadInput(f"input {i}: lower bound {self.lower[i]} is above upper bound {self.upper[i]}")
        if self.classes < 2 or not 0 <= self.label < self.classes:
            raise BadInput(
                f"label {self.label} of {self.classes} classes; needs at least 2 classes and a label of them"
            )

    def identical(self, other: RobustnessProperty) -> bool:
        """Same label, same classes, and bounds with the same bits."""
        return (self.label, self.classes) == (other.label, other.classes) and all(
            a.tobytes() == b.tobytes() for a, b in ((self.lower, other.lower), (self.upper, other.upper))
        )


def write_vnnlib(prop: RobustnessProperty, *, eps: float) -> str:
    """The property's violation as VNN-LIB 1.0: a verifier answers ``unsat`` where the property holds.

    Args:
        eps: the radius the box was made from; stated in a comment only.
    """
    return vnnlib_1(prop.lower.tolist(), prop.upper.tolist(), prop.label, prop.classes, eps)


def read_vnnlib(text: str) -> RobustnessProperty:
    """Read what ``write_vnnlib`` wrote; the bounds come back bit for bit.

    Raises:
        BadInput: anything outside that form, with the line number.
    """
    lines = Lines(text)
    inputs, classes = lines.declarations("X"), lines.declarations("Y")
    lower, upper = lines.box([f"X_{i}" for i in range(inputs)])
    label = lines.unsafe_set("(and (>= Y_{j} Y_{label}))", classes)
    return RobustnessProperty(lower, upper, label, classes)


class Lines:
    """A cursor over the lines that say something; comments are whole lines."""

    def __init__(self, text: str) -> None:
        every = text.split("\n")
        self.end = len(every)
        self.lines = [(n, line) for n, line in enumerate(every, 1) if line and not line.startswith(";")]
        self.at = 0

    @property
    def current(self) -> str | None:
        return self.lines[self.at][1] if self.at < len(self.lines) else None

    def error(self, message: str, back: int = 0) -> BadInput:
        at = self.at - back
        if at >= len(self.lines):
            return BadInput(f"VNN-LIB line {self.end}: {message}, found the end of the text")
        number, line = self.lines[at]
        shown = line if len(line) <= 80 else f"{line[:77]}..."
        return BadInput(f"VNN-LIB line {number}: {message}, found {shown!r}")

    def literal(self, expected: str) -> None:
        if self.current != expected:
            raise self.error(f"expected {expected.strip()!r}")
        self.at += 1

    def declarations(self, letter: str) -> int:
        count = 0
        while self.current == f"(declare-const {letter}_{count} Real)":
            count += 1
            self.at += 1
        if not count:
            raise self.error(f"expected '(declare-const {letter}_0 Real)'")
        return count

    def box(self, variables: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lower and upper bound of each variable, in this order."""
        lower, upper = np.empty(len(variables), np.float32), np.empty(len(variables), np.float32)
        for i, name in enumerate(variables):
            lower[i], upper[i] = self.bound(name, ">="), self.bound(name, "<=")
            if lower[i] > upper[i]:
                raise self.error(f"upper bound of {name} is below its lower bound", back=1)
        return lower, upper

    def bound(self, name: str, sign: str) -> np.float32:
        expected = f"expected '(assert ({sign} {name} NUMBER))'"
        before, line = f"(assert ({sign} {name} ", self.current or ""
        number = line[len(before) : -2]
        if f"{before}{number}))" != line or not NUMBER.fullmatch(number):
            raise self.error(expected)
        wide = float(number)
        if abs(wide) > LARGEST:
            raise self.error(f"{expected} with a number of at most {LARGEST:g} in size")
        value = np.float32(wide)
        if exact(value) != number:
            raise self.error(f"{expected} with the exact decimal expansion of a float32")
        self.at += 1
        return value

    def unsafe_set(self, form: str, classes: int) -> int:
        """The label that the rest of the text is about: one disjunct of this form for each other class."""

        def disjunct(j: object, label: object) -> str:
            return f"    {form.format(j=j, label=label)}"

        self.literal("(assert (or")
        label = {disjunct(int(label == 0), label): label for label in range(classes)}.get(self.current or "")
        if label is None:
            raise self.error(f"expected {disjunct('j', 'label').strip()!r} with declared outputs")
        for j in range(classes):
            if j != label:
                self.literal(disjunct(j, label))
        self.literal("))")
        if self.current is not None:
            raise self.error("expected the end of the text")
        return label
