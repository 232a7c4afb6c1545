# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Specifications written anew in the form that verifiers agree on: the same property, to the last digit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.testing import tiny_specification
from ctkd.vnnlib import NotPlainError, Specification, parse_specification, plain_text

FORM = re.compile(
    r"(\(declare-const [XY]_\d+ Real\)\n)+(\(assert \([<>]= X_\d+ -?\d+\.\d+\)\)\n)+\(assert \(or\n"
    r"(    \(and \([<>]= Y_\d+ (Y_\d+|-?\d+\.\d+)\)( \([<>]= Y_\d+ (Y_\d+|-?\d+\.\d+)\))*\)\n)+\)\)\n"
)


def same(before: Specification, after: Specification) -> bool:
    box, other = before.boxes[0], after.boxes[0]
    exact = [disjunct.exact for disjunct in before.disjuncts] == [disjunct.exact for disjunct in after.disjuncts]
    return exact and (box.lower, box.upper) == (other.lower, other.upper)


@pytest.mark.parametrize(
    ("violation", "written"),
    [
        ("(assert (or (>= Y_0 Y_1)))", "(and (<= Y_1 Y_0))"),
        ("(assert (>= Y_0 Y_1))", "(and (<= Y_1 Y_0))"),
        ("(assert (and (>= Y_0 Y_1) (<= Y_0 0.125)))", "(and (<= Y_1 Y_0) (<= Y_0 0.125))"),
        ("(assert (>= Y_0 -12.5))", "(and (>= Y_0 -12.5))"),
        ("(assert (<= (* 2.0 Y_0) 1e-5))", "(and (<= Y_0 0.000005))"),
    ],
)
def test_forms_that_tools_misread_are_rewritten(violation: str, written: str) -> None:
    before = parse_specification(tiny_specification(0.5, violation))
    text = plain_text(before)
    assert written in text
    assert same(before, parse_specification(text))


numbers = st.floats(-1e6, 1e6, allow_subnormal=True).map(repr)
comparisons = st.builds(
    lambda sign, j, other: f"({sign} Y_{j} {other if other != f'Y_{j}' else '0.5'})",
    st.sampled_from(["<=", ">="]),
    st.integers(0, 1),
    st.one_of(st.sampled_from(["Y_0", "Y_1"]), numbers),
)
conjunctions = st.lists(comparisons, min_size=1, max_size=3).map(lambda parts: f"(and {' '.join(parts)})")


@given(st.lists(conjunctions, min_size=1, max_size=3), st.floats(0, 1e6).map(repr))
def test_whatever_it_writes_says_the_same_in_the_one_form(parts: list[str], high: str) -> None:
    before = parse_specification(tiny_specification(float(high), f"(assert (or {' '.join(parts)}))"))
    text = plain_text(before)
    assert FORM.fullmatch(text)
    assert same(before, parse_specification(text))


@pytest.mark.parametrize(
    ("violation", "says"),
    [
        ("(assert (or (and (<= X_0 0.25) (>= Y_0 Y_1)) (and (>= X_0 0.25) (>= Y_1 Y_0))))", "several input boxes"),
        ("(assert (<= (+ Y_0 Y_1) 1.0))", "a sum of outputs"),
        ("(assert (<= (* 3.0 Y_0) 1.0))", "1/3, which has no decimal form"),
    ],
)
def test_what_has_no_such_form_is_refused(violation: str, says: str) -> None:
    with pytest.raises(NotPlainError, match=says):
        plain_text(parse_specification(tiny_specification(0.5, violation)))
