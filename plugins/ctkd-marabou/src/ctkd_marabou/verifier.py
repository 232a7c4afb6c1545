# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Runs the Marabou program and reads what it prints. See the README for what it gets wrong."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctkd.errors import BadInput, RunFailed
from ctkd.verifying import Answer, Finished, Query, Verdict, run_program
from ctkd.vnnlib import NotPlainError, Specification, plain_text, read_specification
from ctkd_marabou.options import MarabouOptions

INSTALL = "pip install maraboupy==2.0.0 (Python 3.11), or --set marabou.program=PATH of a build of your own"
VERDICTS: dict[str, Verdict] = {"unsat": "verified", "sat": "falsified", "TIMEOUT": "timeout", "UNKNOWN": "unknown"}
"""The first word of its summary file."""
LARGEST = 1e5
"""With a constant of 1e7 in a specification it was seen to answer unsat for something that holds everywhere."""
NARROWEST = Fraction(1, 100_000)
"""What varies by no more, its preprocessor sets to its lower end; on a box that narrow it answers unsat to anything."""
LONGEST = 2**31 - 1
"""The largest number of seconds that it takes."""
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
PATHS = ("Network:", "Property:", 'File "')
"""How lines begin in which it, and the Python around it, name files."""
ASKING = 60.0
"""Seconds for its version, and for its outputs at one input."""


class Marabou:
    """The Marabou program, version 2.0.0.

    Sound as far as its arithmetic in float64 is, with tolerances of its own: a neuron that varies by less than 1e-5 is
    a constant to it, so that a proof may be wrong where the margin is as small. ctkd replays its witnesses, which are
    printed with six decimals, and compares the network that it read with onnxruntime's.
    """

    Options = MarabouOptions
    formats = ("1.0",)
    witness_digits = 6

    def __init__(self, options: MarabouOptions) -> None:
        self.options = options

    @cached_property
    def program(self) -> str:
        """Raises: BadInput if there is none."""
        name = os.path.expanduser(self.options.program)  # noqa: PTH111 - a bare name stays one
        beside = Path(sys.executable).parent / name
        found = shutil.which(name) or shutil.which(beside)
        if found is None:
            raise BadInput(f"the program {name!r} is not installed: {INSTALL}")
        return str(Path(found).absolute())

    def check(self) -> dict[str, str]:
        try:
            with tempfile.TemporaryDirectory() as folder:
                done = run_program([self.program, "--version"], timeout=ASKING, folder=Path(folder))
        except RunFailed as error:
            raise BadInput(f"{error}; {INSTALL}") from None
        match = re.search(r"Marabou version (\S+)", done.output)
        if done.code != 0 or match is None:
            raise BadInput(f"{self.program} --version does not name a version of Marabou; {INSTALL}")
        return {"Marabou": match[1]}

    def verify(self, query: Query) -> Answer:
        try:
            specification = read_specification(query.specification)
        except BadInput as problem:
            return Answer("error", message=f"the specification cannot be read: {problem.messages[0]}")
        try:
            text = plain_text(specification)
        except NotPlainError:  # it reads several boxes and differences of outputs, and what comments say, too
            text = re.sub(r";[^\n]*", "", query.specification.read_text(encoding="utf-8", errors="replace"))
        if reason := _errs_silently(specification, text):
            return Answer("error", message=f"the specification has {reason} Marabou errs silently: it was not asked")
        plain = query.scratch / "plain.vnnlib"
        plain.write_text(text)
        return self._ask(query.model, plain, query.timeout, query.scratch)

    def outputs(self, model: Path, x: NDArray[Any]) -> NDArray[np.float64]:
        """Its outputs at one input, to six decimals, by a specification that holds everywhere on a box of one point.

        Raises: RunFailed if it cannot read the model. NaN where it denies what holds everywhere.
        """
        lines = [f"(declare-const X_{i} Real)" for i in range(x.size)] + ["(declare-const Y_0 Real)"]
        for i, value in enumerate(x.tolist()):
            number = format(Decimal(value), "f")
            number = number if "." in number else f"{number}.0"
            lines += [f"(assert (>= X_{i} {number}))", f"(assert (<= X_{i} {number}))"]
        lines.append("(assert (or (and (<= Y_0 0.0)) (and (>= Y_0 0.0))))")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "point.vnnlib").write_text("\n".join(lines) + "\n")
            answer = self._ask(model, folder / "point.vnnlib", ASKING, folder)
        if answer.verdict == "falsified":
            return _values("y", answer.log)
        if answer.verdict == "verified":
            return np.full(1, np.nan)
        raise RunFailed(f"Marabou does not evaluate {model.name}: {answer.message or answer.verdict}")

    def _ask(self, model: Path, specification: Path, timeout: float, folder: Path) -> Answer:
        summary = folder / "summary.txt"
        own = ["--verbosity", "0", "--timeout", str(min(math.ceil(timeout), LONGEST)), "--summary-file", str(summary)]
        command = [self.program, str(model.absolute()), str(specification.absolute()), *own, *self.options.arguments]
        done = run_program(command, timeout=timeout, folder=folder)
        log = done.log
        if done.timed_out:
            return Answer("timeout", log=log)
        words = summary.read_text(errors="replace").split() if summary.is_file() else []
        if done.code != 0 or not words or words[0] not in VERDICTS:
            return Answer("error", message=_reason(done, words), log=log)
        verdict = VERDICTS[words[0]]
        witness = _values("x", done.output) if verdict == "falsified" else None
        return Answer(verdict, witness, message="it gave up" if verdict == "unknown" else "", log=log)


def _values(letter: str, output: str) -> NDArray[np.float64]:
    """The lines ``x0 = 0.120000``, from 0 on without gaps; what else was printed is ignored."""
    found = dict(re.findall(rf"^\s*{letter}([0-9]+) = (\S+)$", output, re.MULTILINE))
    values: list[float] = []
    while (number := found.get(str(len(values)))) is not None and NUMBER.fullmatch(number):
        values.append(float(number))
    return np.array(values if len(values) == len(found) else [])


def _reason(done: Finished, words: list[str]) -> str:
    """The last line that speaks of an error; not those with paths, which may have the word in a name."""
    lines = [line.strip() for line in (done.output + "\n" + done.errors).splitlines()]
    told = [each for each in lines if "error" in each.lower() and not each.startswith(PATHS)]
    if told:
        return told[-1]
    return f"it ended with {done.ending} and the summary {' '.join(words)[:60]!r}"


def _errs_silently(specification: Specification, text: str) -> str:
    """What in a specification makes its answers wrong; empty if nothing does."""
    large = _largest_number(text)
    if large > LARGEST:
        return f"a number of {large:g}; beyond {LARGEST:g}"
    widths = (high - low for box in specification.boxes for low, high in zip(box.lower, box.upper, strict=True))
    narrow = next((width for width in widths if 0 < width <= NARROWEST), None)
    return "" if narrow is None else f"an input that varies by {float(narrow):.3g}; up to {float(NARROWEST):g}"


def _largest_number(text: str) -> float:
    words = text.replace("(", " ").replace(")", " ").split()
    return max((abs(float(word)) for word in words if NUMBER.fullmatch(word)), default=0.0)
