# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The reader of specifications: exact numbers, no assertion lost, and everything else refused with its place."""

from __future__ import annotations

import gzip
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.errors import BadInput
from ctkd.export import RobustnessProperty, write_vnnlib
from ctkd.export.vnnlib2 import write_vnnlib2
from ctkd.vnnlib import parse_specification, read_specification
from ctkd.vnnlib.specification import rounded

TEXT = """; a comment with (brackets
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(declare-const Y_2 Real)
(assert (>= X_0 0.1))
(assert (<= X_0 0.5))
(assert (>= X_1 -0.125))
(assert (<= X_1 0.375))
(assert (or
    (and (>= Y_1 Y_0))
    (and (>= Y_2 Y_0) (<= X_0 0.2))
))
"""
SECOND = """; a comment
(vnnlib-version <2.0>)
(declare-network f
    (declare-input X float32 [1,2])
    (declare-output Y float32 [1,3])
)
(assert (>= X[0,0] 0.1))
(assert (<= X[0,0] 0.5))
(assert (>= X[0,1] -0.125))
(assert (<= X[0,1] 0.375))
(assert (or (>= Y[0,1] Y[0,0]) (and (>= Y[0,2] Y[0,0]) (<= X[0,0] 0.2))))
"""


@pytest.mark.parametrize("text", [TEXT, SECOND])
def test_both_versions_say_the_same(text: str) -> None:
    found = parse_specification(text)
    assert (found.inputs, found.outputs, len(found.disjuncts), len(found.boxes)) == (2, 3, 2, 2)
    first, second = found.disjuncts
    assert first.constraints[0].tolist() == [[1, -1, 0]]
    assert second.box.upper == (Fraction(1, 5), Fraction(3, 8))
    assert found.violated(np.array([0.3, 0]), np.array([1, 1, 0]))  # a tie
    assert not found.violated(np.array([0.3, 0]), np.array([1, 0, 2]))  # outside of the second disjunct's box
    assert found.violated(np.array([0.15, 0]), np.array([1, 0, 1]))


def test_no_tolerance_at_a_bound_that_float64_cannot_hold() -> None:
    found = parse_specification(TEXT)
    tenth = 0.1  # the float64 above 1/10
    below = math.nextafter(tenth, 0)
    assert Fraction(below) < Fraction(1, 10) < Fraction(tenth)
    assert found.inside(np.array([tenth, 0]))
    assert not found.inside(np.array([below, 0]))
    assert found.disjuncts[0].lower[0] == below
    assert found.inside(np.array([0.5, -0.125]))
    assert not found.inside(np.array([math.nextafter(0.5, 1), 0]))
    assert not found.inside(np.array([np.nan, 0]))


@pytest.mark.parametrize("y", [[1, np.nan, 0], [1, np.inf, 0], [1, 2], [1, 2, 3, 4]])
def test_what_is_no_output_violates_nothing(y: list[float]) -> None:
    assert not parse_specification(TEXT).violated(np.array([0.3, 0]), np.array(y))


def test_linear_expressions_and_constants_on_either_side() -> None:
    text = TEXT.replace("(>= Y_1 Y_0)", "(<= 0.3 (- (* 0.5 Y_1) Y_0 -0.05))")
    matrix, bound = parse_specification(text).disjuncts[0].constraints
    assert matrix.tolist() == [[2, -1, 0]]  # -0.5 Y_1 + Y_0 <= -0.25, times 2
    assert bound.tolist() == [-0.5]


def test_what_ctkd_writes_is_read_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    lower = rng.random(12, np.float32)
    prop = RobustnessProperty(lower, lower + np.float32(0.1), 1, 3)
    for text in (write_vnnlib(prop, eps=0.05), write_vnnlib2(prop, (3, 2, 2), eps=0.05)):
        found = parse_specification(text)
        assert len(found.boxes) == 1
        assert (found.disjuncts[0].lower == prop.lower).all()
        assert (found.disjuncts[0].upper == prop.upper).all()
        assert [each.constraints[0].tolist() for each in found.disjuncts] == [[[-1, 1, 0]], [[0, 1, -1]]]


def replaced(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


REFUSED = {
    replaced("(<= X_0 0.5)", "(< X_0 0.5)"): "line 8: < is strict",
    replaced("0.5", "1e-99999"): "line 8: '1e-99999' is not a number",
    replaced("0.5", "nan"): "'nan' is not a number",
    TEXT[:-3]: "line 11: a bracket is opened and never closed",
    TEXT + ")": "line 15: ')' stands outside of brackets",
    TEXT + "x": "'x' stands outside of brackets",
    replaced("(>= Y_1 Y_0)", "(>= Y_3 Y_0)"): "line 12: Y_3 is not declared",
    replaced("(>= Y_1 Y_0)", "(>= X_0 Y_0)"): "line 12: it relates inputs with outputs",
    replaced("(>= Y_1 Y_0)", "(>= X_0 X_1)"): "line 12: it relates several inputs",
    replaced("(>= Y_1 Y_0)", "(>= Y_1 Y_1)"): "line 12: it compares two constants",
    replaced("(>= Y_1 Y_0)", "(>= (* Y_1 Y_1) Y_0)"): "line 12: a product of two variables",
    replaced("(>= Y_1 Y_0)", "(implies Y_1 Y_0)"): "accepted: (and ...), (or ...), (<= A B), (>= A B)",
    replaced("(>= Y_1 Y_0)", "(>= X_0 0.2)"): "disjunct 1 says nothing about outputs",
    replaced("(assert (>= X_0 0.1))", ""): "input 0 has no lower bound",
    replaced("0.1)", "0.9)"): "input 0: lower bound 0.9 is above upper bound 0.5",
    replaced("Y_2 Real", "Y_3 Real"): "Y_2 is not declared",
    replaced("(declare-const X_1 Real)", "(declare-const X_0 Real)"): "X_0 is declared twice",
    replaced("(declare-const X_1 Real)", "(declare-const Z_1 Real)"): "with names X_i and Y_j",
    replaced("(declare-const X_1 Real)", "(set-logic QF)"): "accepted: (declare-const NAME Real)",
    "": "no X_0 is declared",
    "(" * 100_000: "never closed",
    "(assert " + "(and " * 200 + ")" * 201: "nested deeper than 100",
    SECOND.replace(">= Y[0,1]", "< Y[0,1]"): "is strict",
    SECOND.replace(">= Y[0,1]", "!= Y[0,1]"): "!= is not read",
    SECOND.replace("0.1", "1"): "TypeMismatch",
    SECOND.replace("[1,3]", "[1,0]"): "",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_everything_else_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_specification(text)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_disjuncts_are_refused_before_they_are_written_out() -> None:
    choice = "(assert (or " + "(>= Y_1 Y_0) " * 100 + "))"
    with pytest.raises(BadInput, match="has 20000000000 disjuncts"):
        parse_specification(TEXT + choice * 5)


def test_files(tmp_path: Path) -> None:
    plain, packed, damaged, binary = (tmp_path / name for name in ("a", "b.gz", "c.gz", "d"))
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(TEXT.encode()))
    damaged.write_bytes(gzip.compress(TEXT.encode())[:60])
    binary.write_bytes(b"\xff\xfe\x00")
    assert read_specification(plain).inputs == read_specification(packed).inputs == 2
    for path, words in {damaged: "no whole gzip", binary: "not text", tmp_path / "e": "cannot be read"}.items():
        with pytest.raises(BadInput, match=words) as caught:
            read_specification(path)
        assert str(path) in str(caught.value)


def test_without_the_package_only_version_2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vnnlib", None)
    assert parse_specification(TEXT).version == "1.0"
    with pytest.raises(BadInput, match=r"pip install 'ctkd\[vnnlib2\]'"):
        parse_specification(SECOND)


# Against a slow, obvious reference -----------------------------------------------------------------------

DECIMALS = st.decimals(-2, 2, places=3).map(str)
COMPARISONS = st.tuples(st.sampled_from(["<=", ">="]), st.integers(0, 2), st.one_of(DECIMALS, st.integers(0, 2)))


@st.composite
def formulas(draw: Any, depth: int = 2) -> tuple[Any, ...]:
    if depth == 0 or draw(st.booleans()):
        return draw(COMPARISONS.filter(lambda each: each[1] != each[2]))  # type: ignore[no-any-return]
    parts = draw(st.lists(formulas(depth - 1), min_size=1, max_size=3))
    return (draw(st.sampled_from(["and", "or"])), *parts)


def text_of(formula: tuple[Any, ...]) -> str:
    head, *parts = formula
    if head in ("and", "or"):
        return f"({head} {' '.join(map(text_of, parts))})"
    right = parts[1] if isinstance(parts[1], str) else f"Y_{parts[1]}"
    return f"({head} Y_{parts[0]} {right})"


def holds(formula: tuple[Any, ...], y: list[Fraction]) -> bool:
    head, *parts = formula
    if head in ("and", "or"):
        return (all if head == "and" else any)(holds(part, y) for part in parts)
    right = Fraction(parts[1]) if isinstance(parts[1], str) else y[parts[1]]
    return y[parts[0]] <= right if head == "<=" else y[parts[0]] >= right


@given(st.lists(formulas(), min_size=1, max_size=3), st.lists(st.integers(-2000, 2000), min_size=3, max_size=3))
def test_it_means_what_it_says(assertions: list[tuple[Any, ...]], thousandths: list[int]) -> None:
    head = TEXT[: TEXT.index("(assert (or")]
    found = parse_specification(head + "\n".join(f"(assert {text_of(each)})" for each in assertions))
    y = np.array(thousandths) / 1000  # near the decimals, on either side of them
    expected = all(holds(each, [Fraction(value) for value in y.tolist()]) for each in assertions)
    assert found.violated(np.array([0.3, 0.0]), y) == expected
    if expected:  # the rounded constraints are never stricter
        assert any((each.constraints[0] @ y <= each.constraints[1] + 1e-12).all() for each in found.disjuncts)


@given(st.fractions(max_denominator=10**12) | st.integers(-(10**400), 10**400).map(Fraction))
def test_rounding_goes_to_the_side_that_is_asked_for(value: Fraction) -> None:
    down, up = float(rounded([value], down=True)[0]), float(rounded([value], down=False)[0])
    assert down <= value <= up
    assert math.isinf(down) or math.isinf(up) or up <= math.nextafter(down, math.inf)
