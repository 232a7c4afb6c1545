# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Reads what tools of the competition write: a verdict, and a witness in the form of VNN-LIB 1.0 or 2.0."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from ctkd.verifying import Answer, Verdict
from ctkd.vnnlib import parse_witness

VERDICTS: dict[str, Verdict] = {
    "sat": "falsified",
    "violated": "falsified",
    "unsat": "verified",
    "holds": "verified",
    "unknown": "unknown",
    "timeout": "timeout",
    "timed-out": "timeout",
    "error": "error",
}
"""The first line; ``violated`` and ``holds`` are the words of older editions."""
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)
DIMENSIONS = r"\[\s*((?:[0-9]{1,9}(?:\s*,\s*[0-9]{1,9}){0,15})?)\s*\]"
HEADER = re.compile(rf"[A-Za-z][A-Za-z0-9_]*\s+[A-Za-z0-9]+\s+{DIMENSIONS}", re.ASCII)


def read_results(text: str, log: str) -> Answer:
    """The answer in a results file, or on a program's standard output; anything else is an ``error``."""
    first, _, rest = text.replace("\r\n", "\n").lstrip().partition("\n")
    word = first.strip().lower()
    verdict = VERDICTS.get(word)
    if verdict is None:
        return Answer("error", message=f"its result is {_shown(first)}, none of {', '.join(VERDICTS)}", log=log)
    if verdict == "error":
        return Answer(
            "error",
            message=f"it answered error {_shown(rest.strip())}" if rest.strip() else "it answered error",
            log=log,
        )
    if verdict != "falsified":
        return Answer(verdict, message="it gave up" if verdict == "unknown" else "", log=log)
    if not rest.strip():
        return Answer("falsified", message="it gives no witness", log=log)
    witness = parse_witness(rest) if rest.lstrip().startswith("(") else _columns(rest)
    if witness is None:  # no numbers, where None would say that there was no witness
        return Answer("falsified", np.empty(0), message="its witness cannot be read", log=log)
    return Answer("falsified", witness, log=log)


def _columns(text: str) -> NDArray[np.float64] | None:
    """A header ``X float32 [1,2]`` and a number on each line; only the first variable, the input, is used."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        return None
    count = math.prod(int(part) for part in header[1].split(",")) if header[1] else 1
    values = lines[1 : 1 + count]
    after = lines[1 + count : 2 + count]
    if len(values) != count or (after and HEADER.fullmatch(after[0]) is None):
        return None
    return _numbers(values)


def _numbers(texts: list[str]) -> NDArray[np.float64] | None:
    if not texts or not all(NUMBER.fullmatch(text) for text in texts):
        return None
    return np.array([float(text) for text in texts])


def _shown(text: str) -> str:
    return repr(text[:60]) if text else "empty"
