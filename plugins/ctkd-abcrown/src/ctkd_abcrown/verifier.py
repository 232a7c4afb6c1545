# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Runs alpha-beta-CROWN in an environment of its own. See the README for what it gets wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctkd.errors import BadInput, RunFailed
from ctkd.verifying import Answer, Finished, Query, other_python, run_program
from ctkd.vnnlib import NotPlainError, plain_text, read_specification
from ctkd_abcrown.configuration import Files, read_settings, write_question
from ctkd_abcrown.options import AbCrownOptions
from ctkd_abcrown.results import read_table, read_text

INSTALL = (
    "git clone --recursive https://github.com/Verified-Intelligence/alpha-beta-CROWN, make its environment as its "
    "README says, then --set abcrown.root=alpha-beta-CROWN --set abcrown.python=ENVIRONMENT/bin/python"
)
INSIDE = "complete_verifier"
# Programs for its Python. It prints while it is imported, so that answers have a file.
VERSIONS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import abcrown, auto_LiRPA, torch
found = {"auto_LiRPA": auto_LiRPA.__version__, "torch": torch.__version__}
if torch.cuda.is_available():
    found["GPU"] = torch.cuda.get_device_name()
json.dump(found, open("answer.json", "w"))
"""
OUTPUTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import arguments, torch
arguments.Config.parse_config(["--config", sys.argv[2]], verbose=False)
from load_model import load_model_onnx
x = torch.tensor(json.load(open("input.json")))
model, shape = load_model_onnx(sys.argv[3], x=x)
with torch.no_grad():
    y = model(x.reshape(1, *shape))
json.dump(y.reshape(-1).tolist(), open("answer.json", "w"))
"""
SILENT = "it printed nothing"
DIFFERS = "Model might not be converted correctly"
LARGEST_ERROR = re.compile(r"^Max error: tensor\(([^,)]+)", re.MULTILINE)
SECONDS = re.compile(r"^Time: ([0-9.]+(?:e[-+]?[0-9]+)?)$", re.MULTILINE)
VERSION = re.compile(r"^__version__ = ['\"]([^'\"]+)", re.MULTILINE)
ASKING = 120.0
"""Seconds for its version, and for the outputs at one input: PyTorch may be slow to load the first time."""
LARGEST = 1 << 26
"""Bytes of a file that are read; a witness of ImageNet has a tenth of that."""


class AbCrown:
    """alpha-beta-CROWN 0.7.0: PGD, CROWN with optimised slopes, then branch and bound with split constraints.

    Sound up to its float32 arithmetic; ctkd replays its witnesses, which are printed in full.
    """

    Options = AbCrownOptions
    formats = ("1.0",)

    def __init__(self, options: AbCrownOptions) -> None:
        self.options = options

    def check(self) -> dict[str, str]:
        root, python = self.options.root, self.options.python
        if root is None or python is None:
            raise BadInput(f"abcrown.root must name a checkout and abcrown.python its environment's Python: {INSTALL}")
        if not self._program().is_file():
            raise BadInput(f"abcrown.root={root} holds no {INSIDE}/abcrown.py: {INSTALL}")
        if not os.access(python, os.X_OK) or python.is_dir():
            raise BadInput(f"abcrown.python={python} is no program: {INSTALL}")
        found = {"alpha-beta-CROWN": self._version()}
        if self.options.config is not None:
            read_settings(self.options.config)
            found["config"] = hashlib.sha256(self.options.config.read_bytes()).hexdigest()[:12]
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = self._run(["-c", VERSIONS, str(root / INSIDE)], ASKING, Path(folder))
                versions = _answer(done, Path(folder))
            except (RunFailed, ValueError) as error:
                raise BadInput(f"alpha-beta-CROWN does not run with {python} ({error}): {INSTALL}") from None
        if self.options.device == "cuda" and "GPU" not in versions:
            raise BadInput(f"abcrown.device=cuda, but {python} finds no GPU: set cpu, or install a PyTorch for the GPU")
        return found | {name: str(version) for name, version in versions.items()}

    def outputs(self, model: Path, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What its own reading of the network computes, on the CPU."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            files = Files(folder, "single")
            write_question(self.options, files, model.absolute(), ASKING)
            (folder / "input.json").write_text(json.dumps(x.tolist()))
            given = [str(self._program().parent), str(files.configuration), str(model.absolute())]
            done = self._run(["-c", OUTPUTS, *given], ASKING, folder)
            try:
                return np.array(_answer(done, folder), np.float64)
            except (RunFailed, ValueError) as error:
                raise RunFailed(f"alpha-beta-CROWN does not evaluate {model.name}: {error}") from None

    def verify(self, query: Query) -> Answer:
        try:
            text = plain_text(read_specification(query.specification))
        except NotPlainError as reason:
            return Answer("error", message=f"it cannot read this specification: {reason}")
        except BadInput as problem:
            return Answer("error", message=f"the specification cannot be read: {problem.messages[0]}")
        files = Files(query.scratch.absolute(), self.options.mode)
        files.specification.write_text(text)
        write_question(self.options, files, query.model.absolute(), query.timeout)
        command = [str(self._program()), "--config", str(files.configuration)]
        done = self._run(command, query.timeout, query.scratch)
        return replace(self._read(done, files, query.timeout), log=done.log)

    def _read(self, done: Finished, files: Files, timeout: float) -> Answer:
        if DIFFERS in done.output:
            largest = LARGEST_ERROR.search(done.output)
            by = f" by {largest[1]}" if largest else ""
            return Answer("error", message=f"network-mismatch: it says that its network differs from onnxruntime's{by}")
        if done.timed_out:
            return Answer("timeout")
        if done.code != 0:
            return Answer("error", message=_ended(done))
        if not files.results.is_file():
            return Answer("error", message=f"it wrote no results file: {done.last_line or SILENT}")
        contents = _contents(files.results)
        if files.mode == "csv":
            return read_table(contents, _contents(files.witness).decode(errors="replace"), timeout)
        seconds = SECONDS.findall(done.output)
        return replace(read_text(contents.decode(errors="replace")), seconds=float(seconds[-1]) if seconds else None)

    def _program(self) -> Path:
        assert self.options.root is not None
        return self.options.root / INSIDE / "abcrown.py"

    def _version(self) -> str:
        try:
            found = VERSION.search((self._program().parent / "__init__.py").read_text(errors="replace"))
        except OSError:
            found = None
        return found[1] if found else "of unknown version"

    def _run(self, arguments: list[str], timeout: float, folder: Path) -> Finished:
        command = [str(self.options.python), *arguments]
        return run_program(command, timeout=timeout, folder=folder, environment=other_python(self.options.path))


def _answer(done: Finished, folder: Path) -> Any:
    """What a program for its Python left. Raises: RunFailed, ValueError: nothing."""
    if done.timed_out:
        raise RunFailed(f"it took more than {ASKING:g} s")
    answer = folder / "answer.json"
    if done.code != 0 or not answer.is_file():
        raise RunFailed(_ended(done))
    return json.loads(answer.read_text())


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError:
        return b""


def _ended(done: Finished) -> str:
    return f"it ended with {done.ending}: {done.last_line or SILENT}"
