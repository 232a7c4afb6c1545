# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of NeuralSAT. Light: no numpy."""

from __future__ import annotations

from typing import Literal

from ctkd.options import AbsolutePath, Options


class NeuralSatOptions(Options):
    """Which environment runs, and how."""

    python: AbsolutePath | None = None
    """The Python of the environment that NeuralSAT is installed in; it must not be ctkd's own."""
    path: tuple[AbsolutePath, ...] = ()
    """Folders before that environment's own packages, such as one with a stand-in for torchvision."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it computes. Without a GPU it takes the CPU by itself, and does not say so."""
    arguments: tuple[str, ...] = ()
    """Further arguments, such as ``["--batch", "500"]``."""
