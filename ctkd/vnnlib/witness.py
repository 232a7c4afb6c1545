# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Reads the witness that verifiers write in VNN-LIB 1.0's form."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)
PAIR = re.compile(r"\(\s*([XY])_([0-9]{1,9})\s+([^\s()]+)\s*\)", re.ASCII)


def parse_witness(text: str) -> NDArray[np.float64] | None:
    """The inputs (inputs,) of ``((X_0 0.5) (X_1 0.25) ... (Y_0 -0.1) ...)``; the outputs that it claims are not used.

    None where anything else stands there, an index is missing, repeated or out of order, or a value is no number: a
    witness is read whole or not at all.
    """
    body = text.strip()
    if not (body.startswith("(") and body.endswith(")")) or PAIR.sub("", body[1:-1]).strip():
        return None
    inputs = [(int(index), value) for letter, index, value in PAIR.findall(body[1:-1]) if letter == "X"]
    if not inputs or [index for index, _ in inputs] != list(range(len(inputs))):
        return None
    if not all(NUMBER.fullmatch(value) for _, value in inputs):
        return None
    return np.array([float(value) for _, value in inputs])
