# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Activations, sums of branches, and arithmetic with constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ctkd.importing.builder import Call, Ref, Refused, Value
from ctkd.propagate.ops import Activation, Add, LeakyRelu, Relu, Scale, Sigmoid, Tanh

ZERO, ONE, MINUS = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(-1.0)


def _activation(kind: type[Activation]) -> Callable[[Call], Ref]:
    return lambda call: call.add(kind(), call.ref().shape)


relu, sigmoid, tanh = _activation(Relu), _activation(Sigmoid), _activation(Tanh)


def leaky_relu(call: Call) -> Ref:
    slope = call.take("alpha", 0.01)
    if not 0 <= slope < 1:
        raise Refused(f"alpha={slope}; accepted: at least 0, less than 1")
    return call.add(LeakyRelu(torch.tensor(slope, dtype=torch.float32)), call.ref().shape)


def identity(call: Call) -> Value:
    value = call.inputs[0]
    assert value is not None
    return value


def dropout(call: Call) -> Value:
    """Nothing, in inference."""
    call.take("ratio")
    call.take("seed")
    if call.has(2) and call.array(2, "training_mode").any():
        raise Refused("training_mode is true; export the model for inference")
    return identity(call)


def cast(call: Call) -> Value:
    import onnx

    to = call.take("to")
    if to != onnx.TensorProto.FLOAT:
        raise Refused("casts to another type than float32; the whole network has to compute in float32")
    return call.ref()


def negative(call: Call) -> Ref:
    x = call.ref()
    return _scaled(call, x, MINUS, ZERO)


def add(call: Call) -> Ref:
    a, b = call.inputs[0], call.inputs[1]
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _sum(call, a, b)
    x, i = (call.ref(0), 1) if isinstance(a, Ref) else (call.ref(1), 0)
    return _plus(call, x, call.weight(i, "constant"))


def subtract(call: Call) -> Ref:
    a, b = call.inputs[0], call.inputs[1]
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _sum(call, a, _scaled(call, b, MINUS, ZERO))
    if isinstance(a, Ref):
        return _plus(call, a, -call.weight(1, "constant"))
    return _scaled(call, call.ref(1), MINUS, call.weight(0, "constant"))


def multiply(call: Call) -> Ref:
    a, b = call.inputs[0], call.inputs[1]
    if isinstance(a, Ref) and isinstance(b, Ref):
        raise Refused("multiplies two values that depend on the input; accepted: one of them a constant")
    x, i = (call.ref(0), 1) if isinstance(a, Ref) else (call.ref(1), 0)
    return _scaled(call, x, call.weight(i, "constant"), ZERO)


def divide(call: Call) -> Ref:
    """By a constant: times its inverse in float64."""
    if not isinstance(call.inputs[0], Ref) or isinstance(call.inputs[1], Ref):
        raise Refused("divides by a value that depends on the input; accepted: a value divided by a constant")
    divisor = call.weight(1, "divisor").double()
    inverse = 1 / divisor
    exact = bool((torch.frexp(divisor).mantissa.abs() == 0.5).all())  # powers of two
    return _scaled(call, call.ref(0), inverse.float() if exact else inverse, ZERO)


def _sum(call: Call, a: Ref, b: Ref) -> Ref:
    if a.shape != b.shape:
        raise Refused(f"adds branches of shapes {a.shape} and {b.shape}; accepted: equal shapes")
    return call.add(Add(), a.shape, a, b)


def _plus(call: Call, x: Ref, constant: Tensor) -> Ref:
    return _scaled(call, x, ONE, constant)


def _scaled(call: Call, x: Ref, scale: Tensor, shift: Tensor) -> Ref:
    return call.add(Scale(_fitted(x, scale), _fitted(x, shift)), x.shape, x)


def _fitted(x: Ref, constant: Tensor) -> Tensor:
    """A constant that broadcasts to x, with as many dimensions."""
    rank = len(x.shape) + 1
    full = constant.reshape(*[1] * (rank - constant.dim()), *constant.shape)
    if (
        full.dim() > rank
        or full.shape[0] != 1
        or any(a not in (1, b) for a, b in zip(full.shape[1:], x.shape, strict=True))
    ):
        wanted = ", ".join(map(str, x.shape))
        raise Refused(f"its constant of shape {tuple(constant.shape)} does not fit a value of shape (batch, {wanted})")
    return full


def shape_of(call: Call) -> Value:
    """A constant: shapes are known."""
    x = call.ref()
    sizes = np.array([call.builder.batch, *x.shape], np.int64)
    start, end = call.take("start", 0), call.take("end")
    return sizes[start:end]
