# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Reads specifications of any tool: VNN-LIB 1.0, and 2.0 through the ``vnnlib`` package.

``ctkd.export.vnnlib`` writes specifications, and reads back its own form alone.
"""

from ctkd.vnnlib.read import parse_specification, read_specification
from ctkd.vnnlib.specification import Disjunct, Specification

__all__ = ["Disjunct", "Specification", "parse_specification", "read_specification"]
