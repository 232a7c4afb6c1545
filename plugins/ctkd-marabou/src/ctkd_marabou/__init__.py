# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Marabou as a verifier for ctkd."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

MARABOU = Paper(
    (
        "Wu, Haoze",
        "Isac, Omri",
        "Zeljić, Aleksandar",
        "Tagomori, Teruhiro",
        "Daggitt, Matthew",
        "Kokke, Wen",
        "Refaeli, Idan",
        "Amir, Guy",
        "Julian, Kyle",
        "Bassan, Shahaf",
        "Huang, Pei",
        "Lahav, Ori",
        "Wu, Min",
        "Zhang, Min",
        "Komendantskaya, Ekaterina",
        "Katz, Guy",
        "Barrett, Clark",
    ),
    "Marabou 2.0: A Versatile Formal Analyzer of Neural Networks",
    2024,
    "International Conference on Computer Aided Verification (CAV)",
    arxiv="2401.14461",
)


@hookimpl
def ctkd_verifiers() -> list[Registration]:
    return [
        Registration(
            "marabou",
            "ctkd_marabou.verifier:Marabou",
            "the Marabou program: complete, for small ReLU networks",
            (MARABOU,),
            options="ctkd_marabou.options:MarabouOptions",
        )
    ]
