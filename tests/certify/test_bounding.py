# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bounds of subproblems are sound, whatever slopes and multipliers are; linear programs make them exact at leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from ctkd.boxes import Box
from ctkd.certify.bab import leaf
from ctkd.certify.bab.bounding import Effort, bound, optimise, rounded
from ctkd.certify.bab.problem import Problem, Subproblems
from ctkd.certify.bab.reduce import reduced
from ctkd.propagate import relaxed_margins
from ctkd.propagate.crown import crown_pre_activation
from ctkd.propagate.linear import rivals
from ctkd.train.finish import finalise

from .nets import NAMES, least_margin, network, points_in, samples, wide


def problem_of(name: str, seed: int, eps: float) -> tuple[Problem, Box]:
    net = network(name, seed)
    x, labels = samples(net, 1, seed)
    big, box = wide(net, x, eps)
    return Problem.of(big, box, labels), box


def inputs_of_units(problem: Problem, points: torch.Tensor) -> torch.Tensor:
    """(points, units)."""
    sources = [problem.network.nodes[i].inputs[0] for i in problem.places]
    values = problem.network.evaluate(points, *sources) if sources else ()
    parts = [v.flatten(1)[:, place] for v, place in zip(values, problem.places.values(), strict=True)]
    return torch.cat([points.new_zeros(len(points), 0), *parts], 1)


def random_part(problem: Problem, signs: torch.Tensor, seed: int) -> Subproblems:
    """All rivals, with some units fixed as they are at some point, and random slopes and multipliers."""
    draw = torch.Generator().manual_seed(seed)
    others = rivals(problem.labels, problem.network.classes)[0]
    part = problem.roots(torch.zeros_like(others), others)
    shape = part.slope.shape
    sign = signs.to(torch.int8) * (torch.rand(shape, generator=draw) < 0.5)
    push = 2 * torch.rand(shape, dtype=torch.float64, generator=draw) * (sign != 0)
    return replace(part, sign=sign, slope=torch.rand(shape, dtype=torch.float64, generator=draw), multiplier=push)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6), st.floats(0.0, 0.4), st.booleans())
def test_no_point_of_a_subproblem_is_below_its_bound(name: str, seed: int, eps: float, small: bool) -> None:
    problem, box = problem_of(name, seed, eps)
    points = points_in(box, 200, seed)
    entering = inputs_of_units(problem, points)
    part = random_part(problem, entering[:1].sign(), seed)
    found = bound(reduced(problem) if small else problem, part).value
    for k in range(len(part)):
        inside = ((entering * part.sign[k]) >= 0).all(1)
        assert bool(inside.any())
        margins = least_margin(problem.network, points[inside], int(problem.labels))
        assert float(found[k]) <= float(margins[part.rival[k]]) + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_a_reduced_network_is_the_same_in_the_box(name: str) -> None:
    problem, box = problem_of(name, 3, 0.2)
    small = reduced(problem)
    assert small.network is not problem.network
    points = points_in(box, 50)
    assert torch.allclose(small.network(points), problem.network(points), rtol=0, atol=1e-12)
    part = random_part(problem, inputs_of_units(problem, points)[:1].sign(), 0)
    whole, less = bound(problem, part), bound(small, part)
    assert torch.allclose(whole.value, less.value, rtol=0, atol=1e-11)
    assert torch.allclose(whole.weights, less.weights, rtol=0, atol=1e-11)
    assert torch.allclose(whole.weakest, less.weakest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_splits_and_with_crowns_slopes_it_is_crown(name: str) -> None:
    net = network(name, 5)
    x, labels = samples(net, 6, 5)
    big, box = wide(net, x, 0.15)
    problem = Problem.of(big, box, labels)
    others = rivals(labels, big.classes)
    part = problem.roots(torch.arange(6).repeat_interleave(2), others.flatten())
    crown = relaxed_margins(big, crown_pre_activation(big, box), box, labels).gather(1, others).flatten()
    assert torch.allclose(bound(problem, part).value, crown, rtol=0, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6))
def test_optimising_never_loses(name: str, seed: int) -> None:
    problem, box = problem_of(name, seed, 0.3)
    part = random_part(problem, inputs_of_units(problem, points_in(box, 1, seed))[:1].sign(), seed)
    low = problem.to(torch.float32)
    better = optimise(low, part.to(torch.float32), Effort(15), float("inf"), lambda: False)
    assert bool((better.multiplier[better.sign == 0] == 0).all())
    assert bool(((better.slope >= 0) & (better.slope <= 1) & (better.multiplier >= 0)).all())
    before, after = bound(problem, part).value, bound(problem, better.to(torch.float64)).value
    assert bool((after >= before - 1e-4 * before.abs().clamp(min=1)).all())


def test_optimising_gains() -> None:
    gains = []
    for seed in range(10):
        problem, _ = problem_of("mlp", seed, 0.2)
        others = rivals(problem.labels, 3)[0]
        part = problem.roots(torch.zeros_like(others), others)
        better = optimise(problem, part, Effort(40), float("inf"), lambda: False)
        gains.append((bound(problem, better).value - bound(problem, part).value).mean())
    assert min(gains) >= 0
    assert torch.stack(gains).mean() > 0.01


def test_rounded_numbers_are_those_that_proofs_store() -> None:
    problem, box = problem_of("mlp", 0, 0.2)
    part = rounded(random_part(problem, inputs_of_units(problem, points_in(box, 1))[:1].sign(), 1))
    assert part.slope.equal((part.slope * 255).round() / 255)
    assert part.multiplier.equal(part.multiplier.float().double())


def at_point(problem: Problem, point: torch.Tensor) -> Subproblems:
    """Everything fixed as it is at a point."""
    others = rivals(problem.labels, problem.network.classes)[0][:1]
    signs = inputs_of_units(problem, point).sign().to(torch.int8)
    return replace(problem.roots(torch.zeros_like(others), others), sign=signs)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6))
def test_a_linear_program_makes_the_bound_exact(name: str, seed: int) -> None:
    problem, box = problem_of(name, seed, 0.3)
    small = reduced(problem)
    part, point = leaf.solve(small, at_point(problem, points_in(box, 1, seed)[:1]), 10.0)
    assert point is not None
    margin = least_margin(problem.network, point, int(problem.labels))[part.rival[0]]
    assert float(bound(small, part).value) == pytest.approx(float(margin), abs=1e-6)


def two_thresholds() -> tuple[Problem, Subproblems]:
    """Units that are on for x >= 0.6 and for x <= 0.4, and a margin that is negative everywhere."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        module[1].bias.copy_(torch.tensor([-0.6, 0.4]))
        module[3].weight.zero_()
        module[3].bias.copy_(torch.tensor([0.0, 1.0]))
    net = finalise(module, (1,)).to(torch.float64)
    one = torch.zeros(1, 1, dtype=torch.float64)
    problem = Problem.of(net, Box(one, one + 1), torch.tensor([0]))
    return problem, problem.roots(torch.tensor([0]), torch.tensor([1]))


def test_an_empty_region_gets_a_bound_above_zero() -> None:
    problem, root = two_thresholds()
    part, point = leaf.solve(problem, replace(root, sign=torch.ones(1, 2, dtype=torch.int8)), 10.0)
    assert point is None
    assert float(bound(problem, part).value) > 0
    half = replace(root, sign=torch.tensor([[1, -1]], dtype=torch.int8))
    assert float(bound(problem, leaf.solve(problem, half, 10.0)[0]).value) == pytest.approx(-1)


def test_both_linear_programs_of_an_empty_region_share_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, root = two_thresholds()
    now, limits = [100.0], []

    def slow(*given: Any, options: dict[str, float], **named: Any) -> Any:
        limits.append(options["time_limit"])
        now[0] += 7.0
        return linprog(*given, **named)

    monkeypatch.setattr("scipy.optimize.linprog", slow)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    empty = replace(root, sign=torch.ones(1, 2, dtype=torch.int8))
    leaf.solve(problem, empty, 10.0)
    leaf.solve(problem, empty, 5.0)
    assert limits == [10.0, 3.0, 5.0, leaf.SHORTEST]
