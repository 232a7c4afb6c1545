# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training steps on a device that is not the CPU: a pretended one, since there is no GPU here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.plugins import registry

from ..pretended_device import DEVICE, pretended_device
from .steps import make, one_step


def teacher(x: Tensor) -> TeacherOutputs:
    features = 3 * x.flatten(1)[:, :8]
    return TeacherOutputs(features[:, :4], features)


def compare(bound: str, objective: str, *teachers: Any) -> None:
    def step(device: torch.device | str) -> Any:
        made = make("bound", bound), make("distill", objective)
        return one_step(*made, *teachers, device=device, shi_weight=0.5, l1=1e-5)

    here = step("cpu")
    with pretended_device() as device:
        there = step(device)
        assert there[0].total.device.type == DEVICE
        torch.testing.assert_close(there[0].total.detach().cpu(), here[0].total.detach())
        for found, expected in zip(there[1], here[1], strict=True):
            torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("bound", registry().names("bound"))
def test_every_bound_method_trains_as_on_the_cpu(bound: str) -> None:
    compare(bound, "none")


@pytest.mark.parametrize("objective", [name for name in registry().names("distill") if name != "none"])
def test_every_objective_trains_as_on_the_cpu(objective: str) -> None:
    compare("mtl-ibp", objective, teacher, teacher)
