# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A specification: which inputs and outputs of a network are a violation. Kept exactly, as rational numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Box:
    """Inputs between exact bounds, (inputs,) each, in row-major order of the network's input."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]

    @cached_property
    def outer(self) -> tuple[Float64, Float64]:
        """The smallest float64 box that holds the exact one."""
        return rounded(self.lower, down=True), rounded(self.upper, down=False)

    @cached_property
    def inner(self) -> tuple[Float64, Float64]:
        """The float64 numbers that lie in the exact box; empty (lower > upper) where none does."""
        return rounded(self.lower, down=False), rounded(self.upper, down=True)


@dataclass(frozen=True)
class Constraint:
    """The sum of ``coefficients[j] * y[j]`` is at most ``bound``; exact, with integer coefficients."""

    coefficients: tuple[tuple[int, int], ...]
    """Pairs (j, coefficient), by j."""
    bound: Fraction

    def holds(self, y: Sequence[Fraction]) -> bool:
        return sum((factor * y[j] for j, factor in self.coefficients), Fraction()) <= self.bound


@dataclass(frozen=True, eq=False)
class Disjunct:
    """One way to violate: the input lies in ``box``, and the outputs satisfy every constraint."""

    box: Box
    exact: tuple[Constraint, ...]
    outputs: int

    @property
    def lower(self) -> Float64:
        """(inputs,), rounded down: with ``upper``, the smallest float64 box that holds the exact one."""
        return self.box.outer[0]

    @property
    def upper(self) -> Float64:
        """(inputs,), rounded up."""
        return self.box.outer[1]

    @cached_property
    def constraints(self) -> tuple[Float64, Float64]:
        """Matrix A (constraints, outputs) and vector b with ``A @ y <= b``. A is exact; b is rounded up, so that what
        violates the specification satisfies them, too."""
        matrix = np.zeros((len(self.exact), self.outputs))
        for row, constraint in enumerate(self.exact):
            for j, factor in constraint.coefficients:
                matrix[row, j] = factor
        return matrix, rounded([constraint.bound for constraint in self.exact], down=False)

    def inside(self, x: NDArray[Any]) -> bool:
        """Whether the input (inputs,) lies in the box, with no tolerance. A float64 or float32 is taken exactly."""
        lower, upper = self.box.inner
        x = np.asarray(x, np.float64).reshape(-1)
        return bool(x.shape == lower.shape and (x >= lower).all() and (x <= upper).all())

    def reached(self, y: NDArray[Any]) -> bool:
        """Whether the outputs (outputs,) satisfy every constraint, with no tolerance; never where one is not finite."""
        y = np.asarray(y, np.float64).reshape(-1)
        if y.shape != (self.outputs,) or not np.isfinite(y).all():
            return False
        exact = [Fraction(value) for value in y.tolist()]
        return all(constraint.holds(exact) for constraint in self.exact)


@dataclass(frozen=True, eq=False)
class Specification:
    """The violation: any of the disjuncts.

    Attributes:
        inputs, outputs: how many numbers the network takes and gives, whatever their shape.
        disjuncts: at least one, each with at least one constraint on the outputs.
        version: of VNN-LIB, ``"1.0"`` or ``"2.0"``.
    """

    inputs: int
    outputs: int
    disjuncts: tuple[Disjunct, ...]
    version: str

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The different boxes, in order."""
        return tuple({id(disjunct.box): disjunct.box for disjunct in self.disjuncts}.values())

    def inside(self, x: NDArray[Any]) -> bool:
        """Whether the input (inputs,) lies in the box of any disjunct, with no tolerance."""
        return any(disjunct.inside(x) for disjunct in self.disjuncts)

    def violated(self, x: NDArray[Any], y: NDArray[Any]) -> bool:
        """Whether input x (inputs,) with outputs y (outputs,) is a violation, with no tolerance.

        Both are taken as the exact numbers that they are. Outputs that are not finite violate nothing.
        """
        return any(disjunct.inside(x) and disjunct.reached(y) for disjunct in self.disjuncts)


def rounded(values: Sequence[Fraction], *, down: bool) -> Float64:
    """The nearest float64 that is not above (``down``), or not below, each number."""
    return np.array([_rounded(value, down) for value in values], np.float64)


def _rounded(value: Fraction, down: bool) -> float:
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    if math.isinf(nearest):
        largest = math.nextafter(math.inf, 0)
        return min(nearest, largest) if down else max(nearest, -largest)
    if down:
        return math.nextafter(nearest, -math.inf) if Fraction(nearest) > value else nearest
    return math.nextafter(nearest, math.inf) if Fraction(nearest) < value else nearest
