# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ClusTR for ctkd: a teacher whose features are trained to form clusters, and which answers by distances to them."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

SOURCE = Paper(
    (
        "Alfarra, Motasem",
        "Pérez, Juan C.",
        "Bibi, Adel",
        "Thabet, Ali",
        "Arbeláez, Pablo",
        "Ghanem, Bernard",
    ),
    "ClusTR: Clustering Training for Robustness",
    2020,
    arxiv="2006.07682",
)
MAGNET = Paper(
    ("Rippel, Oren", "Paluri, Manohar", "Dollar, Piotr", "Bourdev, Lubomir"),
    "Metric Learning with Adaptive Density Discrimination",
    2016,
    "International Conference on Learning Representations (ICLR)",
    arxiv="1511.05939",
)


@hookimpl
def ctkd_teachers() -> list[Registration]:
    return [
        Registration(
            "clustr",
            "ctkd_clustr.teacher:ClusTRTeacher",
            "features trained to form clusters (Magnet loss), classes by distances to them; without an attack",
            (SOURCE, MAGNET),
            options="ctkd_clustr.options:ClusTROptions",
        )
    ]
