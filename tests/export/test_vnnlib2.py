# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""VNN-LIB 2.0: golden text, the standard's parser, a reader that takes nothing else, the same property as in 1.0."""

from __future__ import annotations

import numpy as np
import pytest
import vnnlib
from hypothesis import given, settings
from hypothesis import strategies as st

from ctkd.errors import BadInput
from ctkd.export import RobustnessProperty, read_vnnlib2, write_vnnlib, write_vnnlib2

from .readers import read_1_0, read_2_0

GOLDEN = """\
; Robustness of class 1 within L-infinity distance eps = 0.1 of one input.
; Bounds are rounded outward to float32 and printed exactly, so float32 corners are inside.
; sat: somewhere in the box a logit reaches that of class 1; a tie is a violation.
; unsat: robust.
(vnnlib-version <2.0>)
(declare-network classifier
    (declare-input X float32 [1,1,1,2])
    (declare-output Y float32 [1,3])
)
(assert (>= X[0,0,0,0] 0.0))
(assert (<= X[0,0,0,0] 0.100000001490116119384765625))
(assert (>= X[0,0,0,1] 0.89999997615814208984375))
(assert (<= X[0,0,0,1] 1.0))
(assert (or
    (>= Y[0,0] Y[0,1])
    (>= Y[0,2] Y[0,1])
))
"""


def tiny() -> RobustnessProperty:
    return RobustnessProperty(np.array([0, 0.9], np.float32), np.array([0.1, 1], np.float32), 1, 3)


def test_golden_text() -> None:
    assert write_vnnlib2(tiny(), (1, 1, 2), eps=0.1) == GOLDEN
    found, shape = read_vnnlib2(GOLDEN)
    assert found.identical(tiny())
    assert shape == (1, 1, 2)


@settings(deadline=None)
@given(st.data())
def test_both_versions_say_the_same(data: st.DataObject) -> None:
    """The bounds that a scorer-like reader of 1.0 and the standard's parser of 2.0 find are those of the property."""
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
    classes = data.draw(st.integers(2, 12))
    label = data.draw(st.integers(0, classes - 1))
    size = int(np.prod(shape))
    numbers = st.lists(st.floats(-1e5, 1e5, width=32), min_size=size, max_size=size)
    ends = np.sort(np.array([data.draw(numbers), data.draw(numbers)], np.float32), axis=0)
    prop = RobustnessProperty(ends[0], ends[1], label, classes)
    first, second = write_vnnlib(prop, eps=0.5), write_vnnlib2(prop, shape, eps=0.5)
    again, found_shape = read_vnnlib2(second)
    assert (again.identical(prop), found_shape) == (True, shape)
    box, unsafe = read_1_0(first, size, classes)
    assert (box, unsafe) == read_2_0(second, shape, classes)
    assert box == [(float(low), float(high)) for low, high in zip(prop.lower, prop.upper, strict=True)]
    assert unsafe == {(j, label) for j in range(classes) if j != label}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(vnnlib-version <2.0>)\n", "", "line 5: expected '(vnnlib-version <2.0>)'"),
        ("<2.0>", "<2.1>", "line 5: expected '(vnnlib-version <2.0>)', found '(vnnlib-version <2.1>)'"),
        ("[1,1,1,2]", "[2,1,1,2]", "line 7: expected '(declare-input X float32 [1,...])'"),
        ("[1,1,1,2]", "[]", "line 7: expected '(declare-input X float32 [1,...])'"),
        ("float32 [1,3]", "real [1,3]", "line 8: expected '(declare-output Y float32 [1,...])'"),
        ("[1,3]", "[1,3,1]", "line 8: expected '(declare-output Y float32 [1,...])'"),
        ("[1,3]", "[1,2]", "line 16: expected '))'"),
        ("[1,1,1,2]", "[1,1,99999,99999]", "line 10: 9999800001 inputs are declared, and fewer have bounds"),
        ("X[0,0,0,0] 0.0", "X[0,0,0,1] 0.0", "line 10: expected '(assert (>= X[0,0,0,0] NUMBER))'"),
        ("0.100000001490116119384765625", "0.1", "line 11: expected '(assert (<= X[0,0,0,0] NUMBER))' with the exact"),
        ("X[0,0,0,1] 1.0", "X[0,0,0,1] 0.5", "line 13: upper bound of X[0,0,0,1] is below its lower bound"),
        ("(>= Y[0,0] Y[0,1])", "(> Y[0,0] Y[0,1])", "line 15: expected '(>= Y[0,j] Y[0,label])' with declared outputs"),
        ("    (>= Y[0,2] Y[0,1])\n", "", "line 16: expected '(>= Y[0,2] Y[0,1])', found '))'"),
        ("\n))\n", "\n))\n)\n", "line 18: expected the end of the text"),
    ],
)
def test_anything_else_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    assert old in GOLDEN
    with pytest.raises(BadInput) as caught:
        read_vnnlib2(GOLDEN.replace(old, new, 1))
    assert str(caught.value).startswith(f"VNN-LIB {message}")


def test_the_standards_parser_checks_what_we_rely_on() -> None:
    """So that the tests above can fail: an index out of range, a missing dimension, an exponent."""
    vnnlib.parse_query_string(GOLDEN)
    for old, new in (("X[0,0,0,1] 1.0", "X[0,0,0,2] 1.0"), ("X[0,0,0,1] 1.0", "X[0,0] 1.0"), ("] 1.0", "] 1e0")):
        with pytest.raises(vnnlib.VNNLibException):
            vnnlib.parse_query_string(GOLDEN.replace(old, new))
