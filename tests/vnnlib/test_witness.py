# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Witnesses that verifiers write: every number, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.vnnlib import parse_witness


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("((X_0 0.25)\n (X_1 -1e-3)\n (Y_0 7))\n", [0.25, -0.001]),
        ("((X_0  0.25)\n(X_1  .5)\n(Y_0  nan))", [0.25, 0.5]),
        (" ( ( X_0 +1. ) ) ", [1.0]),
        ("", None),
        ("()", None),
        ("((X_1 0.25))", None),
        ("((X_1 0.25) (X_0 0.5))", None),
        ("((X_0 0.25) (X_0 0.25))", None),
        ("((X_0 nan))", None),
        ("((X_0 0.5.5))", None),
        ("((X_0 ٢))", None),
        ("((X_0 0.25)", None),
        ("((X_0 0.25) rubbish)", None),
        ("((X_0 0.25)) rubbish", None),
        ("((Y_0 0.25))", None),
        ("((X_" + "1" * 5000 + " 0.25))", None),
    ],
)
def test_it_is_read_whole_or_not_at_all(text: str, expected: list[float] | None) -> None:
    found = parse_witness(text)
    assert (None if found is None else found.tolist()) == expected


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
def test_numbers_come_back_to_the_last_digit(values: list[float]) -> None:
    found = parse_witness("(" + "\n".join(f"(X_{i}  {value!r})" for i, value in enumerate(values)) + "\n(Y_0  1.0))")
    assert found is not None
    assert found.tolist() == values
