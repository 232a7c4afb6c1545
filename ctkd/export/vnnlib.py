# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Robustness properties as VNN-LIB 1.0 text, in the one form that every verifier we tried reads.

Other forms are refused by some verifiers, and some silently drop an assertion they do not know. So the reader
here accepts what the writer writes and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from ctkd.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 1e5
"""Bounds beyond it are refused: from 1e7 a verifier was seen to answer wrongly, without a message."""


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


def format_bound(value: Any) -> str:
    """The exact decimal expansion of a finite float32: positional, with a decimal point, without exponent.

    Shorter decimals that round to the same float32 lie on the wrong side of it half the time, and then a
    corner of the box is outside of what the file says.
    """
    text = format(Decimal(float(value)), "f")
    return text if "." in text else f"{text}.0"


def write_vnnlib(prop: RobustnessProperty, *, eps: float) -> str:
    """The property's violation as VNN-LIB 1.0: a verifier answers ``unsat`` where the property holds.

    Args:
        eps: the radius the box was made from; stated in a comment only.
    """
    # No brackets and no variable names in comments: some readers are regular expressions.
    lines = [
        f"; Robustness of class {prop.label} within L-infinity distance eps = {float(eps)!r} of one input.",
        "; Bounds are rounded outward to float32 and printed exactly, so float32 corners are inside.",
        f"; sat: somewhere in the box a logit reaches that of class {prop.label}; a tie is a violation.",
        "; unsat: robust.",
        *(f"(declare-const X_{i} Real)" for i in range(prop.lower.size)),
        *(f"(declare-const Y_{j} Real)" for j in range(prop.classes)),
    ]
    for i, (lower, upper) in enumerate(zip(prop.lower, prop.upper, strict=True)):
        lines += [f"(assert (>= X_{i} {format_bound(lower)}))", f"(assert (<= X_{i} {format_bound(upper)}))"]
    lines += ["(assert (or", *_disjuncts(prop.label, prop.classes), "))"]
    return "\n".join(lines) + "\n"


def _disjuncts(label: int, classes: int) -> list[str]:
    return [f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label]


def read_vnnlib(text: str) -> RobustnessProperty:
    """Read what ``write_vnnlib`` wrote; the bounds come back bit for bit.

    Raises:
        BadInput: anything outside that form, with the line number.
    """
    lines = _Lines(text)
    inputs, classes = lines.declarations("X"), lines.declarations("Y")
    lower, upper = np.empty(inputs, np.float32), np.empty(inputs, np.float32)
    for i in range(inputs):
        lower[i], upper[i] = lines.bound(i, ">="), lines.bound(i, "<=")
        if lower[i] > upper[i]:
            raise lines.error(f"upper bound of X_{i} is below its lower bound", back=1)
    lines.literal("(assert (or")
    label = lines.label(classes)
    for disjunct in _disjuncts(label, classes):
        lines.literal(disjunct)
    lines.literal("))")
    if lines.current is not None:
        raise lines.error("expected the end of the text")
    return RobustnessProperty(lower, upper, label, classes)


class _Lines:
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

    def bound(self, i: int, sign: str) -> np.float32:
        expected = f"expected '(assert ({sign} X_{i} NUMBER))'"
        match = re.fullmatch(rf"\(assert \({sign} X_{i} (-?[0-9]+\.[0-9]+)\)\)", self.current or "")
        if match is None:
            raise self.error(expected)
        wide = float(match[1])
        if abs(wide) > LARGEST:
            raise self.error(f"{expected} with a number of at most {LARGEST:g} in size")
        value = np.float32(wide)
        if format_bound(value) != match[1]:
            raise self.error(f"{expected} with the exact decimal expansion of a float32")
        self.at += 1
        return value

    def label(self, classes: int) -> int:
        """The label that the next line's disjunct names; the line is not consumed."""
        match = re.fullmatch(r" {4}\(and \(>= Y_[0-9]{1,9} Y_([0-9]{1,9})\)\)", self.current or "")
        if match is None or int(match[1]) >= classes:
            raise self.error("expected '(and (>= Y_j Y_label))' with declared outputs")
        return int(match[1])
