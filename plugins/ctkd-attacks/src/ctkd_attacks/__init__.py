# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Attacks of the AutoAttack family, by their authors' code, for ctkd."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

AUTOATTACK = Paper(
    ("Croce, Francesco", "Hein, Matthias"),
    "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    2020,
    "International Conference on Machine Learning (ICML)",
    arxiv="2003.01690",
)
FAB = Paper(
    ("Croce, Francesco", "Hein, Matthias"),
    "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
    2020,
    "International Conference on Machine Learning (ICML)",
    arxiv="1907.02044",
)
SQUARE = Paper(
    ("Andriushchenko, Maksym", "Croce, Francesco", "Flammarion, Nicolas", "Hein, Matthias"),
    "Square Attack: A Query-efficient Black-box Adversarial Attack via Random Search",
    2020,
    "European Conference on Computer Vision (ECCV)",
    arxiv="1912.00049",
)


@hookimpl
def ctkd_attacks() -> list[Registration]:
    return [
        Registration(
            "autoattack",
            "ctkd_attacks.attacks:AutoAttack",
            "strong, for evaluation: APGD on two losses, FAB and Square, one after another, nothing to tune",
            (AUTOATTACK, FAB, SQUARE),
            options="ctkd_attacks.options:AutoAttackOptions",
        ),
        Registration(
            "apgd",
            "ctkd_attacks.attacks:APGD",
            "projected gradient descent that chooses its own step sizes (Auto-PGD)",
            (AUTOATTACK,),
            options="ctkd_attacks.options:APGDOptions",
        ),
    ]
