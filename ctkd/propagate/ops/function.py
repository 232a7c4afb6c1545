# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Operators that ctkd evaluates, stores and hashes, and for which its own engine has no bounds.

They are for other propagation backends, see ``functions`` of ``ctkd.propagate.trace``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.errors import BadInput
from ctkd.propagate.ops.base import Op


def _softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` that never decreases: PyTorch's own jumps down by 2e-9 where it takes x instead, at 20."""
    return F.softplus(x, threshold=50)


# One row per function. A stored network names its functions, so nothing else may be called on its behalf.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "exp": torch.exp,
    "mul": torch.mul,
    "silu": F.silu,
    "softplus": _softplus,
    "square": torch.square,
}


@dataclass(frozen=True, eq=False)
class Function(Op):
    """A function by its name in ``FUNCTIONS``, of one or more branches of equal shape."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in FUNCTIONS:
            raise ValueError(f"function {self.name!r} is not known; accepted: {', '.join(FUNCTIONS)}")

    def __call__(self, *inputs: Tensor) -> Tensor:
        return FUNCTIONS[self.name](*inputs)


def refuse_function(op: Op | None, path: str) -> None:
    """Raises: BadInput if ``op``, of the layer ``path``, has no bounds here."""
    if isinstance(op, Function):
        raise BadInput(f"layer {path!r}: ctkd's own engine has no bounds of {op.name}; use those of another backend")
