# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""auto_LiRPA for ctkd: a propagation backend and certification stages."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

LIRPA = Paper(
    (
        "Xu, Kaidi",
        "Shi, Zhouxing",
        "Zhang, Huan",
        "Wang, Yihan",
        "Chang, Kai-Wei",
        "Huang, Minlie",
        "Kailkhura, Bhavya",
        "Lin, Xue",
        "Hsieh, Cho-Jui",
    ),
    "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond",
    2020,
    "Advances in Neural Information Processing Systems 33",
    "2002.12920",
)
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
    "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete Verifiers",
    2021,
    "International Conference on Learning Representations",
    "2011.13824",
)


@hookimpl
def ctkd_propagation_backends() -> list[Registration]:
    return [
        Registration(
            "autolirpa",
            "ctkd_autolirpa.backend:AutoLirpa",
            "auto_LiRPA's intervals and backward passes, also of operators that ctkd's engine lacks",
            (LIRPA,),
            options="ctkd_autolirpa.options:BackendOptions",
        )
    ]


@hookimpl
def ctkd_certification_stages() -> list[Registration]:
    def stage(name: str, target: str, summary: str, *papers: Paper) -> Registration:
        return Registration(f"autolirpa-{name}", f"ctkd_autolirpa.stages:{target}", summary, (LIRPA, *papers))

    return [
        stage("ibp", "IBPStage", "interval bounds by auto_LiRPA"),
        stage("crown-ibp", "CrownIBPStage", "one backward pass on interval bounds by auto_LiRPA"),
        stage("crown", "CrownStage", "backward passes for every layer by auto_LiRPA"),
        stage("alpha-crown", "AlphaCrownStage", "CROWN with relaxations optimised for each sample", ALPHA_CROWN),
    ]
