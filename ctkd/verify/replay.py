# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Is a witness one? It is computed again by onnxruntime, at a number of the model's type strictly inside the box.

A replayed violation is a proof, up to what onnxruntime computes: no claim of a tool enters it. So it is also searched
for close by, where rounding has moved a tool's witness: to a tie, to the wrong side of it, or off the box's bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctkd.verify.model import Model
from ctkd.vnnlib import Specification
from ctkd.vnnlib.specification import Box

TRIES = 256
"""Points tried close to a witness that violates nothing itself."""
CLOSE = 1e-3
"""How far they may be from it, relative to the width of the box."""
CORNERS = 64
"""Random corners that a claim of ``verified`` is tried at, beside the centre."""

Values = NDArray[np.float64]
Reason = Literal["", "no-witness", "witness-malformed", "witness-outside", "witness-holds"]


@dataclass(frozen=True)
class Replay:
    """What became of a witness.

    Attributes:
        reason: empty if it violates the specification.
        detail: for people, where it does not.
        x: (inputs,), the input that was replayed, exactly as the model got it; None if none was.
        y: (outputs,), its outputs.
    """

    reason: Reason
    detail: str = ""
    x: Values | None = None
    y: Values | None = None


def replay(model: Model, specification: Specification, witness: object, digits: int | None) -> Replay:
    """Try a witness (inputs,), and points close to it.

    It may move into the box by the rounding of the model's type, and by half a unit of the last of ``digits`` decimals.
    ``detail`` of a violation says how far from the witness it is, where that is more.
    """
    if witness is None:
        return Replay("no-witness", "it gives no witness")
    try:
        point = np.asarray(witness, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return Replay("witness-malformed", f"its witness is a {type(witness).__name__}, no array of numbers")
    if point.shape != (model.inputs,) or not np.isfinite(point).all():
        return Replay(
            "witness-malformed", f"its witness has {point.size} numbers, not {model.inputs}, or some are not finite"
        )
    half = 0.0 if digits is None else 0.5 * 10.0**-digits
    # What the decimal and the model's type can make of a number, with room for rounding in the sum.
    slack = half * (1 + 1e-9) + np.spacing(np.abs(point).astype(model.dtype)).astype(np.float64)
    missed: Point | None = None
    for box in specification.boxes:
        lower, upper = inner(box, model.dtype)
        near = np.clip(_cast(point, model), lower, upper)
        if (lower > upper).any() or (np.abs(near - point) > slack).any():
            continue
        # Most coordinates of a counterexample lie on a bound, from which a few digits have moved them.
        snapped = np.where(point - slack <= lower, lower, np.where(point + slack >= upper, upper, near))
        reach = np.maximum(slack, CLOSE * (upper - lower))
        first, *further = _search(model, specification, (near, snapped), (lower, upper), reach)
        for found in (first, *further):
            if found.violates:
                moved = float(np.abs(found.x - point).max())
                far = f"the violation is {moved:.2g} from its witness" if moved > slack.max() else ""
                return Replay("", far, found.x, found.y)
        missed = missed or first
    if missed is None:
        distance = min(_distance(box, point) for box in specification.boxes)
        return Replay("witness-outside", f"its witness is outside of the box by {distance:.3g}")
    if not np.isfinite(missed.y).all():
        return Replay("witness-holds", "at its witness onnxruntime's outputs are not finite", missed.x, missed.y)
    return Replay("witness-holds", f"its witness violates nothing, by {missed.excess:.3g}", missed.x, missed.y)


@dataclass(frozen=True, eq=False)
class Point:
    """An input and what the model makes of it; ``excess`` is an estimate of how far it is from a violation."""

    x: Values
    y: Values
    violates: bool
    excess: float


def _search(
    model: Model,
    specification: Specification,
    starts: tuple[Values, Values],
    bounds: tuple[Values, Values],
    reach: Values,
) -> Iterator[Point]:
    """The starts, then random steps from the best point so far, within ``reach`` of the first start and the bounds."""
    low, high = np.maximum(bounds[0], starts[0] - reach), np.minimum(bounds[1], starts[0] + reach)
    best: Point | None = None
    random = np.random.default_rng(0)
    for k in range(len(starts) + TRIES):
        if best is None or k < len(starts):
            x = starts[k]
        else:
            signs = np.where(random.random(len(reach)) < 0.5, -1.0, 1.0)
            if k % 2:  # what an optimiser put on a bound is best left there
                signs *= (best.x > bounds[0]) & (best.x < bounds[1])
            x = np.clip(_cast(np.clip(best.x + signs * reach * 2.0 ** -(k % 12), low, high), model), *bounds)
        y = model(x)
        point = Point(x, y, specification.violated(x, y), _excess(specification, y))
        yield point
        if best is None or point.excess < best.excess:
            best = point


def _cast(x: Values, model: Model) -> Values:
    """The nearest numbers of the model's type."""
    return x.astype(model.dtype).astype(np.float64)


def challenge(model: Model, specification: Specification) -> Replay | None:
    """A violation at the centre of a box or at random corners, or None. Finds only what is easy to find."""
    for x in _trials(specification, model.dtype):
        y = model(x)
        if specification.violated(x, y):
            return Replay("", "", x, y)
    return None


def points(specification: Specification, model: Model, count: int) -> list[Values]:
    """A few inputs inside the boxes: centre and corners."""
    return [x for x, _ in zip(_trials(specification, model.dtype), range(count), strict=False)]


def inner(box: Box, dtype: Any) -> tuple[Values, Values]:
    """The numbers of this type inside the box, as float64; lower > upper where there are none."""
    lower, upper = box.inner
    low, high = lower.astype(dtype), upper.astype(dtype)
    low = np.where(low < lower, np.nextafter(low, dtype(np.inf)), low)
    high = np.where(high > upper, np.nextafter(high, dtype(-np.inf)), high)
    return low.astype(np.float64), high.astype(np.float64)


def _trials(specification: Specification, dtype: Any) -> Iterator[Values]:
    usable = [
        (low, high) for low, high in (inner(box, dtype) for box in specification.boxes[:CORNERS]) if (low <= high).all()
    ]
    for low, high in usable:
        yield np.clip((low + (high - low) / 2).astype(dtype).astype(np.float64), low, high)
    random = np.random.default_rng(0)
    for k in range(CORNERS if usable else 0):
        low, high = usable[k % len(usable)]
        yield np.where(random.random(len(low)) < 0.5, low, high)


def _excess(specification: Specification, y: Values) -> float:
    """The largest excess over a constraint of the nearest disjunct; infinite where it is not a number."""
    each = [float((matrix @ y - bound).max()) for matrix, bound in (one.constraints for one in specification.disjuncts)]
    return min((value for value in each if np.isfinite(value)), default=np.inf)


def _distance(box: Box, point: Values) -> float:
    lower, upper = box.inner
    return float(np.maximum(np.maximum(lower - point, point - upper), 0).max())
