# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is not read: one line for each node, naming it, its operator and the reason; and files that are unsafe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctkd.errors import BadInput
from ctkd.importing import file as reader
from ctkd.importing import import_model
from ctkd.importing.table import RULES
from ctkd.propagate.ops import Relu, Tanh

from .models import model, node, through, weights, written

C = {"w": weights(2, 1, 3, 3), "b": weights(2)}
LIST = "accepted operators: Add, AveragePool, BatchNormalization, Cast, Constant, Conv"


def refusal(path: Path) -> list[str]:
    with pytest.raises(BadInput) as caught:
        import_model(path)
    return list(caught.value.messages)


def one(kind: str, inputs: str = "x", constants: dict[str, Any] | None = None, **attributes: Any) -> onnx.ModelProto:
    return through([node(kind, inputs, "h", **attributes)], constants or {}, 16)


NODES: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "unknown operator": (lambda: one("Elu"), "'elu-h' (Elu): no operator that is bounded here"),
    "softmax": (
        lambda: model(
            [node("Flatten", "x", "f"), node("Gemm", "f w", "g"), node("Softmax", "g", "y")], {"w": weights(16, 3)}
        ),
        "'softmax-y' (Softmax): certificates are about logits: remove the last Softmax",
    ),
    "concat": (lambda: one("Concat", "x x", axis=1), "'concat-h' (Concat): no operator"),
    "product of branches": (lambda: one("Mul", "x x"), "'mul-h' (Mul): multiplies two values that depend on the input"),
    "constant divided": (
        lambda: one("Div", "k x", {"k": np.float32(2)}),
        "'div-h' (Div): divides by a value that depends on the input",
    ),
    "broadcasting to more": (
        lambda: one("Add", "x k", {"k": weights(5, 1, 4, 4)}),
        "'add-h' (Add): its constant of shape (5, 1, 4, 4) does not fit",
    ),
    "branches of unequal shape": (
        lambda: through([node("MaxPool", "x", "p", kernel_shape=[4, 4]), node("Add", "x p", "h")], {}, 16),
        "'add-h' (Add): adds branches of shapes (1, 4, 4) and (1, 1, 1)",
    ),
    "float64 weights": (
        lambda: through([node("Add", "x k", "h")], {"k": np.float64(2)}, 16),
        "",  # the checker refuses that, unless types are not inferred
    ),
    "float16 constants": (
        lambda: one("Mul", "x k", {"k": np.float16(2)}),
        "its constant is float16; accepted: float32",
    ),
    "cast to float64": (lambda: one("Cast", to=TensorProto.DOUBLE), "'cast-h' (Cast): casts to another type"),
    "alpha of gemm": (
        lambda: model([node("Flatten", "x", "f"), node("Gemm", "f w", "y", alpha=0.5)], {"w": weights(16, 3)}),
        "'gemm-y' (Gemm): alpha=0.5; accepted: 1.0",
    ),
    "product of three dimensions": (
        lambda: through([node("MatMul", "x w", "h")], {"w": weights(4, 4)}, 16),
        "'matmul-h' (MatMul): acts on (batch, features), found 4 dimensions; flatten the input before it",
    ),
    "weight of the input": (
        lambda: model([node("Flatten", "x", "f"), node("MatMul", "w f", "y")], {"w": weights(3, 16)}),
        "'matmul-y' (MatMul): its input 0 does not depend on the network's input",
    ),
    "conv of one dimension": (
        lambda: through([node("Conv", "x w", "h")], {"w": weights(2, 1, 3)}, 4, shape=("n", 1, 4)),
        "'conv-h' (Conv): acts on images (batch, channels, height, width), found (batch, 1, 4)",
    ),
    "uneven pads with dilation": (
        lambda: through([node("Conv", "x w", "h", dilations=[2, 2], pads=[0, 0, 1, 1])], C, 4),
        "'conv-h' (Conv): pads=[0, 0, 1, 1] with dilation (2, 2); accepted: the same on both sides",
    ),
    "huge pads": (
        lambda: through([node("Conv", "x w", "h", pads=[30000] * 4)], C, 4),
        "'conv-h' (Conv): its output would have",
    ),
    "absurd pads": (
        lambda: through([node("Conv", "x w", "h", pads=[2**40] * 4)], C, 4),
        "accepted: four numbers from 0 to 32768",
    ),
    "stride zero": (
        lambda: through([node("Conv", "x w", "h", strides=[0, 1])], C, 4),
        "'conv-h' (Conv): strides=[0, 1]; accepted: two numbers from 1 to 32768",
    ),
    "other channels": (
        lambda: through([node("Conv", "x w", "h")], {"w": weights(2, 3, 3, 3)}, 4),
        "",
    ),
    "padding and max pool": (
        lambda: through(
            [node("Pad", "x p", "a"), node("MaxPool", "a", "h", kernel_shape=[2, 2])],
            {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
            25,
        ),
        "'maxpool-h' (MaxPool): it reads zeros that a Pad has added; only a Conv may do so",
    ),
    "padding of channels": (
        lambda: one("Pad", "x p", {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0])}),
        "'pad-h' (Pad): pads=[0, 1, 0, 0, 0, 0, 0, 0] with 0.0; accepted: zeros around height and width",
    ),
    "padding that reflects": (
        lambda: one("Pad", "x p", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, mode="reflect"),
        "'pad-h' (Pad): mode=reflect; accepted: constant",
    ),
    "pads that do not count": (
        lambda: one("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
        "'averagepool-h' (AveragePool): pads=[1, 1] that do not count",
    ),
    "uneven pads of a pool": (
        lambda: one("MaxPool", kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
        "'maxpool-h' (MaxPool): pads=[0, 0, 1, 1]; accepted: the same on both sides",
    ),
    "ceil_mode": (
        lambda: one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        "'maxpool-h' (MaxPool): ceil_mode=1 with windows that reach over the edge",
    ),
    "dilated pool": (
        lambda: one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
        "'maxpool-h' (MaxPool): dilations=[2, 2]; accepted: 1",
    ),
    "indices of a pool": (
        lambda: through([node("MaxPool", "x", "h i", kernel_shape=[2, 2])], {}, 9),
        "'maxpool-h i' (MaxPool): has a second output; accepted: one",
    ),
    "transposed image": (
        lambda: through([node("Transpose", "x", "h", perm=[0, 3, 1, 2])], {}, 32, shape=("n", 4, 4, 2)),
        "'transpose-h' (Transpose): perm=[0, 3, 1, 2] of [3, 4, 4, 2] moves numbers; accepted: where only dimensions",
    ),
    "literal batch": (
        lambda: one("Reshape", "x to", {"to": np.array([1, 16])}),
        "'reshape-h' (Reshape): to [1, 16] from [3, 1, 4, 4], which has another number of elements; the model's batch",
    ),
    "batch lost": (
        lambda: model(
            [node("Flatten", "x", "f"), node("Gemm", "f w", "g"), node("Reshape", "g to", "y")],
            {"w": weights(16, 3), "to": np.array([-1])},
            out=("n",),
        ),
        "'reshape-y' (Reshape): to [9], where the batch dimension does not stay first",
    ),
    "negative slope": (
        lambda: one("LeakyRelu", alpha=-0.5),
        "'leakyrelu-h' (LeakyRelu): alpha=-0.5; accepted: at least 0",
    ),
    "batch norm in training": (
        lambda: through(
            [node("BatchNormalization", "x s s s s", "h", training_mode=1)],
            {"s": np.ones(1, np.float32)},
            16,
            opset=15,
        ),
        "'batchnormalization-h' (BatchNormalization): training_mode=1; accepted: 0",
    ),
    "dropout in training": (
        lambda: through([node("Dropout", "x r t", "h")], {"r": np.float32(0.5), "t": np.array(True)}, 16),
        "'dropout-h' (Dropout): training_mode is true; export the model for inference",
    ),
    "computed weights": (
        lambda: through([node("Mul", "w w", "w2"), node("Conv", "x w2", "h")], C, 8),
        "'mul-w2' (Mul): computes with weights of the model; fold constants before",
    ),
    "weights from elsewhere": (
        lambda: through([node("Conv", "x k", "a"), node("Conv", "x a", "h")], {"k": C["w"]}, 8),
        "",
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, expected = NODES[name]
    lines = refusal(written(tmp_path / "model.onnx", make()))
    assert all("\n" not in line and "Traceback" not in line for line in lines)
    assert lines[0].startswith(str(tmp_path / "model.onnx"))
    if expected:
        assert expected in lines[0]
        assert len(lines) == 2
        assert LIST in lines[1]


def test_every_refused_node_has_its_line(tmp_path: Path) -> None:
    nodes = [
        node("Elu", "x", "a"),
        node("Relu", "a", "b_"),
        node("Gelu", "b_", "c"),
        node("Softplus", "x", "d"),
        node("Add", "c d", "h"),
    ]
    lines = refusal(written(tmp_path / "m.onnx", through(nodes, {}, 16, opset=20)))
    assert [line.split("'")[1] for line in lines[:-1]] == ["elu-a", "gelu-c", "softplus-d"]


ENDS = {
    "float64": ({"kind": TensorProto.DOUBLE}, "its input is DOUBLE; accepted: FLOAT (float32)"),
    "batch of 8": (
        {"shape": (8, 1, 4, 4), "out": (8, 3)},
        "its input has shape (8, 1, 4, 4), which fixes a batch of 8",
    ),
    "no batch": ({"shape": (16,)}, "its input has shape (16); accepted: (batch, features)"),
    "unknown size": ({"shape": ("n", 1, "h", 4)}, "its input has shape (n, 1, h, 4); accepted:"),
    "unknown rank": ({"shape": None}, "is not valid ONNX: Field 'shape'"),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_input_is_refused(name: str, tmp_path: Path) -> None:
    settings, expected = ENDS[name]
    nodes = [node("Relu", "x", "y")]
    lines = refusal(written(tmp_path / "m.onnx", model(nodes, {}, **{"out": ("n", "m", "k", "l"), **settings})))  # type: ignore[arg-type]
    assert expected in lines[0]


def test_several_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    built = model([node("Add", "x z", "y")], {})
    built.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 1, 4, 4]))
    assert "has 2 inputs (x, z); accepted: one" in refusal(written(tmp_path / "m.onnx", built))[0]
    built = model([node("Relu", "x", "y"), node("Tanh", "x", "z")], {}, out=("n", 1, 4, 4))
    built.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 1, 4, 4]))
    assert "has 2 outputs (y, z); accepted: one" in refusal(written(tmp_path / "m.onnx", built))[0]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("Relu", "x", "y")], "its output has shape (batch, 1, 4, 4); accepted: (batch, outputs)"),
        ([node("Identity", "x", "y")], "its output does not depend on its input"),
        ([node("Identity", "k", "y")], "its output does not depend on its input"),
    ],
)
def test_an_output_is_refused(nodes: list[onnx.NodeProto], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(written(tmp_path / "m.onnx", model(nodes, {"k": weights(2)}, out=("n", 1, 4, 4))))[0]


# Files ---------------------------------------------------------------------------------------------------


def good() -> onnx.ModelProto:
    return through([node("Conv", "x w b", "h")], C, 8)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not an ONNX model"),
        (b"not a model at all", "is not an ONNX model"),
        (b"\x80\x04pickle", "is not an ONNX model"),
        (good().SerializeToString()[:200], "is not"),
        (good().SerializeToString()[:-7], "is not"),
    ],
)
def test_a_bad_file_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert expected in refusal(tmp_path / "m.onnx")[0]


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "none.onnx")[0]
    (tmp_path / "d.onnx").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "d.onnx")[0]


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGEST", 100)
    assert "bytes; at most 100 are read" in refusal(written(tmp_path / "m.onnx", good()))[0]


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", "", "..\\secret", "link"])
def test_data_outside_of_the_folder_is_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(72))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (line,) = refusal(written(folder / "m.onnx", external(location)))
    assert f"weight 'w' lies in {location!r}" in line
    assert "own folder" in line or "outside of the model's folder" in line


def external(location: str, **entries: str) -> onnx.ModelProto:
    built = good()
    tensor = next(t for t in built.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return built


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"offset": "10", "length": "72"}, "bytes 10 to 82, but that file has 72"),
        ({"offset": "-4"}, "bytes -4 to 72, but that file has 72"),
        ({"length": "many"}, "at an offset or length that is no number"),
        ({"length": "40"}, "is not valid ONNX"),
    ],
)
def test_a_data_file_that_does_not_fit_is_refused(entries: dict[str, str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(72))
    assert expected in refusal(written(tmp_path / "m.onnx", external("data", **entries)))[0]


def test_a_data_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(written(tmp_path / "m.onnx", external("data")))[0]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = {**C, "b": np.array([1, np.nan], np.float32)}
    assert (
        "weight 'b' holds values that are not finite"
        in refusal(written(tmp_path / "m.onnx", through([node("Conv", "x w b", "h")], bad, 8)))[0]
    )


def test_operators_of_another_domain_are_refused(tmp_path: Path) -> None:
    built = good()
    built.graph.node[0].domain = "com.microsoft"
    built.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "uses operators of its own" in refusal(written(tmp_path / "m.onnx", built))[0]


# What was read must be what runs -------------------------------------------------------------------------


def test_a_rule_that_computes_something_else_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Relu", lambda call: call.add(Tanh(), call.ref().shape))
    (line,) = refusal(written(tmp_path / "m.onnx", through([node("Relu", "x", "h")], {}, 16)))
    assert "what was read from the file differs from onnxruntime by" in line
    assert "certificates would be about another network" in line


def test_a_difference_outside_of_the_unit_box_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On [0, 1] the two agree."""
    monkeypatch.setitem(RULES, "Abs", lambda call: call.add(Relu(), call.ref().shape))
    assert (
        "differs from onnxruntime" in refusal(written(tmp_path / "m.onnx", through([node("Abs", "x", "h")], {}, 16)))[0]
    )


def test_what_onnxruntime_does_not_run_is_refused(tmp_path: Path) -> None:
    built = through([node("Relu", "x", "h")], {}, 16)
    wrong = numpy_helper.from_array(weights(3, 17), "w9")
    next(t for t in built.graph.initializer if t.name == "w9").CopyFrom(wrong)
    assert "its weight takes 17 features, found 16" in refusal(written(tmp_path / "m.onnx", built))[0]
