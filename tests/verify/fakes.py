# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Verifiers that do what real ones do, good and bad. Each is registered under its class's name while a test runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctkd.errors import BadInput
from ctkd.options import Options, Positive
from ctkd.verify.model import Model
from ctkd.verifying import Answer, Query, run_program
from ctkd.vnnlib import read_specification


class Fake:
    """Says verified."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self) -> dict[str, str]:
        return {"fake": "1.0"}

    def verify(self, query: Query) -> Answer:
        return Answer("verified")


def centre(query: Query) -> NDArray[Any]:
    first = read_specification(query.specification).disjuncts[0]
    return ((first.lower + first.upper) / 2).astype(np.float32).astype(np.float64)


class Honest(Fake):
    """Looks at the centre of the box, which settles the instances of these tests."""

    def verify(self, query: Query) -> Answer:
        x = centre(query)
        violated = read_specification(query.specification).violated(x, Model(query.model)(x))
        return Answer("falsified", x, log="looked at the centre") if violated else Answer("verified")


class Second(Honest):
    """Another honest one."""


class Patient(Honest):
    """With an option."""

    class Options(Options):
        seconds: Positive = 1.0


class Verifies(Fake):
    """The wrong verdict where the property fails."""


class Missing(Fake):
    def check(self) -> dict[str, str]:
        raise BadInput("the program 'missing' is not installed: pip install missing")


class ChecksBadly(Fake):
    def check(self) -> dict[str, str]:
        raise OSError("no such file")


class Raises(Fake):
    def verify(self, query: Query) -> Answer:
        raise ZeroDivisionError("division by zero\nsecond line")


class Crashes(Fake):
    """Its program dies from a signal."""

    def verify(self, query: Query) -> Answer:
        command = [sys.executable, "-c", "import os; print('half a', flush=True); os.kill(os.getpid(), 11)"]
        done = run_program(command, timeout=query.timeout, folder=query.scratch)
        return Answer("error", message=f"it ended with signal {-(done.code or 0)}", log=done.output)


class Hangs(Fake):
    """Its program waits for ever, and so does a child in a session of its own; the test finds them by ``pids``."""

    class Options(Options):
        pids: str
        """File that gets their numbers."""

    def verify(self, query: Query) -> Answer:
        child = "import time; time.sleep(600)"
        code = (
            "import os, subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
            f"open({self.options.pids!r}, 'a').write(f'{{os.getpid()}} {{child.pid}} ')\n"  # type: ignore[attr-defined]
            "time.sleep(600)\n"
        )
        done = run_program([sys.executable, "-c", code], timeout=query.timeout, folder=query.scratch)
        return Answer("timeout" if done.timed_out else "error", message="" if done.timed_out else "it ended")


class Returns(Fake):
    """Rubbish: what a test puts here."""

    answer: Any = None

    def verify(self, query: Query) -> Answer:
        return self.answer  # type: ignore[no-any-return]


class LiesOutside(Fake):
    """A true violation, beside the box."""

    def verify(self, query: Query) -> Answer:
        x = centre(query)
        return Answer("falsified", np.where(np.arange(len(x)) == 3, x + 2.0, x))


class LiesInside(Fake):
    """The centre, whatever it is."""

    def verify(self, query: Query) -> Answer:
        return Answer("falsified", centre(query))


class KeepsQuiet(Fake):
    def verify(self, query: Query) -> Answer:
        return Answer("falsified")


class Misreads(Honest):
    """Computes another network."""

    def outputs(self, model: Path, x: NDArray[Any]) -> NDArray[Any]:
        return Model(model)(x) + 0.1


class Asked(Honest):
    """Computes the right network, and says so."""

    def outputs(self, model: Path, x: NDArray[Any]) -> NDArray[Any]:
        return Model(model)(x) + 1e-6


class Slow(Honest):
    class Options(Options):
        seconds: Positive = 0.5
        """Of each answer."""

    def verify(self, query: Query) -> Answer:
        time.sleep(self.options.seconds)  # type: ignore[attr-defined]
        return super().verify(query)


class ModernOnly(Honest):
    formats = ("2.0",)


class WritesNearby(Honest):
    """As a tool that keeps a cache beside the specification."""

    def verify(self, query: Query) -> Answer:
        query.specification.with_suffix(".compiled").write_text("cache")
        return super().verify(query)


class Corners(Fake):
    """Tries random corners."""

    def verify(self, query: Query) -> Answer:
        specification, model = read_specification(query.specification), Model(query.model)
        first, random = specification.disjuncts[0], np.random.default_rng(0)
        for _ in range(500):
            x = np.where(random.random(specification.inputs) < 0.5, first.lower, first.upper)
            if specification.violated(x, model(x)):
                return Answer("falsified", x)
        return Answer("unknown", message="no corner violates it")
