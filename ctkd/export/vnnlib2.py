# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Robustness properties as VNN-LIB 2.0 text (the standard at vnnlib.org), of the same properties as in 1.0.

The reader accepts what the writer writes and nothing else.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from ctkd.export.generate_properties import brackets, vnnlib_2
from ctkd.export.vnnlib import Lines, RobustnessProperty

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_vnnlib2(prop: RobustnessProperty, shape: Sequence[int], *, eps: float) -> str:
    """The property's violation as VNN-LIB 2.0, about a network of one input and one output, both float32.

    Args:
        shape: of one input, without the batch; in the text the batch is 1.
        eps: the radius the box was made from; stated in a comment only.
    """
    return vnnlib_2(prop.lower.tolist(), prop.upper.tolist(), shape, prop.label, prop.classes, eps)


def read_vnnlib2(text: str) -> tuple[RobustnessProperty, tuple[int, ...]]:
    """Read what ``write_vnnlib2`` wrote: the property, its bounds bit for bit, and the shape of one input.

    Raises:
        BadInput: anything outside that form, with the line number.
    """
    lines = Lines(text)
    for literal in ("(vnnlib-version <2.0>)", "(declare-network classifier"):
        lines.literal(literal)
    shape, (classes,) = _dimensions(lines, "input X", "+"), _dimensions(lines, "output Y", "{1}")
    lines.literal(")")
    if 2 * math.prod(shape) > len(lines.lines):
        raise lines.error(f"{math.prod(shape)} inputs are declared, and fewer have bounds")
    lower, upper = lines.box([f"X{brackets(0, *place)}" for place in np.ndindex(*shape)])
    label = lines.unsafe_set("(>= Y[0,{j}] Y[0,{label}])", classes)
    return RobustnessProperty(lower, upper, label, classes), shape


def _dimensions(lines: Lines, variable: str, rank: str) -> tuple[int, ...]:
    """Of a declared variable, without the batch, which is 1."""
    before = f"    (declare-{variable} float32 ["
    match = re.fullmatch(re.escape(before) + rf"1((?:,[1-9][0-9]{{0,8}}){rank})\]\)", lines.current or "")
    if match is None:
        raise lines.error(f"expected '{before.strip()}1,...])'")
    lines.at += 1
    return tuple(int(number) for number in match[1][1:].split(","))
