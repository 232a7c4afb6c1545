# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Verifiers as strangers write them: a good one, and many that break the contract."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ctkd.errors import BadInput, CtkdError
from ctkd.options import Options
from ctkd.verify.model import Model
from ctkd.verifying import Answer, Query, run_program
from ctkd.vnnlib import Specification, read_specification

HANGS = [sys.executable, "-c", "import time; time.sleep(600)"]


class Centre:
    """Looks at the centre of the box, and proves nothing."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self) -> dict[str, str]:
        return {"centre": "1.0"}

    def verify(self, query: Query) -> Answer:
        try:
            onnx.load(query.model)
            model, specification = Model(query.model), read_specification(query.specification)
        except Exception as error:
            return Answer("error", message=" ".join(str(error).split()))
        if query.timeout < 1:  # as the kit cuts it short
            done = run_program(HANGS, timeout=query.timeout, folder=query.scratch)
            return Answer("timeout" if done.timed_out else "error", message="it ended")
        return self.look(query, model, specification)

    def look(self, query: Query, model: Model, specification: Specification) -> Answer:
        first = specification.disjuncts[0]
        x = ((first.lower + first.upper) / 2).astype(np.float32).astype(np.float64)
        return Answer("falsified", x) if specification.violated(x, model(x)) else Answer("unknown")

    def outputs(self, model: Path, x: NDArray[Any]) -> NDArray[Any]:
        return Model(model)(x)


class NoVersion(Centre):
    def check(self) -> dict[str, str]:
        return {}


class OldFormat(Centre):
    formats = ("0.9",)


class Upside(Centre):
    """unsat and sat exchanged."""

    def look(self, query: Query, model: Model, specification: Specification) -> Answer:
        found = super().look(query, model, specification)
        return Answer("verified") if found.verdict == "falsified" else Answer("falsified", found.witness)


class Proves(Centre):
    """Strict where it should not be: a tie is robust for it."""

    def look(self, query: Query, model: Model, specification: Specification) -> Answer:
        found = super().look(query, model, specification)
        if found.witness is None:
            return found
        y = model(found.witness)
        return Answer("verified") if np.ptp(y) == 0 else found


class Backwards(Centre):
    """Reads the witness in the wrong order."""

    def look(self, query: Query, model: Model, specification: Specification) -> Answer:
        found = super().look(query, model, specification)
        return Answer(found.verdict, None if found.witness is None else found.witness[::-1])


class Miscomputes(Centre):
    def outputs(self, model: Path, x: NDArray[Any]) -> NDArray[Any]:
        return Model(model)(x) * 1.01


class GivesUp(Centre):
    """Calls what it cannot read unknown."""

    def verify(self, query: Query) -> Answer:
        found = super().verify(query)
        return Answer("unknown") if found.verdict == "error" else found


class Leaves(Centre):
    """Does not wait for its program, and does not end it."""

    def verify(self, query: Query) -> Answer:
        import subprocess

        if query.timeout < 1:
            subprocess.run(["sh", "-c", "setsid sleep 5 >/dev/null 2>&1 &"], check=True)
            return Answer("timeout")
        return super().verify(query)


class WritesBeside(Centre):
    def look(self, query: Query, model: Model, specification: Specification) -> Answer:
        query.specification.with_suffix(".cache").write_text("cache")
        return super().look(query, model, specification)


class Forgets(Centre):
    """Says error without a reason."""

    def verify(self, query: Query) -> Answer:
        return Answer("error")


class NotHere(Centre):
    def check(self) -> dict[str, str]:
        raise BadInput("the program 'nothere' is not installed: pip install nothere")

    def verify(self, query: Query) -> Answer:
        raise CtkdError("it was asked without being there")


BROKEN: dict[str, tuple[type, ...]] = {
    "verifier": (
        *(NoVersion, OldFormat, Upside, Proves, Backwards, Miscomputes, GivesUp, Leaves, WritesBeside, Forgets),
    )
}
GOOD: dict[str, type] = {"verifier": Centre}
