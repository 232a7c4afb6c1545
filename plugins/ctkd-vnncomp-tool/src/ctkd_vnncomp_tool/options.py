# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of competition tools. Light: no numpy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctkd.options import AbsolutePath, Count, Options, Positive


class VnncompToolOptions(Options):
    """Which tool runs: its folder of scripts, or its program."""

    scripts: AbsolutePath | None = None
    """A folder with the tool's `prepare_instance.sh` and `run_instance.sh`."""
    program: tuple[str, ...] = ()
    """The tool as a program with the command line of VNN-LIB 2.0: its name or path, and what stands before `verify`.
    Files among that need absolute paths: a tool runs in a folder of its own."""
    tool: Annotated[str, Field(pattern=r"^[\x20-\x7e]*$")] = ""
    """The tool's name and version, stored with every answer: neither scripts nor standard have a way to ask."""
    category: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "ctkd"
    """The benchmark's name, the second argument of the scripts; some tools choose their settings by it."""
    vnnlib: Literal["1.0", "2.0"] = "1.0"
    """Version of VNN-LIB that the scripts are given; a program gets 2.0."""
    witness_digits: Count | None = None
    """Decimals to which the tool prints witnesses, if not in full: ctkd then allows for the rounding."""
    prepare_seconds: Positive = 600.0
    """Limit for `prepare_instance.sh`, as in the competition. What it takes is part of the timeout here."""
