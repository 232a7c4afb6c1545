# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Witnesses as tools write them, and as they must not."""

from __future__ import annotations

import pytest
from ctkd_vnncomp_tool.results import read_results


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sat\n((X_0 0.25)\n (X_1 -1e-3)\n (Y_0 7))\n", [0.25, -0.001]),
        ("sat\n((X_0  0.25) (X_1 .5))", [0.25, 0.5]),
        ("sat\r\nX float32 [1,2]\r\n0.25\r\n1\r\nY float32 [1,1]\r\n3\r\n", [0.25, 1.0]),
        ("sat\nX real [2]\n0.25\n1", [0.25, 1.0]),
        ("sat\nX float32 []\n0.25\n", [0.25]),
        ("sat\n((X_1 0.25))", None),
        ("sat\n((X_0 0.25) (X_0 0.25))", None),
        ("sat\n((X_0 nan))", None),
        ("sat\n((X_0 0.25)", None),
        ("sat\n((X_" + "1" * 5000 + " 0.25))", None),
        ("sat\n((X_0 0.25) rubbish)", None),
        ("sat\n((Y_0 0.25))", None),
        ("sat\nX float32 [1,2]\n0.25\n", None),
        ("sat\nX float32 [1,2]\n0.25\n1\n2\n", None),
        ("sat\nX float32 [1,2]\n0.25\ninf\n", None),
        ("sat\nX float32 [99999999999999]\n0.25\n", None),
        ("sat\nX float32 [" + ",".join(["999999999"] * 16) + "]\n0.25\n", None),
        ("sat\nX float32 [1 2]\n0.25\n1\n", None),
        ("sat\nX float32 [1,,2]\n0.25\n1\n", None),
        ("sat\nX float32 [,]\n0.25\n", None),
        ("sat\nX float32 [٢]\n1\n1\n", None),
    ],
)
def test_witnesses_are_read_whole_or_not_at_all(text: str, expected: list[float] | None) -> None:
    answer = read_results(text, "")
    assert answer.verdict == "falsified"
    assert answer.witness is not None
    assert answer.witness.tolist() == (expected or [])
    assert bool(answer.message) == (expected is None)
