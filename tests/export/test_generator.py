# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The script that a benchmark carries: the same boxes as ctkd's, old Python, nothing but NumPy."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctkd.boxes import perturbation_box
from ctkd.export import generate_properties as script

SOURCE = Path(script.__file__).read_text()
UNIT = st.floats(0, 1, width=32)
RADII = st.one_of(st.floats(0, 1), st.sampled_from([0.1, 2 / 255, 1e-50]))


@settings(deadline=None, max_examples=300)
@given(
    hnp.arrays(np.float32, (2, 5), elements=UNIT), st.one_of(st.floats(0, 1), st.sampled_from([0.1, 2 / 255, 1e-50]))
)
def test_boxes_are_those_of_ctkd_bit_for_bit(x: np.ndarray, eps: float) -> None:
    lower, upper = script.perturbation_box(x, eps)
    box = perturbation_box(torch.from_numpy(x), eps)
    assert (lower.dtype, upper.dtype) == (np.float32, np.float32)
    assert lower.tobytes() == box.lower.numpy().tobytes()
    assert upper.tobytes() == box.upper.numpy().tobytes()


def test_every_8_bit_image_and_its_box() -> None:
    """All 256 values at the radii of the field."""
    stored = np.arange(256, dtype=np.uint8)
    x = torch.from_numpy(stored).to(torch.float32).div_(255)
    assert script.pixels(stored).tobytes() == x.numpy().tobytes()
    for eps in (1 / 255, 2 / 255, 8 / 255, 0.1, 0.3):
        lower, upper = script.perturbation_box(script.pixels(stored), eps)
        box = perturbation_box(x, eps)
        assert lower.tobytes() == box.lower.numpy().tobytes()
        assert upper.tobytes() == box.upper.numpy().tobytes()


def test_float_images_are_taken_as_they_are() -> None:
    x = np.array([0.1, 1e-45], np.float32)
    assert script.pixels(x) is x


@given(st.sets(st.integers(0, 10**6), min_size=3, max_size=40), st.integers(), st.data())
def test_draws(samples: set[int], seed: int, data: st.DataObject) -> None:
    """As many as asked for, ascending; more include fewer; the order in which samples come does not matter."""
    count = data.draw(st.integers(0, len(samples) - 1))
    drawn = script.draw(samples, count, seed)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count
    assert set(drawn) <= samples
    assert set(drawn) < set(script.draw(samples, count + 1, seed))
    assert drawn == script.draw(sorted(samples, reverse=True), count, seed)


def test_draws_are_the_same_for_ever() -> None:
    """Whatever the versions of Python and NumPy: the competition's seed has to give the files that were announced."""
    assert script.draw(range(100), 5, 42) == [16, 20, 33, 37, 75]
    assert script.draw(range(100), 5, 10**30) != script.draw(range(100), 5, 42)


def imported(nodes: list[ast.stmt]) -> Iterator[str]:
    """Packages that are imported when the script runs: not those that only a type checker sees."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def test_it_is_python_3_8_and_needs_nothing_but_numpy() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 8))
    everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    seen_by_checkers = {"collections", "numpy"}  # below TYPE_CHECKING
    assert set(imported(everywhere)) - set(sys.stdlib_module_names) - seen_by_checkers == set()
    assert set(imported(tree.body)) - set(sys.stdlib_module_names) == {"numpy"}
    assert "from __future__ import annotations" in SOURCE  # so that annotations may be newer than 3.8


@pytest.mark.parametrize("newer", ["removeprefix", "removesuffix", "strict=", "math.lcm", "batched", "match "])
def test_it_calls_nothing_newer(newer: str) -> None:
    assert newer not in SOURCE
