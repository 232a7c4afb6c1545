# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The command line with a bound method that raises in one of two processes."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from torch import Tensor

from ctkd import Registration, hookimpl, register
from ctkd.bounds.ibp import IBP
from ctkd.cli.main import run
from ctkd.hookspecs import INTERFACE

NAME = "failing_plugin"


class FailsInOne(IBP):
    """IBP up to the fifth step of process 1."""

    def combine(self, step: Any) -> Tensor:
        if step.schedule.step >= 5 and os.environ["RANK"] == "1":
            raise ValueError("only here")
        return super().combine(step)


def main() -> int:
    module = types.ModuleType(NAME)
    FailsInOne.__module__ = NAME
    module.CTKD_INTERFACE = INTERFACE  # type: ignore[attr-defined]
    module.FailsInOne = FailsInOne  # type: ignore[attr-defined]

    def ctkd_bound_methods() -> list[Registration]:
        return [Registration("fails-in-one", f"{NAME}:FailsInOne", "raises")]

    module.ctkd_bound_methods = hookimpl(ctkd_bound_methods)  # type: ignore[attr-defined]
    sys.modules[NAME] = module
    register(module, "a test")
    return run([*sys.argv[1:], "--bound", "fails-in-one"])


if __name__ == "__main__":
    sys.exit(main())
