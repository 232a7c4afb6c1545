# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Operators of a bound network, one family a file."""

from ctkd.propagate.ops.base import Activation, Affine, Nonlinear, Op
from ctkd.propagate.ops.conv import AvgPool, Conv
from ctkd.propagate.ops.elementwise import Add, Reshape, Scale
from ctkd.propagate.ops.function import Function
from ctkd.propagate.ops.leaky_relu import LeakyRelu
from ctkd.propagate.ops.linear import Linear
from ctkd.propagate.ops.max_pool import MaxPool, Selection
from ctkd.propagate.ops.relaxation import Lines, Relaxation
from ctkd.propagate.ops.relu import Relu
from ctkd.propagate.ops.s_shaped import Sigmoid, Tanh

__all__ = [
    "Activation",
    "Add",
    "Affine",
    "AvgPool",
    "Conv",
    "Function",
    "LeakyRelu",
    "Linear",
    "Lines",
    "MaxPool",
    "Nonlinear",
    "Op",
    "Relaxation",
    "Relu",
    "Reshape",
    "Scale",
    "Selection",
    "Sigmoid",
    "Tanh",
]
