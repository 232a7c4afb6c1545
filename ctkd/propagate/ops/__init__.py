# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Operators of a bound network, one family a file."""

from ctkd.propagate.ops.base import Activation, Affine, Op, Relaxation
from ctkd.propagate.ops.conv import AvgPool, Conv
from ctkd.propagate.ops.elementwise import Add, Reshape, Scale
from ctkd.propagate.ops.linear import Linear
from ctkd.propagate.ops.relu import Relu

__all__ = [
    "Activation",
    "Add",
    "Affine",
    "AvgPool",
    "Conv",
    "Linear",
    "Op",
    "Relaxation",
    "Relu",
    "Reshape",
    "Scale",
]
