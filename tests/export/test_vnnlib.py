# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""VNN-LIB: exact numbers, golden text, a reader that takes nothing else."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput
from ctkd.export import RobustnessProperty, read_vnnlib, write_vnnlib
from ctkd.export.generate_properties import exact as decimal

GOLDEN = """\
; Robustness of class 1 within L-infinity distance eps = 0.1 of one input.
; Bounds are rounded outward to float32 and printed exactly, so float32 corners are inside.
; sat: somewhere in the box a logit reaches that of class 1; a tie is a violation.
; unsat: robust.
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(declare-const Y_2 Real)
(assert (>= X_0 0.0))
(assert (<= X_0 0.100000001490116119384765625))
(assert (>= X_1 0.89999997615814208984375))
(assert (<= X_1 1.0))
(assert (or
    (and (>= Y_0 Y_1))
    (and (>= Y_2 Y_1))
))
"""


def tiny() -> RobustnessProperty:
    box = perturbation_box(torch.tensor([[0.0, 1.0]]), 0.1)
    return RobustnessProperty(box.lower[0].numpy(), box.upper[0].numpy(), 1, 3)


def test_golden_text() -> None:
    assert write_vnnlib(tiny(), eps=0.1) == GOLDEN
    assert read_vnnlib(GOLDEN).identical(tiny())


def test_comments_are_safe_for_readers_made_of_regular_expressions() -> None:
    for line in write_vnnlib(tiny(), eps=1e-5).splitlines():
        assert not line.startswith(";") or not re.search(r"[()]|[XY]_", line)


def exact(value: np.float32) -> None:
    text = decimal(value)
    assert re.fullmatch(r"-?(0|[1-9][0-9]*)\.[0-9]+", text)
    assert np.float32(float(text)).tobytes() == np.float32(value).tobytes()
    assert Decimal(text) == Decimal(float(value))


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_every_float32_survives(value: float) -> None:
    exact(np.float32(value))


@settings(deadline=None)
@given(st.integers(0, 0x7F7FFFFF), st.booleans())
def test_every_bit_pattern_survives(bits: int, negative: bool) -> None:
    """Uniform over representations, so denormals are common."""
    exact(np.array(bits | negative << 31, np.uint32).view(np.float32)[()])


SPECIAL = [0.0, -0.0, 1.0, 0.1, 8 / 255, 1e-5, 1.4e-45, 1.1754942e-38, 1.1754944e-38, 3.4028235e38]


@pytest.mark.parametrize("value", SPECIAL)
def test_special_values_and_their_neighbours_survive(value: float) -> None:
    centre = np.float32(value)
    exact(centre)
    exact(np.nextafter(centre, np.float32(0)))
    if centre < 3e38:
        exact(np.nextafter(centre, np.float32(2)))


BOUNDS = hnp.arrays(np.float32, st.integers(1, 6), elements=st.floats(-1e5, 1e5, width=32))


@settings(deadline=None)
@given(BOUNDS, st.data())
def test_round_trip(first: np.ndarray, data: st.DataObject) -> None:
    second = data.draw(hnp.arrays(np.float32, first.shape, elements=st.floats(-1e5, 1e5, width=32)))
    classes = data.draw(st.integers(2, 12))
    label = data.draw(st.integers(0, classes - 1))
    # Not minimum and maximum, which may trade one zero for the other.
    lower, upper = np.where(first <= second, first, second), np.where(first <= second, second, first)
    prop = RobustnessProperty(lower, upper, label, classes)
    again = read_vnnlib(write_vnnlib(prop, eps=0.5))
    assert again.identical(prop)
    assert (again.lower.tobytes(), again.upper.tobytes()) == (lower.tobytes(), upper.tobytes())


@settings(deadline=None)
@given(hnp.arrays(np.float32, (1, 5), elements=st.floats(0, 1, width=32)), st.floats(0, 1))
def test_a_perturbation_box_survives(x: np.ndarray, eps: float) -> None:
    box = perturbation_box(torch.from_numpy(x), eps)
    prop = RobustnessProperty(box.lower[0].numpy(), box.upper[0].numpy(), 0, 2)
    assert read_vnnlib(write_vnnlib(prop, eps=eps)).identical(prop)


def test_identical_sees_one_bit() -> None:
    prop = tiny()
    nudged = np.nextafter(prop.upper, np.float32(2))
    assert not prop.identical(RobustnessProperty(prop.lower, nudged, 1, 3))
    assert not prop.identical(RobustnessProperty(-prop.lower * 0, prop.upper, 1, 3))
    assert not prop.identical(RobustnessProperty(prop.lower, prop.upper, 2, 3))
    assert not prop.identical(RobustnessProperty(prop.lower, prop.upper, 1, 4))


def test_the_property_does_not_change_with_the_array_it_was_made_of() -> None:
    lower, upper = np.zeros(2, np.float32), np.ones(2, np.float32)
    prop = RobustnessProperty(lower, upper, 0, 2)
    lower[0] = 1
    assert prop.lower[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        prop.lower[0] = 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "(declare-const X_0 Real)\n",
            "",
            "line 5: expected '(declare-const X_0 Real)', found '(declare-const X_1 Real)'",
        ),
        (
            "(declare-const X_1 Real)",
            "(declare-const X_2 Real)",
            "line 6: expected '(declare-const Y_0 Real)', found",
        ),
        ("(declare-const Y_2 Real)\n", "", "line 15: expected '))', found '    (and (>= Y_2 Y_1))'"),
        ("(declare-const X_0", "(declare-fun X_0", "line 5: expected '(declare-const X_0 Real)'"),
        (
            "(>= X_0 0.0)",
            "(> X_0 0.0)",
            "line 10: expected '(assert (>= X_0 NUMBER))', found '(assert (> X_0 0.0))'",
        ),
        ("(>= X_0 0.0)", "(>= 0.0 X_0)", "line 10: expected '(assert (>= X_0 NUMBER))'"),
        ("(>= X_0 0.0)", "(>= X_0 0)", "line 10: expected '(assert (>= X_0 NUMBER))'"),
        ("(>= X_0 0.0)", "(>= X_0 0e0)", "line 10: expected '(assert (>= X_0 NUMBER))'"),
        (
            "(>= X_0 0.0)",
            "(>= X_0 0.00)",
            "line 10: expected '(assert (>= X_0 NUMBER))' with the exact decimal",
        ),
        (
            "0.100000001490116119384765625",
            "0.1",
            "line 11: expected '(assert (<= X_0 NUMBER))' with the exact decimal",
        ),
        (
            "(<= X_1 1.0)",
            "(<= X_1 10000000.0)",
            "line 13: expected '(assert (<= X_1 NUMBER))' with a number of at most",
        ),
        ("(<= X_1 1.0)", "(<= X_1 0.5)", "line 13: upper bound of X_1 is below its lower bound, found"),
        ("(assert (>= X_1 0.89999997615814208984375))\n", "", "line 12: expected '(assert (>= X_1 NUMBER))'"),
        ("(assert (or", "(assert (and", "line 14: expected '(assert (or', found '(assert (and'"),
        ("    (and (>= Y_0 Y_1))", "    (>= Y_0 Y_1)", "line 15: expected '(and (>= Y_j Y_label))'"),
        ("Y_0 Y_1))", "Y_0 Y_7))", "line 15: expected '(and (>= Y_j Y_label))' with declared outputs"),
        ("Y_2 Y_1))", "Y_1 Y_2))", "line 16: expected '(and (>= Y_2 Y_1))', found '    (and (>= Y_1 Y_2))'"),
        ("    (and (>= Y_2 Y_1))\n", "", "line 16: expected '(and (>= Y_2 Y_1))', found '))'"),
        ("\n))\n", "\n", "line 17: expected '))', found the end of the text"),
        ("\n))\n", "\n))\n(assert (>= Y_0 0.0))\n", "line 18: expected the end of the text, found"),
        ("Y_1 Real)\n", "Y_1 Real)\r\n", "line 8: expected '(assert (>= X_0 NUMBER))'"),
        ("(assert (>= X_0 0.0))", "(assert (>= X_0 0.0)) ; low", "line 10: expected"),
    ],
)
def test_anything_else_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    assert old in GOLDEN
    with pytest.raises(BadInput) as caught:
        read_vnnlib(GOLDEN.replace(old, new, 1))
    assert str(caught.value).startswith(f"VNN-LIB {message}")


def test_empty_text_is_refused() -> None:
    with pytest.raises(BadInput, match=r"line 1: expected '\(declare-const X_0 Real\)', found the end of the text"):
        read_vnnlib("")


@pytest.mark.parametrize(
    ("lower", "upper", "label", "classes", "message"),
    [
        ([0.5], [0.25], 0, 2, "input 0: lower bound 0.5 is above upper bound 0.25"),
        ([0.0], [np.inf], 0, 2, "upper bounds must be finite and at most 100000 in size"),
        ([np.nan], [1.0], 0, 2, "lower bounds must be finite"),
        ([0.0], [1e7], 0, 2, "upper bounds must be finite and at most 100000 in size"),
        ([0.0, 0.0], [1.0], 0, 2, "2 lower bounds, but 1 upper bounds"),
        ([[0.0]], [[1.0]], 0, 2, r"lower bounds must be a flat float32 array, found float32 \(1, 1\)"),
        ([0.0], [1.0], 2, 2, "label 2 of 2 classes"),
        ([0.0], [1.0], -1, 2, "label -1 of 2 classes"),
        ([0.0], [1.0], 0, 1, "label 0 of 1 classes; needs at least 2"),
    ],
)
def test_bad_properties_are_refused(lower: list, upper: list, label: int, classes: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RobustnessProperty(np.array(lower, np.float32), np.array(upper, np.float32), label, classes)


def test_float64_bounds_are_refused() -> None:
    with pytest.raises(BadInput, match="must be a flat float32 array, found float64"):
        RobustnessProperty(np.zeros(1), np.ones(1), 0, 2)
