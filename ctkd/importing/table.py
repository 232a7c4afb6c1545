# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which ONNX operators are read. A new one adds its row here."""

from __future__ import annotations

from collections.abc import Callable

from ctkd.importing import affine, elementwise, shapes
from ctkd.importing.builder import Call, Value

RULES: dict[str, Callable[[Call], Value]] = {
    "Add": elementwise.add,
    "AveragePool": affine.average_pool,
    "BatchNormalization": affine.batch_normalization,
    "Cast": elementwise.cast,
    "Conv": affine.conv,
    "Div": elementwise.divide,
    "Dropout": elementwise.dropout,
    "Flatten": shapes.flatten,
    "Gemm": affine.gemm,
    "GlobalAveragePool": affine.global_average_pool,
    "Identity": elementwise.identity,
    "LeakyRelu": elementwise.leaky_relu,
    "MatMul": affine.mat_mul,
    "MaxPool": affine.max_pool,
    "Mul": elementwise.multiply,
    "Neg": elementwise.negative,
    "Pad": shapes.pad,
    "ReduceMean": affine.reduce_mean,
    "Relu": elementwise.relu,
    "Reshape": shapes.reshape,
    "Shape": elementwise.shape_of,
    "Sigmoid": elementwise.sigmoid,
    "Squeeze": shapes.squeeze,
    "Sub": elementwise.subtract,
    "Tanh": elementwise.tanh,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
}
HINTS = {
    "Softmax": "certificates are about logits: remove the last Softmax, which changes no prediction",
    "LogSoftmax": "certificates are about logits: remove the last LogSoftmax, which changes no prediction",
    "QuantizeLinear": "only float32 networks can be bounded",
    "DequantizeLinear": "only float32 networks can be bounded",
    "If": "a network that branches cannot be bounded",
    "Loop": "a network that loops cannot be bounded",
}
