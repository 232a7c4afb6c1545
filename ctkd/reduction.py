# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The sum over processes as a differentiable operation. Apart from ``ctkd.distributed``, which imports no torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ctkd.distributed import LOST
from ctkd.errors import RunFailed


class AllSum(torch.autograd.Function):
    """Sums over all processes, forward and backward; it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise RunFailed(LOST) from error
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found: Tensor = AllSum.apply(gradients[0])  # type: ignore[no-untyped-call]
        return found
