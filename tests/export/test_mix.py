# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Mixes and timeouts: what they add up to, for any numbers of images."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ctkd.errors import BadInput
from ctkd.export.benchmark.mix import BUDGET, OUTCOMES, SELECTIONS, Pool, parse_mix, timeouts, written

MIXES = st.fixed_dictionaries({outcome: st.integers(0, 60) for outcome in OUTCOMES})


@given(MIXES, st.integers(1, BUDGET))
def test_timeouts_use_the_budget_and_no_more(mix: dict[str, int], budget: int) -> None:
    assume(any(mix.values()))
    try:
        seconds = timeouts(mix, budget)
    except BadInput as problem:
        least = int(str(problem).split("at least ")[1].split()[0])
        assert least > budget
        assert min(timeouts(mix, least).values()) >= 1
        return
    total = sum(mix[outcome] * seconds[outcome] for outcome in seconds)
    assert set(seconds) == {outcome for outcome in OUTCOMES if mix[outcome]}
    assert min(seconds.values()) >= 1
    # Less is left than one second more for any outcome would take.
    assert total <= budget < total + min(mix[outcome] for outcome in seconds)


def test_hard_instances_get_more() -> None:
    seconds = timeouts(dict.fromkeys(OUTCOMES, 15), BUDGET)
    assert seconds["cheap"] < seconds["broken"] < seconds["tight"] < seconds["undecided"]
    assert sum(15 * each for each in seconds.values()) == 21_600


def attempted(pool: Pool, samples: int) -> tuple[dict[str, int], str]:
    """The mix, or why there is none."""
    try:
        return pool.mix(samples), ""
    except BadInput as problem:
        return {}, str(problem)


@given(MIXES, st.integers(1, 100))
def test_an_even_mix(available: dict[str, int], samples: int) -> None:
    """No outcome has fewer than another one, unless half of its images are used."""
    most = {outcome: available[outcome] // 2 for outcome in OUTCOMES}
    mix, problem = attempted(Pool(available), samples)
    assert ("at most half" in problem) == (samples > sum(most.values()))
    if problem:
        assert "at most half" in problem or "different choices" in problem
        return
    assert sum(mix.values()) == samples
    for outcome in OUTCOMES:
        assert mix[outcome] <= most[outcome]
        if mix[outcome] < most[outcome]:
            assert mix[outcome] >= max(mix.values()) - 1
    assert math.prod(math.comb(available[o], mix[o]) for o in OUTCOMES) >= SELECTIONS


def test_all_of_one_outcome_may_be_asked_for() -> None:
    """Others leave enough to choose; but nothing is chosen where everything is taken."""
    available = {"cheap": 100, "tight": 3, "undecided": 0, "broken": 2}
    mix = {"cheap": 10, "tight": 3, "undecided": 0, "broken": 2}
    assert Pool(available).checked(mix) == mix
    with pytest.raises(BadInput, match=r"leaves 1 different choices of images; another seed must pick other images"):
        Pool(available).checked(dict(available))


@given(MIXES)
def test_a_mix_is_read_as_it_is_written(mix: dict[str, int]) -> None:
    assume(any(mix.values()))
    assert parse_mix(written(mix)) == mix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mix '': '' is not a count of images; write such as cheap=5,tight=10"),
        ("easy=5", "'easy=5' is not a count of images; .* outcomes out of cheap, tight, undecided, broken"),
        ("cheap=-1", "'cheap=-1' is not a count"),
        ("cheap=1.5", "'cheap=1.5' is not a count"),
        ("cheap", "'cheap' is not a count"),
        ("cheap=²", "'cheap=²' is not a count"),
        ("cheap=1,,tight=1", "'' is not a count"),
        ("cheap=0", "mix 'cheap=0' has no images"),
    ],
)
def test_mixes_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_mix(text)


def test_spaces_do_not_matter() -> None:
    assert parse_mix(" cheap = 5 , broken=2") == {"cheap": 5, "tight": 0, "undecided": 0, "broken": 2}
