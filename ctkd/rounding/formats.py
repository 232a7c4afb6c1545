# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The standard model of floating-point arithmetic, as numbers.

Every operation returns ``exact * (1 + d) + t`` with ``|d| <= unit`` and ``|t| <= tiny``. A sum of products of n terms,
in any order and with or without fused multiply-add, then differs from the exact one by at most ``gamma(n)`` times the
sum of the terms' sizes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, Sections 2.2 and 3.1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """An arithmetic.

    Attributes:
        unit: unit roundoff; results are rounded to nearest.
        tiny: below this size a result may be replaced by zero, and so may an operand.
        largest: from here on a result may be infinite.
        s_shaped: how far a computed sigmoid or tanh may be from the true one, absolutely. An assumption about the
            runtime; the elementary operations are those of IEEE 754.
    """

    unit: float
    tiny: float
    largest: float
    s_shaped: float

    def gamma(self, n: int) -> float:
        """``n unit / (1 - n unit)``, rounded up; infinite where that means nothing."""
        return float(self.gammas(torch.tensor(n, dtype=torch.float64)))

    def gammas(self, n: Tensor) -> Tensor:
        """The same for whole numbers in float64."""
        product = n * self.unit
        return torch.where(product < 0.5, product / (1 - product) * (1 + 2**-50), torch.inf)


FLOAT32 = Format(unit=2.0**-24, tiny=2.0**-126, largest=2.0**127, s_shaped=2.0**-21)
FLOAT64 = Format(unit=2.0**-53, tiny=2.0**-1000, largest=2.0**1000, s_shaped=2.0**-50)
"""Its ``tiny`` and ``largest`` leave room for this module's own arithmetic, which is float64 too."""


def upward(value: Tensor, n: int) -> Tensor:
    """At least what ``value`` would be in real arithmetic: a result that is not negative, computed in float64 from
    sums of at most n terms that are not negative and a handful of further operations. NaN becomes infinity."""
    grown = value * (1 + 4 * (n + 32) * FLOAT64.unit)
    return torch.where(grown.isnan(), torch.inf, grown)
