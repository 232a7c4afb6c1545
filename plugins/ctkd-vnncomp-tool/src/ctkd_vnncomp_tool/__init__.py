# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Any tool of the verification competition as a verifier for ctkd."""

from __future__ import annotations

from ctkd import Registration, hookimpl

CTKD_INTERFACE = 1


@hookimpl
def ctkd_verifiers() -> list[Registration]:
    return [
        Registration(
            "vnncomp-tool",
            "ctkd_vnncomp_tool.verifier:VnncompTool",
            "any tool with VNN-COMP's three scripts, or with the command line of VNN-LIB 2.0",
            options="ctkd_vnncomp_tool.options:VnncompToolOptions",
        )
    ]
