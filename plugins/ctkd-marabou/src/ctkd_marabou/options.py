# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of Marabou. Light: no numpy."""

from __future__ import annotations

from ctkd.options import Options


class MarabouOptions(Options):
    """Which program runs, and how."""

    program: str = "Marabou"
    """The program: a path, or a name that is looked for beside the running Python and on PATH."""
    arguments: tuple[str, ...] = ()
    """Further arguments, such as ``["--snc", "--num-workers", "4"]``; `Marabou --help` lists them."""
