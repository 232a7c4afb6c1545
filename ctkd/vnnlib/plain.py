# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Writes a specification in the one form of VNN-LIB 1.0 that verifiers agree on.

Of other forms alpha-beta-CROWN reads few, and NeuralSAT drops assertions without a message, so that what it answers
belongs to another property.
"""

from __future__ import annotations

from fractions import Fraction

from ctkd.vnnlib.specification import Specification

DIGITS = 2000
"""Decimals that a number may have."""


class NotPlainError(Exception):
    """The specification cannot be written in that form; the message says why."""


def plain_text(specification: Specification) -> str:
    """The same property in VNN-LIB 1.0: bounds of inputs, then one ``or`` of ``and``s of comparisons, of two outputs
    or of one with a number. Numbers are exact decimals without an exponent.

    Raises:
        NotPlainError: it has several input boxes, a sum of outputs, or a number without a decimal form.
    """
    if len(specification.boxes) != 1:
        raise NotPlainError("it has several input boxes")
    box = specification.boxes[0]
    lines = [f"(declare-const X_{i} Real)" for i in range(specification.inputs)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(specification.outputs)]
    for i, (low, high) in enumerate(zip(box.lower, box.upper, strict=True)):
        lines += [f"(assert (>= X_{i} {_decimal(low)}))", f"(assert (<= X_{i} {_decimal(high)}))"]
    lines.append("(assert (or")
    for disjunct in specification.disjuncts:
        parts = [_comparison(constraint.coefficients, constraint.bound) for constraint in disjunct.exact]
        lines.append(f"    (and {' '.join(parts)})")
    lines.append("))")
    return "\n".join(lines) + "\n"


def _comparison(coefficients: tuple[tuple[int, int], ...], bound: Fraction) -> str:
    match coefficients:
        case ((j, factor),):
            return f"({'<=' if factor > 0 else '>='} Y_{j} {_decimal(bound / factor)})"
        case ((i, a), (j, b)) if a == -b and bound == 0:
            first, second = (i, j) if a > 0 else (j, i)
            return f"(<= Y_{first} Y_{second})"
    raise NotPlainError("it compares a sum of outputs")


def _decimal(value: Fraction) -> str:
    """Exact, positional."""
    digits = 0
    while (value.denominator and 10**digits % value.denominator) and digits < DIGITS:
        digits += 1
    scaled = value * 10**digits
    if scaled.denominator != 1:
        raise NotPlainError(f"it has the number {value}, which has no decimal form")
    sign, text = "-" if scaled < 0 else "", str(abs(scaled.numerator)).rjust(digits + 1, "0")
    return f"{sign}{text[: len(text) - digits]}.{text[len(text) - digits :] or '0'}"
