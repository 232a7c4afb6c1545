# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Counterexamples as the competition checks them, strictly: read the text, replay its input, compare exactly.

The check was written after the scorer of VNN-COMP 2026. It ignores the outputs that a witness claims: the network is
run again, on the CPU and on one input at a time, and no tolerance is given to inputs or outputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctkd.errors import RunFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ctkd.export.check import Run
    from ctkd.export.vnnlib import RobustnessProperty

NUMBER = r"-?[0-9]+\.[0-9]+"


def violates(run: Run, prop: RobustnessProperty, x: NDArray[Any]) -> bool:
    """Whether a point lies in the box, bounds included, and another logit reaches the label's there.

    Args:
        run: the network, as ``check.runner`` makes it.
        x: in the shape of one input; taken into float32, which is what the network reads.
    """
    point = x.astype(np.float32)
    flat = point.reshape(-1)
    inside = bool(((prop.lower <= flat) & (flat <= prop.upper)).all())
    logits = run(point[None])[0]
    return inside and bool((np.delete(logits, prop.label) >= logits[prop.label]).any())


def read_witness_1(text: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs and outputs of a witness in VNN-LIB 1.0's form, float64. Raises: RunFailed if it is not in that form."""
    content = text.replace("\n", " ").strip()
    found = re.findall(rf"\(([XY])_([0-9]+) ({NUMBER})\)", content)
    again = "(" + "  ".join(f"({name}_{index} {value})" for name, index, value in found) + ")"
    x, y = ([(int(i), float(value)) for name, i, value in found if name == letter] for letter in "XY")
    ordered = [name for name, *_ in found] == ["X"] * len(x) + ["Y"] * len(y)
    if content != again or not ordered or any([i for i, _ in part] != list(range(len(part))) for part in (x, y)):
        raise RunFailed("a witness does not have the form ((X_0 NUMBER) ... (Y_0 NUMBER) ...)")
    return np.array([value for _, value in x]), np.array([value for _, value in y])


def read_witness_2(text: str, shape: Sequence[int], classes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs and outputs of a witness in VNN-LIB 2.0's form, flat, float64. Raises: RunFailed as for 1.0."""
    lines = text.splitlines()
    values = []
    verdict, *rest = lines or [""]
    for name, sizes in (("X", (1, *shape)), ("Y", (1, classes))):
        count = int(np.prod(sizes))
        header, part, rest = rest[:1], rest[1 : 1 + count], rest[1 + count :]
        dimensions = ",".join(map(str, sizes))
        whole = len(part) == count and all(re.fullmatch(NUMBER, line) for line in part)
        if verdict != "sat" or header != [f"{name} float32 [{dimensions}]"] or not whole:
            raise RunFailed(f"a witness does not say 'sat', then '{name} float32 [{dimensions}]' and {count} numbers")
        values.append(np.array([float(line) for line in part]))
    if rest:
        raise RunFailed(f"a witness goes on after its last number: {rest[0]!r}")
    return values[0], values[1]
