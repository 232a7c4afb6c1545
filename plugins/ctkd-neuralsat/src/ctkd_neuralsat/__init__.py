# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""NeuralSAT as a verifier for ctkd."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

NEURALSAT = Paper(
    ("Duong, Hai", "Nguyen, ThanhVu", "Dwyer, Matthew"),
    "A DPLL(T) Framework for Verifying Deep Neural Networks",
    2023,
    "arXiv preprint",
    arxiv="2307.10266",
)


@hookimpl
def ctkd_verifiers() -> list[Registration]:
    return [
        Registration(
            "neuralsat",
            "ctkd_neuralsat.verifier:NeuralSat",
            "NeuralSAT in an environment of its own: complete, for ReLU networks, on CPU or GPU",
            (NEURALSAT,),
            options="ctkd_neuralsat.options:NeuralSatOptions",
        )
    ]
