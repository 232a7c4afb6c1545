# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""HDGE for ctkd: a classifier that is trained as an energy model, too, by a contrastive loss on its logits."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

SOURCE = Paper(
    ("Liu, Hao", "Abbeel, Pieter"),
    "Hybrid Discriminative-Generative Training via Contrastive Learning",
    2020,
    arxiv="2007.09070",
)


@hookimpl
def ctkd_bound_methods() -> list[Registration]:
    return [
        Registration(
            "hdge",
            "ctkd_hdge.method:HDGE",
            "cross entropy and a contrastive estimate of -log p(x | y) at the clean image; mainly trains teachers",
            (SOURCE,),
            options="ctkd_hdge.options:HDGEOptions",
        )
    ]


@hookimpl
def ctkd_teachers() -> list[Registration]:
    return [
        Registration(
            "hdge",
            "ctkd_hdge.teacher:HDGETeacher",
            "trained on clean images as classifier and energy model at once, no attack",
            (SOURCE,),
            options="ctkd_hdge.options:HDGETeacherOptions",
        )
    ]
