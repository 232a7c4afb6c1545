# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of alpha-beta-CROWN. Light: no numpy."""

from __future__ import annotations

from typing import Literal

from ctkd.options import AbsolutePath, Count, Options


class AbCrownOptions(Options):
    """Which checkout and environment run, and how."""

    root: AbsolutePath | None = None
    """The checkout: the folder that holds `complete_verifier/abcrown.py`."""
    python: AbsolutePath | None = None
    """The Python of the environment that its packages are installed in."""
    path: tuple[AbsolutePath, ...] = ()
    """Folders before that environment's own packages, such as one with stand-ins for what cannot be installed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it computes."""
    mode: Literal["single", "csv"] = "single"
    """How it is asked: by one network and one specification, or by an `instances.csv`, here of one line. Its answers
    are the same; in csv mode it tells what it gave up from what took too long."""
    batch_size: Count | None = None
    """Subproblems that it bounds at a time (its `solver.batch_size`): less needs less memory. None: its own choice."""
    config: AbsolutePath | None = None
    """A YAML file with further settings of its own, such as one of its `exp_configs`. What says which question is asked
    or weakens the answer is not taken from it: its sections `data`, `specification` and `debug`, its paths, time limits
    and threshold, its optimisation of ONNX files and its loader of them."""
