# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher trained by HDGE (Liu and Abbeel 2020, arXiv 2007.09070)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.api import TrainOptions
from ctkd_hdge.options import HDGEOptions, HDGETeacherOptions

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network

ANY_RADIUS = 1 / 255
"""Bound methods take part once the radius is above 0; this one's loss does not depend on it."""


class HDGETeacher:
    """The student's architecture, trained by the bound method ``hdge`` from the first step on."""

    Options = HDGETeacherOptions
    trains = True
    features = True

    def __init__(self, options: HDGETeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        options = self.options
        train = TrainOptions(
            eps=context.eps or ANY_RADIUS,
            epochs=options.epochs,
            warmup=0.0,
            ramp=0.0,
            batch_size=options.batch_size,
            lr=options.lr,
            milestones=tuple(part * options.epochs for part in options.milestones),
            lr_decay=options.lr_decay,
            shi_weight=0.0,
            init="default",
            seed=context.seed,
            threads=context.threads,
            device=context.device,
        )
        own = {name: getattr(options, name) for name in HDGEOptions.model_fields}
        return context.fit(train, {"name": "pgd"}, {"name": "hdge", **own}, options.model)
