# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every form that is read: what the network computes is what onnxruntime computes, in each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from ctkd.export.onnx_writer import to_onnx
from ctkd.importing import import_model
from ctkd.propagate.ops import AvgPool, Conv, Linear, Reshape, Scale
from ctkd.testing.nets import NETS, network

from .models import model, node, through, weights, written

C, K = {"w": weights(2, 1, 3, 3), "b": weights(2)}, {"kernel_shape": [3, 3]}


def conv(
    inputs: str = "x w b", size: int = 8, constants: dict[str, object] | None = None, **more: object
) -> onnx.ModelProto:
    return through([node("Conv", inputs, "h", **more)], constants or C, size)


def constant(name: str, value: object) -> onnx.NodeProto:
    return node("Constant", "", name, value=numpy_helper.from_array(np.asarray(value)))


def unnamed(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Constant nodes have no inputs."""
    for one in nodes:
        if one.op_type == "Constant":
            del one.input[:]
    return list(nodes)


FLAT = {"shape": ("batch", 16)}
V = np.array([0.5, 1.5], np.float32)
NORM = {"s": V, "o": -V, "m": V / 3, "v": V * 2}
FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": lambda: conv(**K),
    "conv without kernel_shape": conv,
    "conv without bias": lambda: conv("x w"),
    "conv with stride and pads": lambda: conv(size=8, strides=[2, 2], pads=[1, 1, 1, 1], **K),
    "conv with uneven pads": lambda: conv(size=18, pads=[1, 0, 0, 1], **K) and conv(size=18, pads=[0, 0, 1, 1]),
    "conv with dilation": lambda: conv(size=8, dilations=[2, 2], pads=[1, 1, 1, 1]),
    "conv with dilation and uneven pads": lambda: conv(size=4, dilations=[2, 2], pads=[0, 0, 2, 2], strides=[1, 2]),
    "conv same upper": lambda: conv(size=32, auto_pad="SAME_UPPER"),
    "conv same lower, strided": lambda: conv(size=8, auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv valid": lambda: conv(size=8, auto_pad="VALID"),
    "conv in groups": lambda: through(
        [node("Conv", "x w b", "a"), node("Conv", "a w2", "h", group=2)], {**C, "w2": weights(4, 1, 2, 2)}, 4
    ),
    "pad and conv": lambda: through(
        [node("Pad", "x p", "a"), node("Conv", "a w b", "h")], {**C, "p": np.array([0, 0, 1, 2, 0, 0, 1, 1])}, 2 * 4 * 5
    ),
    "two pads": lambda: through(
        [node("Pad", "x p", "c"), node("Pad", "c p", "a"), node("Conv", "a w b", "h", pads=[1, 1, 1, 1])],
        {**C, "p": np.array([0, 0, 1, 0, 0, 0, 1, 0])},
        2 * 8 * 4,
    ),
    "gemm, untransposed, one bias": lambda: model(
        [node("Flatten", "x", "f"), node("Gemm", "f w b", "y")], {"w": weights(16, 3), "b": weights(1)}
    ),
    "gemm without bias": lambda: model([node("Flatten", "x", "f"), node("Gemm", "f w", "y")], {"w": weights(16, 3)}),
    "matmul and add": lambda: model(
        [node("Flatten", "x", "f"), node("MatMul", "f w", "m"), node("Add", "b m", "y")],
        {"w": weights(16, 3), "b": weights(3)},
    ),
    "batch norm of images": lambda: through(
        [node("Conv", "x w b", "a"), node("BatchNormalization", "a s o m v", "h", epsilon=1e-3)], {**C, **NORM}, 8
    ),
    "batch norm of features, opset 15": lambda: model(
        [
            node("Flatten", "x", "f"),
            node("MatMul", "f w", "m"),
            node("BatchNormalization", "m s o m_ v", "y", training_mode=0),
        ],
        {"w": weights(16, 3), **{k: np.array([0.5, 1, 2], np.float32) for k in ("s", "o", "m_", "v")}},
        opset=15,
    ),
    "activations": lambda: through(
        [
            node("Relu", "x", "a"),
            node("Tanh", "a", "b_"),
            node("Sigmoid", "b_", "c"),
            node("Sub", "c k", "d"),
            node("LeakyRelu", "d", "h", alpha=0.2),
        ],
        {"k": np.float32(0.6)},
        16,
    ),
    "max pool": lambda: through([node("MaxPool", "x", "h", kernel_shape=[2, 2], strides=[2, 2])], {}, 4),
    "max pool as another exporter writes it": lambda: through(
        [
            node(
                "MaxPool",
                "x",
                "h",
                kernel_shape=[3, 3],
                strides=[1, 1],
                pads=[1, 1, 1, 1],
                ceil_mode=0,
                dilations=[1, 1],
                storage_order=0,
                auto_pad="NOTSET",
            )
        ],
        {},
        16,
    ),
    "max pool with a needless ceil_mode": lambda: through(
        [node("MaxPool", "x", "h", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}, 4
    ),
    "average pool": lambda: through(
        [node("AveragePool", "x", "h", kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)], {}, 25
    ),
    "global average pool and squeeze": lambda: through(
        [node("Conv", "x w b", "a"), node("GlobalAveragePool", "a", "g"), node("Squeeze", "g axes", "h")],
        {**C, "axes": np.array([2, -1])},
        2,
    ),
    "reduce mean": lambda: through(
        [node("Conv", "x w b", "a"), node("ReduceMean", "a", "h", axes=[-1, -2], keepdims=0)], C, 2
    ),
    "reduce mean, opset 18": lambda: through(
        [node("Conv", "x w b", "a"), node("ReduceMean", "a axes", "h")], {**C, "axes": np.array([2, 3])}, 2, opset=18
    ),
    "residual": lambda: through(
        [node("Conv", "x w b", "a"), node("Relu", "a", "r"), node("Sub", "r a", "s_"), node("Add", "s_ a", "h")], C, 8
    ),
    "normalisation": lambda: through(
        [node("Sub", "x m", "a"), node("Div", "a d", "h")],
        {"m": np.full((1, 1, 1, 1), 0.13, np.float32), "d": np.array([[[0.31]]], np.float32)},
        16,
    ),
    "arithmetic": lambda: through(
        [
            node("Mul", "k x", "a"),
            node("Neg", "a", "b_"),
            node("Sub", "k b_", "c"),
            node("Add", "pixels c", "d"),
            node("Div", "d two", "h"),
        ],
        {"k": np.float32(0.3), "pixels": weights(4, 4), "two": np.float32(2)},
        16,
    ),
    "constant nodes": lambda: through(unnamed(constant("w", C["w"]), node("Conv", "x w", "h")), {}, 8),
    "scalar constants": lambda: through(
        unnamed(node("Constant", "", "k", value_float=0.5), node("Mul", "x k", "h")), {}, 16
    ),
    "identity and dropout": lambda: through(
        [node("Identity", "x", "a"), node("Dropout", "a", "b_"), node("Cast", "b_", "h", to=TensorProto.FLOAT)], {}, 16
    ),
    "dropout, opset 11": lambda: through([node("Dropout", "x", "h", ratio=0.3)], {}, 16, opset=11),
    "weights of an identity": lambda: through([node("Identity", "w", "u"), node("Conv", "x u", "h")], C, 8),
    "fixed batch": lambda: through([node("Relu", "x", "h")], {}, 16, shape=(1, 1, 4, 4), out=(1, 3)),
    "batch without a name": lambda: through([node("Relu", "x", "h")], {}, 16, shape=(None, 1, 4, 4), out=(None, 3)),
    "flat input": lambda: through(
        [node("Reshape", "x to", "a"), node("Conv", "a w b", "h")], {**C, "to": np.array([-1, 1, 4, 4])}, 8, **FLAT
    ),
    "flat input, fixed": lambda: through(
        [node("Reshape", "x to", "a"), node("Conv", "a w b", "h")],
        {**C, "to": np.array([1, 1, 4, 4])},
        8,
        shape=(1, 16),
        out=(1, 3),
    ),
    "reshape 0 -1": lambda: through([node("Reshape", "x to", "h")], {"to": np.array([0, -1])}, 16),
    "reshape -1 16": lambda: through([node("Reshape", "x to", "h")], {"to": np.array([-1, 16])}, 16),
    "reshape 1 -1": lambda: through(
        [node("Reshape", "x to", "h")], {"to": np.array([1, -1])}, 16, shape=(1, 1, 4, 4), out=(1, 3)
    ),
    "reshape allowzero": lambda: through(
        [node("Reshape", "x to", "h", allowzero=1)], {"to": np.array([-1, 16])}, 16, opset=18
    ),
    "flatten with a negative axis": lambda: through([node("Flatten", "x", "h", axis=-3)], {}, 16),
    "a shape chain": lambda: through(
        unnamed(
            node("Shape", "x", "s"),
            constant("zero", np.array(0)),
            node("Gather", "s zero", "n", axis=0),
            node("Unsqueeze", "n axes", "n1"),
            node("Concat", "n1 rest", "to", axis=0),
            node("Reshape", "x to", "h"),
        ),
        {"axes": np.array([0]), "rest": np.array([-1])},
        16,
    ),
    "sizes by arithmetic": lambda: through(
        [
            node("Shape", "x", "s"),
            node("Slice", "s one four", "dims"),
            node("Slice", "dims one two", "rows"),
            node("Mul", "rows four_", "size"),
            node("Concat", "minus size", "to", axis=0),
            node("Reshape", "x to", "h"),
        ],
        {k: np.array([v]) for k, v in (("one", 1), ("two", 2), ("four", 4), ("four_", 4), ("minus", -1))},
        16,
    ),
    "transposed dimensions of size 1": lambda: through(
        [node("Transpose", "x", "a", perm=[0, 3, 1, 2]), node("Conv", "a w b", "h")], C, 8, shape=("n", 4, 4, 1)
    ),
    "unsqueezed": lambda: through(
        [node("Unsqueeze", "x axes", "a"), node("Conv", "a w b", "h")],
        {**C, "axes": np.array([1])},
        8,
        shape=("n", 4, 4),
    ),
    "nodes that nothing reads": lambda: through([node("Relu", "x", "h"), node("Tanh", "x", "unused")], {}, 16),
    "opset 9": lambda: conv(**K),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_read_as_onnxruntime_runs_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = import_model(written(tmp_path / "model.onnx", FORMS[name]()))
    assert found.difference < 5e-5
    assert found.network.classes == 3
    assert found.batch == (1 if "fixed" in name or name == "reshape 1 -1" else None)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("trained", [False, True])
def test_our_own_exports_come_back_bit_for_bit(name: str, trained: bool, tmp_path: Path) -> None:
    net = network(name, trained=trained, dtype=torch.float32)
    found = import_model(written(tmp_path / "model.onnx", to_onnx(net)))
    assert found.network.sha256() == net.sha256()


def test_a_bias_behind_a_product_is_one_layer_unless_others_read_the_product(tmp_path: Path) -> None:
    alone = import_model(written(tmp_path / "a.onnx", FORMS["matmul and add"]()))
    assert [type(n.op) for n in alone.network.nodes[1:]] == [Reshape, Linear]
    assert alone.network.head is not None
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "m"), node("Add", "m b", "s"), node("Add", "s m", "y")]
    both = import_model(written(tmp_path / "b.onnx", model(nodes, {"w": weights(16, 3), "b": weights(3)})))
    assert Scale in [type(n.op) for n in both.network.nodes[1:]]


def test_uneven_pads_become_rows_of_zeros(tmp_path: Path) -> None:
    found = import_model(written(tmp_path / "a.onnx", conv(size=18, pads=[0, 0, 1, 1], **K)))
    op = found.network.nodes[1].op
    assert isinstance(op, Conv)
    assert (tuple(op.weight.shape[2:]), op.padding) == ((4, 4), (1, 1))
    assert not op.weight[:, :, 0].any()
    assert not op.weight[:, :, :, 0].any()


def test_constants_that_would_be_rounded_stay_float64(tmp_path: Path) -> None:
    """A certificate speaks about the model in the file, not about one with rounded constants."""
    found = import_model(written(tmp_path / "a.onnx", FORMS["batch norm of images"]()))
    (scale,) = [n.op for n in found.network.nodes if isinstance(n.op, Scale)]
    assert scale.scale.dtype == torch.float64
    exact = V.astype(np.float64) / np.sqrt(V.astype(np.float64) * 2 + float(np.float32(1e-3)))
    assert np.abs(scale.scale.flatten().numpy() - exact).max() < 1e-15


def test_a_divisor_is_inverted_in_float64(tmp_path: Path) -> None:
    found = import_model(written(tmp_path / "a.onnx", FORMS["normalisation"]()))
    _, scale = [n.op for n in found.network.nodes if isinstance(n.op, Scale)]
    assert scale.scale.item() == 1 / float(np.float32(0.31))
    halved = import_model(written(tmp_path / "b.onnx", FORMS["arithmetic"]()))
    last = [n.op for n in halved.network.nodes if isinstance(n.op, Scale)][-1]
    assert (last.scale.dtype, last.scale.item()) == (torch.float32, 0.5)


def test_a_global_average_pool_has_the_exact_mean(tmp_path: Path) -> None:
    found = import_model(written(tmp_path / "a.onnx", FORMS["reduce mean"]()))
    assert [n.op.kernel for n in found.network.nodes if isinstance(n.op, AvgPool)] == [(2, 2)]


def test_data_files_in_the_folder_are_read(tmp_path: Path) -> None:
    built = conv(**K)
    onnx.save_model(built, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    assert (tmp_path / "m.onnx.data").exists()
    found = import_model(tmp_path / "m.onnx")
    whole = import_model(written(tmp_path / "whole.onnx", built))
    assert found.network.sha256() == whole.network.sha256()
