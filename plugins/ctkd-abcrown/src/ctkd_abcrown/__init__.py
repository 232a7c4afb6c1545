# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""alpha-beta-CROWN as a verifier for ctkd."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

ALPHA_CROWN = Paper(
    (
        "Xu, Kaidi",
        "Zhang, Huan",
        "Wang, Shiqi",
        "Wang, Yihan",
        "Jana, Suman",
        "Lin, Xue",
        "Hsieh, Cho-Jui",
    ),
    "Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively Parallel Incomplete "
    "Verifiers",
    2021,
    "International Conference on Learning Representations",
    arxiv="2011.13824",
)
BETA_CROWN = Paper(
    (
        "Wang, Shiqi",
        "Zhang, Huan",
        "Xu, Kaidi",
        "Lin, Xue",
        "Jana, Suman",
        "Hsieh, Cho-Jui",
        "Kolter, J. Zico",
    ),
    "Beta-CROWN: Efficient Bound Propagation with Per-neuron Split Constraints for Complete and Incomplete Neural "
    "Network Verification",
    2021,
    "Advances in Neural Information Processing Systems",
    arxiv="2103.06624",
)


@hookimpl
def ctkd_verifiers() -> list[Registration]:
    return [
        Registration(
            "abcrown",
            "ctkd_abcrown.verifier:AbCrown",
            "a checkout of alpha-beta-CROWN with a Python of its own: complete, on CPU or GPU",
            (ALPHA_CROWN, BETA_CROWN),
            options="ctkd_abcrown.options:AbCrownOptions",
        )
    ]
