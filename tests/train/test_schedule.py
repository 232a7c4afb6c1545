# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The radius against the published formula, and the learning rate."""

from __future__ import annotations

import pytest

from ctkd.train.options import TrainOptions
from ctkd.train.schedule import learning_rate, schedule_at, smooth_radius


def published(t: int, a: int, b: int, target: float) -> float:
    """The formula as the field's code has it: quartic up to a quarter of the ramp, then linear."""
    m = a + int((b - a) / 4)
    alpha = target / (4 * (b - m) * (m - a) ** 3 + (m - a) ** 4)
    if t <= a:
        return 0.0
    if t < m:
        return alpha * (t - a) ** 4
    middle = alpha * (m - a) ** 4
    return min(target, middle + (target - middle) * (t - m) / (b - m))


@pytest.mark.parametrize(("start", "end"), [(0, 40), (10, 110), (7, 30)])
def test_radius_follows_the_published_ramp(start: int, end: int) -> None:
    for t in range(end + 5):
        assert smooth_radius(t, start, end, 0.1) == pytest.approx(published(t, start, end, 0.1), abs=1e-15)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 1), (3, 5), (2, 6), (0, 1000)])
def test_radius_is_monotone_from_zero_to_the_target(start: int, end: int) -> None:
    values = [smooth_radius(t, start, end, 0.1) for t in range(end + 3)]
    assert values == sorted(values)
    assert values[-1] == 0.1
    assert all(value == 0 for value in values[: start + 1]) or end == start == 0


def test_phases() -> None:
    options = TrainOptions(eps=0.1, train_eps_factor=1.5, epochs=10, warmup=1, ramp=4)
    phases = [schedule_at(options, step, 10).phase for step in range(100)]
    assert phases[:11] == ["warmup"] * 11
    assert set(phases[11:50]) == {"ramp"}
    assert set(phases[50:]) == {"full"}
    assert schedule_at(options, 60, 10).eps == pytest.approx(0.15)
    assert schedule_at(options, 60, 10).progress == 1


def test_learning_rate_drops_at_milestones() -> None:
    options = TrainOptions(epochs=20, lr=1.0, milestones=(2.0, 3.5), lr_decay=0.2)
    assert [learning_rate(options, step, 10) for step in (19, 20, 34, 35)] == pytest.approx([1, 0.2, 0.2, 0.04])
