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
from ctkd.verifying import Answer, Finished, Query, Verdict, other_python, run_program
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
SILENT = "it printed nothing"
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
                done = self._run(["-c", WHERE], ASKING, Path(folder))
        except RunFailed as error:
            raise BadInput(f"{error}; {INSTALL}") from None
        lines = done.output.split("\n")
        if done.code != 0 or len(lines) < 3:
            raise BadInput(f"{python} has no working NeuralSAT ({done.last_line or SILENT}): {INSTALL}")
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
        done = self._run([str(self.main), *files, *how, *what], query.timeout, query.scratch)
        log = done.log
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

    def _run(self, arguments: list[str], timeout: float, folder: Path) -> Finished:
        command = [str(self.options.python), *arguments]
        return run_program(command, timeout=timeout, folder=folder, environment=other_python(self.options.path))


def _reason(done: Finished, first: str) -> str:
    if done.code != 0:
        return f"it ended with {done.ending}: {done.last_line or SILENT}"
    said = done.last_line or SILENT
    return f"its results file begins with {first[:60]!r}" if first else f"it wrote no results file: {said}"
