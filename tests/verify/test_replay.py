# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Witnesses: what rounding did to them is forgiven, what they claim is not believed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.verify.model import Model
from ctkd.verify.replay import challenge, inner, replay
from ctkd.vnnlib import parse_specification, read_specification
from ctkd.vnnlib.specification import Box, Specification

from .conftest import specification


@pytest.fixture
def model(bench: Path) -> Model:
    return Model(bench / "onnx" / "net.onnx")


@pytest.fixture
def failing() -> Specification:
    return parse_specification(specification(0, holds=False))


def corner(spec: Specification) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return spec.disjuncts[0].upper.copy()


def test_a_corner_of_the_box_is_inside(model: Model, failing: Specification) -> None:
    found = replay(model, failing, corner(failing), None)
    assert (found.reason, found.detail) == ("", "")
    assert (found.x == corner(failing)).all()
    assert found.y is not None
    assert failing.violated(found.x, found.y)


@pytest.mark.parametrize("digits", [3, 6])
def test_rounding_may_leave_the_box_by_half_a_unit(model: Model, failing: Specification, digits: int) -> None:
    printed = np.round(corner(failing), digits)
    assert not failing.inside(printed)
    found = replay(model, failing, printed, digits)
    assert found.reason == ""
    assert failing.inside(found.x)  # type: ignore[arg-type]
    assert replay(model, failing, printed, digits + 2).reason == "witness-outside"
    assert replay(model, failing, printed + 10.0**-digits, digits).reason == "witness-outside"


def test_the_rounding_of_float32_is_forgiven(model: Model) -> None:
    text = specification(0, holds=False).splitlines()
    lines = [line for line in text if "X_5 " not in line or "declare" in line]
    lines[-1:] = [lines[-1], "(assert (>= X_5 0.1))", "(assert (<= X_5 0.3))"]
    spec = parse_specification("\n".join(lines))
    x = corner(spec)
    for value in (0.1, 0.3):  # float32 has neither, and its nearest numbers are above them
        x[5] = value
        found = replay(model, spec, x, None)
        assert found.reason == ""
        assert found.x is not None
        assert np.float32(found.x[5]) == found.x[5]
        assert spec.inside(found.x)


@given(st.lists(st.decimals(-3, 3, places=9).map(Fraction), min_size=2, max_size=2, unique=True).map(sorted))
def test_the_numbers_of_a_type_inside_a_box_are_all_of_them(bounds: list[Fraction]) -> None:
    for dtype in (np.float32, np.float64):
        low, high = (dtype(value[0]) for value in inner(Box((bounds[0],), (bounds[1],)), dtype))
        assert Fraction(float(np.nextafter(low, dtype(-9)))) < bounds[0] <= Fraction(float(low))
        assert Fraction(float(high)) <= bounds[1] < Fraction(float(np.nextafter(high, dtype(9))))


def test_a_witness_on_the_wrong_side_of_a_tie_leads_to_one_close_by(model: Model) -> None:
    """A box across the decision boundary, and a point on the safe side of it, as solvers with tolerances print them."""
    spec = parse_specification(specification(0, holds=True, eps=0.3))
    low, high = inner(spec.boxes[0], np.float32)
    rng = np.random.default_rng(0)
    safe = ((low + high) / 2).astype(np.float32).astype(np.float64)
    for _ in range(500):
        unsafe = (low + (high - low) * np.round(rng.random(len(low)))).astype(np.float32).astype(np.float64)
        if spec.violated(unsafe, model(unsafe)):
            break
    for _ in range(40):  # bisection
        middle = ((safe + unsafe) / 2).astype(np.float32).astype(np.float64)
        safe, unsafe = (safe, middle) if spec.violated(middle, model(middle)) else (middle, unsafe)
    assert not spec.violated(safe, model(safe))
    found = replay(model, spec, safe, None)
    assert found.reason == ""
    assert found.detail.startswith("the violation is ")
    assert found.x is not None
    assert spec.violated(found.x, model(found.x))
    assert np.abs(found.x - safe).max() <= 1e-3 * (high - low).max() + 1e-7


def test_what_holds_is_not_challenged(bench: Path, model: Model) -> None:
    assert challenge(model, read_specification(bench / "vnnlib" / "holds_0.vnnlib")) is None
    found = challenge(model, read_specification(bench / "vnnlib" / "fails_2.vnnlib"))
    assert found is not None
    assert found.reason == ""


def test_a_model_with_weights_in_another_file_is_told_by_them(bench: Path) -> None:
    import onnx

    path = bench / "onnx" / "net.onnx"
    model = onnx.load(path)
    digests = set()
    for factor in (1, 2):
        weights = model.graph.initializer[0]
        values = onnx.numpy_helper.to_array(weights) * factor
        weights.CopyFrom(onnx.numpy_helper.from_array(values.copy(), weights.name))
        folder = bench / str(factor)
        folder.mkdir()
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, folder / "net.onnx", save_as_external_data=True, location="data", size_threshold=0)
        digests.add(Model(folder / "net.onnx").digest)
    assert len(digests) == 2
