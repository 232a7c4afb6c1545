# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""VNN-LIB 1.0: s-expressions over ``X_i`` and ``Y_j``. Strict: what is not understood is refused, never dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

from ctkd.errors import BadInput
from ctkd.vnnlib.formula import All, AtMost, Either, Formula, Linear, specification
from ctkd.vnnlib.specification import Specification

TOKEN = re.compile(r"\s+|;[^\n]*|(?P<token>[()]|[^\s();]+)")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
LONGEST_NUMBER = 2000
VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
DEEPEST = 100
STRICT = "is strict; the competition's checker refuses it, and tools differ in what they make of it: write <= or >="


@dataclass(frozen=True)
class Atom:
    text: str
    line: int


@dataclass(frozen=True)
class Form:
    parts: tuple[Atom | Form, ...]
    line: int

    @property
    def head(self) -> str:
        first = self.parts[0] if self.parts else None
        return first.text if isinstance(first, Atom) else ""


def read_text(text: str) -> Specification:
    """Raises: BadInput, with the line."""
    sizes = {"X": 0, "Y": 0}
    declared: set[str] = set()
    assertions: list[Formula] = []
    for form in _forms(text):
        if form.head == "declare-const":
            _declare(form, declared, sizes)
        elif form.head == "assert" and len(form.parts) == 2:
            assertions.append(_formula(form.parts[1], declared, 0))
        else:
            raise _wrong(form, "accepted: (declare-const NAME Real) and (assert FORMULA)")
    for letter, size in sizes.items():
        if not size:
            raise BadInput(f"no {letter}_0 is declared")
        missing = next((i for i in range(size) if f"{letter}_{i}" not in declared), None)
        if missing is not None:
            raise BadInput(f"{letter}_{missing} is not declared, but {letter}_{size - 1} is")
    return specification(assertions, sizes["X"], sizes["Y"], "1.0")


def _declare(form: Form, declared: set[str], sizes: dict[str, int]) -> None:
    atoms = [part.text for part in form.parts if isinstance(part, Atom)]
    match = VARIABLE.fullmatch(atoms[1]) if len(atoms) == len(form.parts) == 3 and atoms[2] == "Real" else None
    if match is None:
        raise _wrong(form, "accepted: (declare-const X_0 Real), with names X_i and Y_j")
    if atoms[1] in declared:
        raise _wrong(form, f"{atoms[1]} is declared twice")
    declared.add(atoms[1])
    sizes[match[1]] = max(sizes[match[1]], int(match[2]) + 1)


def _formula(form: Atom | Form, declared: set[str], depth: int) -> Formula:
    if depth > DEEPEST:
        raise _wrong(form, f"nested deeper than {DEEPEST}")
    if isinstance(form, Form) and form.head in ("and", "or") and len(form.parts) > 1:
        parts = tuple(_formula(part, declared, depth + 1) for part in form.parts[1:])
        return All(parts) if form.head == "and" else Either(parts)
    if isinstance(form, Form) and form.head in ("<", ">"):
        raise _wrong(form, f"{form.head} {STRICT}")
    if isinstance(form, Form) and form.head in ("<=", ">=") and len(form.parts) == 3:
        left, right = (_linear(part, declared, depth) for part in form.parts[1:])
        sides = (left, right) if form.head == "<=" else (right, left)
        return AtMost(sides[0].plus(sides[1], Fraction(-1)), f"line {form.line}")
    raise _wrong(form, "accepted: (and ...), (or ...), (<= A B), (>= A B)")


def _linear(form: Atom | Form, declared: set[str], depth: int) -> Linear:
    if depth > DEEPEST:
        raise _wrong(form, f"nested deeper than {DEEPEST}")
    if isinstance(form, Atom):
        if match := VARIABLE.fullmatch(form.text):
            if form.text not in declared:
                raise _wrong(form, f"{form.text} is not declared")
            return Linear({(match[1], int(match[2])): Fraction(1)})
        return Linear({}, exact(form.text, f"line {form.line}"))
    parts = [_linear(part, declared, depth + 1) for part in form.parts[1:]]
    combine: dict[str, Callable[[Linear, Linear], Linear]] = {
        "+": Linear.plus,
        "-": lambda a, b: a.plus(b, Fraction(-1)),
        "*": Linear.times,
    }
    if form.head not in combine or not parts:
        raise _wrong(form, "accepted: numbers, X_i, Y_j, and +, -, * of them")
    if form.head == "-" and len(parts) == 1:
        return Linear({}).plus(parts[0], Fraction(-1))
    try:
        return reduce(combine[form.head], parts)
    except BadInput as problem:
        raise BadInput(f"line {form.line}: {problem}") from None


def exact(text: str, where: str) -> Fraction:
    """The exact value of a decimal. Raises: BadInput where it is none, or absurdly long."""
    if len(text) > LONGEST_NUMBER or not NUMBER.fullmatch(text):
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise BadInput(f"{where}: {shown!r} is not a number")
    return Fraction(text)


def _forms(text: str) -> Iterator[Form]:
    """Top-level forms, without recursion: a file may be one long line."""
    stack: list[tuple[list[Atom | Form], int]] = []
    for word, line in _tokens(text):
        if word == "(":
            stack.append(([], line))
        elif not stack:
            raise BadInput(f"line {line}: {word!r} stands outside of brackets")
        elif word == ")":
            parts, begun = stack.pop()
            form = Form(tuple(parts), begun)
            if stack:
                stack[-1][0].append(form)
            else:
                yield form
        else:
            stack[-1][0].append(Atom(word, line))
    if stack:
        raise BadInput(f"line {stack[0][1]}: a bracket is opened and never closed")


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in TOKEN.finditer(text):
        if match["token"]:
            yield match["token"], line
        line += match[0].count("\n")


def _wrong(form: Atom | Form, message: str) -> BadInput:
    return BadInput(f"line {form.line}: {message}, found {_shown(form)!r}")


def _shown(form: Atom | Form, room: int = 60) -> str:
    if isinstance(form, Atom):
        return form.text[:room]
    words = (_shown(part, room - 10) if room > 20 else "..." for part in form.parts[:4])
    more = " ..." if len(form.parts) > 4 else ""
    return f"({' '.join(words)}{more})"
