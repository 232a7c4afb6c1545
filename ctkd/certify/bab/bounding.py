# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Lower bounds of margins over subproblems, and the slopes and multipliers that make them large.

Optimised slopes are alpha-CROWN (Xu et al. 2021, arXiv 2011.13824); multipliers of fixed units are beta-CROWN (Wang et
al. 2021, arXiv 2103.06624).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ctkd.certify.bab.problem import Problem, Subproblems
from ctkd.propagate.linear import pulled_back, rows_at_once
from ctkd.propagate.ops import Lines, Relaxation

STEPS = 255
"""Slopes are multiples of 1 / STEPS, so that a stored proof is small and replays what was computed."""
CANCELLED = 1e-13
"""Bounds are lowered by this times the sizes of what multipliers add: such terms may cancel, which leaves rounding."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower bounds of some subproblems, and what they say about where the margin is small.

    Attributes:
        value: (rows,).
        weakest: (rows, *input_shape), the point of the box where the linear bound is least.
        weights: (rows, units), the coefficients of the units' outputs.
    """

    value: Tensor
    weakest: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Split(Relaxation):
    """Lines, and the multipliers of the constraints on what goes in: ``push`` is subtracted at ``places``."""

    lines: Lines
    places: Tensor
    push: Tensor
    seen: list[Tensor] = field(default_factory=list)
    """The rows that came to it."""

    def backward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        self.seen.append(rows.detach())
        result, constant = self.lines.backward(rows)
        pushed = result.flatten(2).index_add(2, self.places, self.push.unsqueeze(1), alpha=-1)
        return pushed.reshape(result.shape), constant


def relaxed(problem: Problem, part: Subproblems) -> dict[int, Relaxation]:
    """The relaxations of each row.

    A fixed unit's interval is cut at zero, which makes its line exact.
    """
    low, high, leak = problem.lower[part.sample], problem.upper[part.sample], problem.leak
    low = torch.where(part.sign > 0, low.clamp(min=0), low)
    high = torch.where(part.sign < 0, high.clamp(max=0), high)
    below, above = low.clamp(max=0), high.clamp(min=0)
    width = above - below
    chord = above / torch.where(width == 0, 1, width)
    # Slopes count from the leak to one, so that a leaky rectifier is one, scaled.
    under = leak + (1 - leak) * torch.where((low < 0) & (high > 0), part.slope, chord)
    over, shift = leak + (1 - leak) * chord, -(1 - leak) * below * chord
    push = part.multiplier * part.sign
    found: dict[int, Relaxation] = {i: lines[part.sample] for i, lines in problem.lines.items()}
    for i, columns in problem.columns.items():
        lines, places = found[i], problem.places[i]
        assert isinstance(lines, Lines)
        assert lines.upper_shift is not None
        shape = lines.lower_slope.shape

        def put(
            base: Tensor,
            value: Tensor,
            places: Tensor = places,
            columns: slice = columns,
            shape: tuple[int, ...] = shape,
        ) -> Tensor:
            return base.flatten(1).index_copy(1, places, value[:, columns]).reshape(shape)

        own = Lines(put(lines.lower_slope, under), put(lines.upper_slope, over), None, put(lines.upper_shift, shift))
        found[i] = Split(own, places, push[:, columns])
    return found


def functionals(problem: Problem, part: Subproblems) -> tuple[int, Tensor, Tensor]:
    """The margins as functionals of one node: the node, (rows, 1, *shape), and constants (rows,).

    They are merged into the last affine layer, where there is one.
    """
    network, label = problem.network, problem.labels[part.sample]
    head = network.head
    if head is None:
        eye = torch.eye(network.classes, dtype=problem.lower.dtype, device=label.device)
        return network.output, (eye[label] - eye[part.rival]).unsqueeze(1), problem.lower.new_zeros(len(part))
    rows = (head.weight[label] - head.weight[part.rival]).unsqueeze(1)
    return network.nodes[-1].inputs[0], rows, head.bias[label] - head.bias[part.rival]


def bound(problem: Problem, part: Subproblems) -> Bounds:
    """Sound up to rounding, in the type of the problem. Differentiable in slopes and multipliers."""
    size = rows_at_once(problem.network, problem.network.output)
    pieces = [_bound(problem, part[i : i + size]) for i in range(0, len(part), size)]
    if len(pieces) == 1:
        return pieces[0]
    return Bounds(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in ("value", "weakest", "weights")))


def _bound(problem: Problem, part: Subproblems) -> Bounds:
    relaxations = relaxed(problem, part)
    node, rows, constant = functionals(problem, part)
    at_input, gained = pulled_back(problem.network, node, rows, relaxations)
    centre, radius = (each[part.sample] for each in problem.box)
    at_input = at_input.squeeze(1)
    value = constant + (at_input * centre).flatten(1).sum(1) - (at_input.abs() * radius).flatten(1).sum(1)
    value = value if gained is None else value + gained.squeeze(1)
    size = problem.lower.abs().maximum(problem.upper.abs())[part.sample]
    value = value - CANCELLED * (part.multiplier * size).sum(1)
    weights = problem.lower.new_zeros(len(part), problem.units)
    for i, columns in problem.columns.items():
        split = relaxations[i]
        assert isinstance(split, Split)
        if split.seen:  # no node behind the functionals' own was met
            weights[:, columns] = split.seen[0].flatten(1)[:, split.places]
    return Bounds(value, centre - radius * at_input.detach().sign(), weights)


@dataclass(frozen=True)
class Effort:
    """How slopes and multipliers are optimised: projected Adam (Kingma and Ba 2015, arXiv 1412.6980).

    Attributes:
        iterations: at most.
        rate: step size of slopes, which lie in [0, 1].
        push: step size of multipliers.
        decay: factor of both after each step.
    """

    iterations: int
    rate: float = 0.1
    push: float = 0.05
    decay: float = 0.98


def optimise(
    problem: Problem, part: Subproblems, effort: Effort, enough: Tensor | float, stop: Callable[[], bool]
) -> Subproblems:
    """The same rows with the best slopes and multipliers that were met, by bounds in the type of the problem.

    A row is left as soon as its bound exceeds ``enough`` (a number, or one a row), and all are when ``stop()``.
    """
    kept = [part.slope.clone(), part.multiplier.clone()]
    best = part.slope.new_full((len(part),), -torch.inf)
    left, current = part, [part.slope, part.multiplier]
    where, goal = torch.arange(len(part), device=best.device), best.new_zeros(len(part)) + enough
    moments = [[torch.zeros_like(each), torch.zeros_like(each)] for each in current]
    rates = [effort.rate, effort.push]
    for step in range(1, effort.iterations + 1):
        value, gradients = _climb(problem, left, current)
        better = value > best[where]
        best[where[better]] = value[better]
        for each, now in zip(kept, current, strict=True):
            each[where[better]] = now[better]
        going = ~(value > goal[where])
        if step == effort.iterations or not bool(going.any()) or stop():
            break
        left, where = left[going], where[going]
        current = [each[going] for each in current]
        moments = [[each[going] for each in pair] for pair in moments]
        for each, pair, gradient, rate in zip(current, moments, gradients, rates, strict=True):
            _adam(each, pair, gradient[going], rate * effort.decay ** (step - 1), step)
        current[0].clamp_(0, 1)
        current[1].clamp_(min=0)
    return replace(part, slope=kept[0], multiplier=kept[1])


def _climb(problem: Problem, part: Subproblems, current: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Bounds with these slopes and multipliers, and the gradient."""
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in current]
        value = bound(problem, replace(part, slope=leaves[0], multiplier=leaves[1])).value
        if not value.requires_grad:  # no unit has a way to the margins
            return value, tuple(torch.zeros_like(each) for each in current)
        gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), gradients


def _adam(x: Tensor, moments: list[Tensor], gradient: Tensor, rate: float, step: int) -> None:
    """One step upwards, in place."""
    first, second = moments
    first.lerp_(gradient, 0.1)
    second.lerp_(gradient * gradient, 0.001)
    x.addcdiv_(first, (second / (1 - 0.999**step)).sqrt_().add_(1e-8), value=rate / (1 - 0.9**step))


def rounded(part: Subproblems) -> Subproblems:
    """With slopes that are multiples of ``1 / STEPS``, and multipliers that float32 holds."""
    slope = (part.slope * STEPS).round().to(torch.uint8).to(part.slope.dtype) / STEPS
    return replace(part, slope=slope, multiplier=part.multiplier.float().to(part.multiplier.dtype))
