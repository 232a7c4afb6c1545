# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Reads specifications of any tool: VNN-LIB 1.0, and 2.0 through the ``vnnlib`` package.

``plain_text`` writes one anew in the form that verifiers agree on, and ``parse_witness`` reads a tool's witness.
``ctkd.export.vnnlib`` writes specifications of samples, and reads back its own form alone.
"""

from ctkd.vnnlib.plain import NotPlainError, plain_text
from ctkd.vnnlib.read import parse_specification, read_specification
from ctkd.vnnlib.specification import Disjunct, Specification
from ctkd.vnnlib.witness import parse_witness

__all__ = [
    "Disjunct",
    "NotPlainError",
    "Specification",
    "parse_specification",
    "parse_witness",
    "plain_text",
    "read_specification",
]
