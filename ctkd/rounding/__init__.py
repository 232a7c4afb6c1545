# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What floating point does to margins: bounds that hold before anything is computed."""

from ctkd.rounding.formats import FLOAT32, FLOAT64, Format
from ctkd.rounding.margins import Rounding, rounding

__all__ = ["FLOAT32", "FLOAT64", "Format", "Rounding", "rounding"]
