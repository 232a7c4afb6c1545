# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Runs a tool of the competition: by its scripts, or by the command line of VNN-LIB 2.0."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ctkd.errors import BadInput, RunFailed
from ctkd.verifying import Answer, Finished, Query, run_program
from ctkd_vnncomp_tool.options import VnncompToolOptions
from ctkd_vnncomp_tool.results import read_results

CHOOSE = (
    "say which tool: --set vnncomp-tool.scripts=FOLDER with its prepare_instance.sh and run_instance.sh, or "
    "--set 'vnncomp-tool.program=[\"NAME\"]' for one with the command line of VNN-LIB 2.0"
)
PREPARE, RUN = "prepare_instance.sh", "run_instance.sh"
NETWORK = re.compile(r"\(\s*declare-network\s+([A-Za-z][A-Za-z0-9_]*)")
ASKING = 60.0
"""Seconds for a program's name, and for its version."""
LARGEST = 1 << 26
"""Bytes of a results file that are read; a witness of ImageNet has a tenth of that."""
LONGEST = 200
"""Characters of a program's name or version."""


class VnncompTool:
    """Any tool of VNN-COMP. Whether it is sound is the tool's affair; ctkd replays its witnesses."""

    Options = VnncompToolOptions

    def __init__(self, options: VnncompToolOptions) -> None:
        self.options = options
        self.witness_digits = options.witness_digits
        self.formats = (options.vnnlib,) if options.scripts is not None else ("2.0",)

    def check(self) -> dict[str, str]:
        return {**self._way().check(), **({"tool": self.options.tool} if self.options.tool else {})}

    def verify(self, query: Query) -> Answer:
        return self._way().verify(query)

    def _way(self) -> _Way:
        if (self.options.scripts is not None) == bool(self.options.program):
            raise BadInput(CHOOSE if not self.options.program else f"both are set; {CHOOSE}")
        return _Scripts(self.options) if self.options.scripts is not None else _Program(self.options)


class _Way(Protocol):
    def check(self) -> dict[str, str]: ...

    def verify(self, query: Query) -> Answer: ...


class _Scripts:
    def __init__(self, options: VnncompToolOptions) -> None:
        assert options.scripts is not None
        self.options, self.folder = options, options.scripts

    def check(self) -> dict[str, str]:
        if shutil.which("bash") is None:
            raise BadInput("the program 'bash', which runs a tool's scripts, is not installed: install it")
        digest = hashlib.sha256()
        for name in (PREPARE, RUN):
            try:
                digest.update((self.folder / name).read_bytes())
            except OSError as error:
                raise BadInput(
                    f"{self.folder / name} cannot be read: {error.strerror}; vnncomp-tool.scripts is the folder with a "
                    "tool's three scripts; run its install_tool.sh v1 first"
                ) from None
        return {"scripts": digest.hexdigest()[:12]}

    def verify(self, query: Query) -> Answer:
        began = time.monotonic()
        files = [str(query.model.absolute()), str(query.specification.absolute())]
        instance = ["v1", self.options.category, *files]
        limit = min(query.timeout, self.options.prepare_seconds)
        done = run_program(["bash", self.folder / PREPARE, *instance], timeout=limit, folder=query.scratch)
        log = done.log
        if done.timed_out:
            if limit == query.timeout:
                return Answer("timeout", log=log)
            return Answer("error", message=f"{PREPARE} ran for more than {limit:g} s", log=log)
        if done.code != 0:
            return Answer("error", message=_ended(PREPARE, done), log=log)
        left = query.timeout - (time.monotonic() - began)
        if left <= 0:
            return Answer("timeout", log=log)
        results = query.scratch / "results.txt"
        command = ["bash", str(self.folder / RUN), *instance, str(results), str(math.ceil(left))]
        done = run_program(command, timeout=left, folder=query.scratch)
        log += done.log
        if done.timed_out:
            return Answer("timeout", seconds=done.seconds, log=log)
        if done.code != 0:
            return Answer("error", seconds=done.seconds, message=_ended(RUN, done), log=log)
        if not results.is_file():
            return Answer("error", seconds=done.seconds, message=f"{RUN} wrote no results file", log=log)
        try:
            with results.open("rb") as file:
                text = file.read(LARGEST).decode(errors="replace")
        except OSError as error:
            message = f"the results file of {RUN} cannot be read: {error.strerror}"
            return Answer("error", seconds=done.seconds, message=message, log=log)
        return replace(read_results(text, log), seconds=done.seconds)


class _Program:
    def __init__(self, options: VnncompToolOptions) -> None:
        self.options = options

    def check(self) -> dict[str, str]:
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for option in ("--name", "--version"):
                try:
                    done = run_program([*self._command(), option], timeout=ASKING, folder=Path(folder))
                except RunFailed as error:
                    raise BadInput(f"{error}; {CHOOSE}") from None
                line = done.output.partition("\n")[0].strip()
                if done.code != 0 or not line.isprintable() or not 0 < len(line) <= LONGEST:
                    ended = _ended(f"{self.options.program[0]} {option}", done)
                    raise BadInput(f"{ended}; by VNN-LIB 2.0 it prints one line that says it")
                found[option] = line
        return {found["--name"]: found["--version"]}

    def _command(self) -> list[str]:
        """Raises: BadInput if there is no such program."""
        name = self.options.program[0]
        found = shutil.which(name) or shutil.which(Path(sys.executable).parent / name)
        if found is None:
            raise BadInput(f"the program {name!r} is not installed, or cannot be run; {CHOOSE}")
        return [str(Path(found).absolute()), *self.options.program[1:]]

    def verify(self, query: Query) -> Answer:
        network = NETWORK.search(
            re.sub(r";[^\n]*", "", query.specification.read_text(encoding="utf-8", errors="replace"))
        )
        if network is None:
            return Answer("error", message="the specification declares no network; the tool reads VNN-LIB 2.0")
        command = [*self._command(), "verify", str(query.specification.absolute())]
        command += ["--network", f"{network[1]}={query.model.absolute()}", "--timeout", str(math.ceil(query.timeout))]
        done = run_program(command, timeout=query.timeout, folder=query.scratch)
        if done.timed_out:
            return Answer("timeout", seconds=done.seconds, log=done.log)
        if done.code != 0:
            return Answer("error", seconds=done.seconds, message=_ended(self.options.program[0], done), log=done.log)
        return replace(read_results(done.output, done.log), seconds=done.seconds)


def _ended(name: str, done: Finished) -> str:
    how = f"ran for more than {done.seconds:.0f} s" if done.timed_out else f"ended with {done.ending}"
    return f"{name} {how}" + (f": {_plain(done.last_line)}" if done.last_line else "")


def _plain(line: str) -> str:
    """What a terminal can show of the beginning of a line."""
    return "".join(each if each.isprintable() else "?" for each in line[:200])
