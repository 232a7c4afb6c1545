# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a trained module becomes."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from ctkd.propagate import Network, trace
from ctkd.teaching import Teacher


def feature_widths(student: Network, teacher: Teacher) -> tuple[int | None, int | None]:
    """The numbers of features of student and teacher, None where there are none."""
    tap, shape = student.features_node, teacher.feature_shape
    of_student = None if tap is None else math.prod(student.nodes[tap].shape)
    return of_student, None if shape is None else math.prod(shape)


@torch.no_grad()
def finalise(module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """The one network that is attacked, certified, exported and hashed: folded in float64, stored in float32."""
    exact = copy.deepcopy(module).to("cpu").double().eval()
    return trace(exact, input_shape, functions=True).bind().detach().to(torch.float32)
