# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Runs NeuralSAT and reads what it writes. See the README for what it gets wrong."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from ctkd.errors import BadInput, RunFailed
from ctkd.verifying import Answer, Finished, Query, Verdict, run_program
from ctkd.vnnlib import NotPlainError, parse_witness, plain_text, read_specification
from ctkd_neuralsat.options import NeuralSatOptions

INSTALL = (
    "python -m venv nsat && nsat/bin/pip install neuralsat==0.2.17, then --set neuralsat.python=nsat/bin/python "
    "(the README of ctkd-neuralsat has more)"
)
WHERE = """
import importlib.metadata, importlib.util, os
found = importlib.util.find_spec("src")
print(importlib.metadata.version("neuralsat"))
print(os.path.join(list(found.submodule_search_locations)[0], "main.py"))
import torch
print(torch.__version__)
"""
VERDICTS: dict[str, Verdict] = {"unsat": "verified", "sat": "falsified", "timeout": "timeout", "unknown": "unknown"}
FIRST = re.compile(r"([a-z]+),[0-9.]+")
ASKING = 120.0
"""Seconds for its version: PyTorch may be slow to load the first time."""


class NeuralSat:
    """NeuralSAT 0.2.17: branch and bound over ReLUs, by DPLL(T).

    Sound up to its float32 arithmetic; ctkd replays its witnesses, which are printed in full.
    """

    Options = NeuralSatOptions
    formats = ("1.0",)

    def __init__(self, options: NeuralSatOptions) -> None:
        self.options = options
        self.main: str | None = None

    def check(self) -> dict[str, str]:
        python = self.options.python
        if python is None:
            raise BadInput(f"neuralsat.python must name the Python of NeuralSAT's environment: {INSTALL}")
        if not os.access(python, os.X_OK):
            raise BadInput(f"neuralsat.python={python} is no program: {INSTALL}")
        if python.absolute() == Path(sys.executable).absolute():
            raise BadInput("neuralsat.python is ctkd's own: NeuralSAT brings a module named src; give it its own venv")
        try:
            with tempfile.TemporaryDirectory() as folder:
                done = run_program(
                    [str(python), "-c", WHERE], timeout=ASKING, folder=Path(folder), environment=self._variables()
                )
        except RunFailed as error:
            raise BadInput(f"{error}; {INSTALL}") from None
        lines = done.output.split("\n")
        if done.code != 0 or len(lines) < 3:
            raise BadInput(f"{python} has no working NeuralSAT ({_last(done)}): {INSTALL}")
        self.main = lines[1]
        return {"NeuralSAT": lines[0], "torch": lines[2]}

    def verify(self, query: Query) -> Answer:
        if self.main is None:
            self.check()
        try:
            text = plain_text(read_specification(query.specification))
        except NotPlainError as reason:
            return Answer("error", message=f"it would read another property from this specification: {reason}")
        except BadInput as problem:
            return Answer("error", message=f"the specification cannot be read: {problem.messages[0]}")
        specification, results = query.scratch / "plain.vnnlib", query.scratch / "results.txt"
        specification.write_text(text)
        files = ["--net", str(query.model.absolute()), "--spec", str(specification), "--result_file", str(results)]
        how = ["--device", self.options.device, "--timeout", f"{query.timeout:g}", "--verbosity", "0"]
        what = ["--export_cex", "--export_runtime", *self.options.arguments]
        command = [str(self.options.python), str(self.main), *files, *how, *what]
        done = run_program(command, timeout=query.timeout, folder=query.scratch, environment=self._variables())
        log = done.output + done.errors
        if done.timed_out:
            return Answer("timeout", log=log)
        written = results.read_text(errors="replace") if results.is_file() else ""
        first, _, rest = written.partition("\n")
        match = FIRST.fullmatch(first.strip())
        if done.code != 0 or match is None or match[1] not in VERDICTS:
            return Answer("error", message=_reason(done, first), log=log)
        verdict = VERDICTS[match[1]]
        message = "it gave up" if verdict == "unknown" else ""
        return Answer(verdict, parse_witness(rest) if verdict == "falsified" else None, message=message, log=log)

    def _variables(self) -> dict[str, str]:
        """ctkd's environment without what belongs to ctkd's own Python."""
        own = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        return {**kept, "PYTHONPATH": os.pathsep.join(map(str, self.options.path))} if self.options.path else kept


def _reason(done: Finished, first: str) -> str:
    if done.code != 0:
        return f"it ended with {_code(done)}: {_last(done)}"
    return f"its results file begins with {first[:60]!r}" if first else f"it wrote no results file: {_last(done)}"


def _code(done: Finished) -> str:
    return f"signal {-done.code}" if done.code is not None and done.code < 0 else f"exit code {done.code}"


def _last(done: Finished) -> str:
    lines = [line.strip() for line in (done.output + "\n" + done.errors).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"
