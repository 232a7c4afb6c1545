# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The front, and what configurations differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ctkd.certify.store import Row
from ctkd.report.compare import differences, front
from ctkd.report.facts import Run
from ctkd.report.results import Result

ACCURACY = st.integers(0, 5)


def result(natural: int, certified: int) -> Result:
    """Five samples, of which so many are classified correctly, and of these so many certified."""
    rows = []
    for i in range(5):
        status = "certified" if i < min(natural, certified) else "undecided" if i < natural else "broken"
        rows.append(Row(i, 0, 0, status, "natural" if i >= natural else "ibp", None, 1.0, 0.0))  # type: ignore[arg-type]
    return Result(0.1, "test", "{}", tuple(rows), True)


@given(st.lists(st.tuples(ACCURACY, ACCURACY), min_size=1, max_size=8))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    results = {i: result(*point) for i, point in enumerate(points)}
    exact = {i: (natural, min(natural, certified)) for i, (natural, certified) in enumerate(points)}
    found = front(results)
    assert found
    for i, (x, y) in exact.items():
        dominated = [j for j, (a, b) in exact.items() if a >= x and b >= y and (a > x or b > y)]
        assert (i in found) == (not dominated)
        # Whatever is not on the front is dominated by something on it.
        assert i in found or any(j in found for j in dominated)


def test_configurations_differ_in_keys_and_teachers() -> None:
    def run(**tables: Any) -> Run:
        return Run("r", Path("r"), "", tables=tables)

    one = run(train={"eps": 0.1, "seed": 0}, teacher={"name": "pgd"})
    other = run(train={"eps": 0.1, "seed": 1}, teacher=[{"name": "pgd"}, {"name": "natural"}])
    assert differences([one, other]) == [("train.seed", ["0", "1"]), ("teacher.2.name", [None, "natural"])]
    assert differences([one, one]) == []
