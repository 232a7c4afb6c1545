# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Reads what alpha-beta-CROWN writes: a text in single mode, a pickle in csv mode. Nothing in a pickle is run."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctkd.verifying import Answer, Verdict
from ctkd.vnnlib import parse_witness

VERDICTS: dict[str, Verdict] = {"unsat": "verified", "sat": "falsified", "timeout": "timeout"}
LATE = " (timed out)"
"""Behind a status of csv mode that came after its timeout; the answer itself is as good."""


def read_text(text: str) -> Answer:
    """Single mode's results: a verdict, and behind ``sat`` the witness."""
    first, _, rest = text.partition("\n")
    verdict = VERDICTS.get(first.strip())
    if verdict is None:
        return Answer("error", message=f"its results file begins with {first[:60]!r}")
    return _falsified(rest) if verdict == "falsified" else Answer(verdict)


def read_table(contents: bytes, witness: str, timeout: float) -> Answer:
    """Csv mode's results of a table with one instance.

    Args:
        contents: of the results file: ``{"results": [[status, seconds]], ...}``.
        witness: of the file of its own.
        timeout: seconds that it was given: ``unknown`` is its word for both having given up and having run out of time.
    """
    try:
        found = _Reader(contents).load()
        ((status, seconds),) = found["results"]
        seconds = float(seconds)
        if not isinstance(status, str) or not math.isfinite(seconds):
            raise TypeError
    except _Refused as refused:
        return Answer("error", message=str(refused))
    except Exception as error:  # anything may come out of a damaged pickle
        return Answer("error", message=f"its results file holds no answer to one instance ({type(error).__name__})")
    word = status.removesuffix(LATE)
    if word == "unsafe" or word.startswith("unsafe-"):
        return _falsified(witness, seconds)
    if word == "safe" or word.startswith("safe-"):
        return Answer("verified", seconds=seconds)
    if word == "unknown" or word.startswith("unknown-"):
        if seconds >= timeout:
            return Answer("timeout", seconds=seconds)
        return Answer("unknown", seconds=seconds, message="it gave up")
    return Answer("error", seconds=seconds, message=f"its results file says {status[:60]!r}")


def _falsified(text: str, seconds: float | None = None) -> Answer:
    if not text.strip():
        return Answer("falsified", seconds=seconds, message="it gives no witness")
    witness: NDArray[Any] | None = parse_witness(text)
    if witness is None:  # no numbers, where None would say that there was no witness
        return Answer("falsified", np.empty(0), seconds, message="its witness cannot be read")
    return Answer("falsified", witness, seconds)


class _Refused(Exception):
    """The pickle names something that results do not need."""


class _Reader(pickle.Unpickler):
    """Plain containers, text and numbers; tensors are read as nothing at all."""

    def __init__(self, contents: bytes) -> None:
        super().__init__(io.BytesIO(contents))
        # Stand-ins, fresh for each file: what a file attaches to them is gone with it.
        self.known: dict[tuple[str, str], Any] = {
            ("builtins", "list"): list,
            ("collections", "defaultdict"): lambda *_: {},
            ("collections", "OrderedDict"): lambda *_: {},
            ("torch._utils", "_rebuild_tensor_v2"): lambda *_: None,
            ("torch.storage", "_load_from_bytes"): lambda *_: None,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            what = " ".join(f"{module}.{name}".split())[:80]
            raise _Refused(f"its results file wants to run {what} when it is read, which ctkd never does") from None
