# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options. Light: no torch."""

from __future__ import annotations

from typing import Literal

from ctkd.options import Count, Options


class BackendOptions(Options):
    """How training bounds are computed."""

    intermediate: Literal["ibp", "crown"] = "ibp"
    """Bounds that the backward pass of CROWN-IBP starts from: the intervals of the step, or CROWN's, computed anew."""


class AlphaOptions(Options):
    """The optimisation of alpha-CROWN."""

    iterations: Count = 20
    """Steps; auto_LiRPA's default."""
