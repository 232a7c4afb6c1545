# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A step's bounds are freed with it. In a cycle of references they would pile up, step by step, until Python happens to
look for garbage: gigabytes of it, whose pages the system has to fill with zeros again and again."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.plugins import registry

from ..train.steps import BATCH, FULL, RAMP, make, one_step

BOUNDS = [e.name for e in registry().entries.values() if e.kind == "bound" and e.origin.startswith("ctkd ")]
OPTIONS = [(name, {}) for name in BOUNDS] + [
    ("crown-ibp", {"loss_fusion": True}),
    ("crown-ibp", {"beta_start": 0.5, "beta_end": 0.5}),
]


def teacher(x: Tensor) -> TeacherOutputs:
    return TeacherOutputs(logits=x.flatten(1)[:, :4], features=x.flatten(1)[:, :8])


@pytest.mark.parametrize("schedule", [RAMP, FULL], ids=["ramp", "full"])
@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{name}{'-' * bool(o)}{'-'.join(o)}" for name, o in OPTIONS]
)
def test_a_step_leaves_no_cycles(name: str, options: dict[str, Any], schedule: Any) -> None:
    bound, objective = make("bound", name, **options), make("distill", "features")
    one_step(bound, objective, teacher, schedule=schedule)  # whatever is made once
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        one_step(bound, objective, teacher, schedule=schedule)
        gc.collect()
        left = [tuple(x.shape) for x in gc.garbage if isinstance(x, Tensor) and x.shape[:1] == (BATCH,)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left, f"tensors in cycles: {left}"
