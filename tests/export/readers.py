# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Readers that share no code with the writers: 1.0 by the rules of the scorer, 2.0 by the standard's own parser.

Each returns the box, one pair of numbers for each input, and the unsafe set: pairs (j, i), one of which must have
Y_j >= Y_i. Anything that a property of robustness does not need is an AssertionError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import vnnlib

Box = list[tuple[float, float]]
Unsafe = set[tuple[int, int]]

COMPARISON = r"\((<=|>=) (\S+) ([^\s()]+)\)"


def statements(text: str) -> list[str]:
    """Without comments; what spans lines becomes one line, without a blank next to an inner bracket's inside."""
    found: list[str] = []
    depth, current = 0, ""
    for raw in text.split("\n"):
        line = raw.split(";")[0].strip()
        if not line:
            continue
        depth += line.count("(") - line.count(")")
        assert depth >= 0, line
        current = f"{current} {line}".strip()
        if depth == 0:
            found.append(re.sub(r"\) ", ")", re.sub(r"\( ", "(", " ".join(current.split()))))
            current = ""
    assert not current, current
    return found


def read_1_0(text: str, inputs: int, outputs: int) -> tuple[Box, Unsafe]:
    """VNN-LIB 1.0 as the scorer of 2026 reads it: three regular expressions, and nothing else is taken."""
    box = [[-math.inf, math.inf] for _ in range(inputs)]
    unsafe: Unsafe | None = None
    declared = []
    for line in statements(text):
        if match := re.fullmatch(r"\(declare-const (X|Y)_([0-9]+) Real\)", line):
            declared.append((match[1], int(match[2])))
        elif match := re.fullmatch(rf"\(assert {COMPARISON}\)", line):
            sign, name, bound = match.groups()
            assert name.startswith("X_"), line
            assert bound[:1] not in "XY", line
            assert "e" not in bound.lower(), line
            limits = box[int(name[2:])]
            side = int(sign == "<=")
            limits[side] = (min, max)[1 - side](limits[side], float(bound))
            assert limits[0] <= limits[1], line
        else:
            match = re.fullmatch(rf"\(assert \(or ?((?:\(and {COMPARISON}\))+)\)\)", line)
            assert match, line
            assert unsafe is None, "a second disjunction"
            unsafe = set()
            for sign, first, second in re.findall(COMPARISON, match[1]):
                assert sign == ">="
                j, i = int(first.removeprefix("Y_")), int(second.removeprefix("Y_"))
                assert max(i, j) < outputs, line
                unsafe.add((j, i))
    assert declared == [("X", i) for i in range(inputs)] + [("Y", j) for j in range(outputs)]
    assert all(math.isfinite(low) and math.isfinite(high) for low, high in box)
    assert unsafe
    return [(low, high) for low, high in box], unsafe


def read_2_0(text: str, shape: Sequence[int], outputs: int) -> tuple[Box, Unsafe]:
    """VNN-LIB 2.0 by the package ``vnnlib``, which also checks types and indices."""
    query = vnnlib.parse_query_string(text)
    (network,) = query.networks
    (x,), (y,) = network.inputs, network.outputs
    assert not network.hidden
    assert (x.dtype.name, list(x.shape)) == ("F32", [1, *shape])
    assert (y.dtype.name, list(y.shape)) == ("F32", [1, outputs])
    lower, upper = np.full((1, *shape), -np.inf), np.full((1, *shape), np.inf)
    unsafe: Unsafe | None = None
    for assertion in query.assertions:
        expression = assertion.expr
        kind = type(expression).__name__
        if kind == "Or":
            assert unsafe is None, "a second disjunction"
            unsafe = set()
            for part in expression.args:
                assert type(part).__name__ == "GreaterEqual"
                assert part.lhs.name == part.rhs.name == y.name
                unsafe.add((part.lhs.indices[1], part.rhs.indices[1]))
            continue
        bounds = {"GreaterEqual": lower, "LessEqual": upper}[kind]
        assert expression.lhs.name == x.name
        place = tuple(expression.lhs.indices)
        assert math.isinf(bounds[place]), "bounded twice"
        bounds[place] = float(expression.rhs.lexeme)
    assert np.isfinite(lower).all()
    assert np.isfinite(upper).all()
    assert unsafe
    return list(zip(lower.reshape(-1).tolist(), upper.reshape(-1).tolist(), strict=True)), unsafe


def strictly_violates(box: Box, unsafe: Unsafe, x: np.ndarray, y: np.ndarray) -> bool:
    """The scorer's strict check: no tolerance, neither for inputs nor for outputs."""
    inside = all(low <= float(value) <= high for (low, high), value in zip(box, x.reshape(-1), strict=True))
    return inside and any(y[j] >= y[i] for j, i in unsafe)
