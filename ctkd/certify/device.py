# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Where certification computes."""

from __future__ import annotations

from ctkd.config import RunConfig
from ctkd.errors import BadInput
from ctkd.machine import certifying_problem


def certifying_device(config: RunConfig) -> str:
    """Where certification computes: as configured; else where training did if this machine has that, or on the CPU.

    Raises: BadInput if it cannot compute where it is configured to.
    """
    named = config.certify.device
    if named is None:
        return "cpu" if certifying_problem(config.train.device) else config.train.device
    if (problem := certifying_problem(named)) is not None:
        raise BadInput(f"certify.device={named}: {problem}")
    return named
