# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a trained module becomes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ctkd.propagate import Graph, Moments, Network, trace
from ctkd.teaching import Teacher


def feature_widths(student: Network, teacher: Teacher) -> tuple[int | None, int | None]:
    """The numbers of features of student and teacher, None where there are none."""
    tap, shape = student.features_node, teacher.feature_shape
    of_student = None if tap is None else math.prod(student.nodes[tap].shape)
    return of_student, None if shape is None else math.prod(shape)


@torch.no_grad()
def population_statistics(graph: Graph, batches: Iterable[Tensor]) -> None:
    """Running statistics become the equal-weight mean of the statistics of these batches."""
    totals: dict[int, list[Moments]] = {}
    for x in batches:
        for node, moments in graph.clean_pass(x).statistics.items():
            totals.setdefault(node, []).append(moments)
    for node, found in totals.items():
        norm = graph.norms[node].module
        assert norm.running_mean is not None
        assert norm.running_var is not None
        unbiased = [m.variance * (m.size / max(1, m.size - 1)) for m in found]
        norm.running_mean.copy_(torch.stack([m.mean for m in found]).mean(0))
        norm.running_var.copy_(torch.stack(unbiased).mean(0))


@torch.no_grad()
def finalise(module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """The one network that is attacked, certified, exported and hashed: folded in float64, stored in float32."""
    exact = copy.deepcopy(module).to("cpu").double().eval()
    return trace(exact, input_shape, functions=True).bind().detach().to(torch.float32)
