# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Assertions of either version of VNN-LIB as one formula, and the formula as disjuncts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ctkd.errors import BadInput
from ctkd.vnnlib.specification import Box, Constraint, Disjunct, Specification

MOST_DISJUNCTS = 100_000
EXACT = 1 << 53
"""Integers up to here are exact in float64."""

Variable = tuple[str, int]
"""``("X", i)`` or ``("Y", j)``."""


@dataclass(frozen=True)
class Linear:
    """A linear expression: factors by variable, and a constant. Exact."""

    factors: Mapping[Variable, Fraction]
    constant: Fraction = Fraction()

    def plus(self, other: Linear, times: Fraction = Fraction(1)) -> Linear:
        """This one, and so many times the other."""
        factors = dict(self.factors)
        for variable, factor in other.factors.items():
            factors[variable] = factors.get(variable, Fraction()) + times * factor
        kept = {variable: factor for variable, factor in factors.items() if factor}
        return Linear(kept, self.constant + times * other.constant)

    def times(self, other: Linear) -> Linear:
        """Raises: BadInput where neither is a constant."""
        if other.factors and self.factors:
            raise BadInput("a product of two variables; only linear expressions are read")
        if other.factors:
            return other.times(self)
        return Linear({}).plus(self, other.constant)


@dataclass(frozen=True, eq=False)
class AtMost:
    """``expression <= 0``."""

    expression: Linear
    where: str
    """For messages, such as ``line 7``."""

    @property
    def on_outputs(self) -> bool:
        """Whether it speaks of outputs alone."""
        return {letter for letter, _ in self.expression.factors} == {"Y"}


@dataclass(frozen=True)
class All:
    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class Either:
    parts: tuple[Formula, ...]


Formula = AtMost | All | Either


def specification(assertions: Sequence[Formula], inputs: int, outputs: int, version: str) -> Specification:
    """All assertions together, as disjuncts.

    Raises:
        BadInput: an input without both bounds, or with a lower above its upper one; a comparison between inputs, or
            of inputs with outputs; a disjunct that says nothing about outputs.
    """
    alternatives = [_alternatives(assertion) for assertion in assertions]
    _check_count(alternatives)
    common = [atom for options in alternatives if len(options) == 1 for atom in options[0]]
    lower: list[Fraction | None] = [None] * inputs
    upper: list[Fraction | None] = [None] * inputs
    shared = [_constraint(atom) for atom in common if atom.on_outputs]
    for atom in common:
        if not atom.on_outputs:
            _tighten(atom, lower, upper)
    boxes: dict[tuple[AtMost, ...], Box] = {}
    disjuncts: list[Disjunct] = []
    for chosen in itertools.product(*(options for options in alternatives if len(options) > 1)):
        atoms = [atom for part in chosen for atom in part]
        bounds = tuple(atom for atom in atoms if not atom.on_outputs)
        if bounds not in boxes:
            low, high = list(lower), list(upper)
            for atom in bounds:
                _tighten(atom, low, high)
            boxes[bounds] = _box(low, high)
        own = [_constraint(atom) for atom in atoms if atom.on_outputs]
        if not shared + own:
            raise BadInput(f"disjunct {len(disjuncts) + 1} says nothing about outputs")
        disjuncts.append(Disjunct(boxes[bounds], (*shared, *own), outputs))
    return Specification(inputs, outputs, tuple(disjuncts), version)


def _alternatives(formula: Formula) -> list[tuple[AtMost, ...]]:
    """The disjunctive normal form: a list of conjunctions."""
    if isinstance(formula, AtMost):
        return [(formula,)]
    parts = [_alternatives(part) for part in formula.parts]
    if isinstance(formula, Either):
        return [one for options in parts for one in options]
    _check_count(parts)
    return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*parts)]


def _check_count(parts: Sequence[Sequence[object]]) -> None:
    count = math.prod(len(options) for options in parts)
    if count > MOST_DISJUNCTS:
        raise BadInput(f"it has {count} disjuncts when written out; at most {MOST_DISJUNCTS} are read")


def _tighten(atom: AtMost, lower: list[Fraction | None], upper: list[Fraction | None]) -> None:
    """Tighten a bound of an input."""
    factors = atom.expression.factors
    letters = {letter for letter, _ in factors}
    if letters != {"X"} or len(factors) != 1:
        inputs = "it relates inputs with outputs" if "Y" in letters else "it relates several inputs"
        reason = inputs if letters else "it compares two constants"
        raise BadInput(f"{atom.where}: {reason}; accepted: bounds of single inputs, and linear comparisons of outputs")
    (((_, i), factor),) = factors.items()
    limit = -atom.expression.constant / factor
    side, tighter = (upper, min) if factor > 0 else (lower, max)
    known = side[i]
    side[i] = limit if known is None else tighter(known, limit)


def _constraint(atom: AtMost) -> Constraint:
    """Scaled to the smallest integer coefficients."""
    factors = {j: factor for (_, j), factor in sorted(atom.expression.factors.items())}
    scale = Fraction(math.lcm(*(factor.denominator for factor in factors.values())))
    scale /= math.gcd(*(int(factor * scale) for factor in factors.values()))
    coefficients = tuple((j, int(factor * scale)) for j, factor in factors.items())
    if any(abs(factor) > EXACT for _, factor in coefficients):
        raise BadInput(f"{atom.where}: its coefficients need more digits than float64 has")
    return Constraint(coefficients, -atom.expression.constant * scale)


def _box(lower: Sequence[Fraction | None], upper: Sequence[Fraction | None]) -> Box:
    low, high = [], []
    for i, (below, above) in enumerate(zip(lower, upper, strict=True)):
        if below is None or above is None:
            raise BadInput(f"input {i} has no {'lower' if below is None else 'upper'} bound")
        if below > above:
            raise BadInput(f"input {i}: lower bound {float(below):.9g} is above upper bound {float(above):.9g}")
        low.append(below)
        high.append(above)
    return Box(tuple(low), tuple(high))
