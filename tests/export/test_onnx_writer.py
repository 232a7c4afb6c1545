# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ONNX export: the accepted profile, the same function, refusals."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput, RunFailed
from ctkd.export import compare, runner, to_onnx, write_onnx
from ctkd.propagate import Network, Node, trace
from ctkd.propagate.ops import LeakyRelu, Linear, MaxPool, Op, Relu, Reshape, Scale

if TYPE_CHECKING:
    from pathlib import Path

ATTRIBUTES = {
    "Conv": {"dilations", "group", "kernel_shape", "pads", "strides"},
    "Gemm": {"alpha", "beta", "transB"},
    "Flatten": {"axis"},
    "Reshape": set(),
    "Relu": set(),
    "LeakyRelu": {"alpha"},
    "Sigmoid": set(),
    "Tanh": set(),
    "MaxPool": {"kernel_shape", "pads", "strides"},
    "Add": set(),
}


def bound(module: nn.Module, shape: tuple[int, ...]) -> Network:
    return trace(module.eval(), shape).bind().detach()


def test_profile(network: Network) -> None:
    """What the verifiers were measured to read, see ATTRIBUTES; nothing beside it."""
    model = to_onnx(network)
    graph = model.graph
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert model.ir_version == 8
    assert [(v.name, v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)] == [
        ("input", 1),
        ("logits", 1),
    ]
    for value, shape in ((graph.input[0], network.input_shape), (graph.output[0], (network.classes,))):
        first, *rest = value.type.tensor_type.shape.dim
        assert (first.dim_param, tuple(d.dim_value for d in rest)) == ("batch", shape)
    weights = {w.name: w for w in graph.initializer}
    assert all(w.data_location == onnx.TensorProto.DEFAULT for w in weights.values())
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert set(attributes) == ATTRIBUTES[node.op_type]
        own = [numpy_helper.to_array(weights[name]) for name in node.input if name in weights]
        if node.op_type == "Conv":
            assert (attributes["group"], attributes["dilations"]) == (1, [1, 1])
            assert attributes["pads"][:2] == attributes["pads"][2:]
            assert [w.ndim for w in own] == [4, 1]
        if node.op_type == "Gemm":
            assert attributes == {"alpha": 1.0, "beta": 1.0, "transB": 1}
            assert [w.ndim for w in own] == [2, 1]
        if node.op_type == "MaxPool":
            assert attributes["pads"] == [0, 0, 0, 0]
            assert attributes["strides"] == attributes["kernel_shape"]
        if node.op_type == "Reshape":
            assert own[0][0] == -1
        assert all(w.dtype == (np.int64 if node.op_type == "Reshape" else np.float32) for w in own)
        assert all(name.replace("_", "").isalnum() for name in (*node.input, *node.output))
    used = {name for node in graph.node for name in node.input}
    assert used - {"input"} == set(weights) | {node.output[0] for node in graph.node[:-1]}


def test_same_function(network: Network) -> None:
    """Against torch in float64, at points the check itself does not use, and in batches of several sizes."""
    model = to_onnx(network)
    assert compare(model, network) <= 1e-4
    run = runner(model)
    for size in (1, 2, 33):
        x = torch.rand(size, *network.input_shape, generator=torch.Generator().manual_seed(size))
        expected = network.to(torch.float64)(x.double())
        assert np.abs(run(x.numpy()) - expected.numpy()).max() < 1e-4


def test_weights_are_the_networks_own(network: Network) -> None:
    """No folding, no rounding: the exported network is the certified one."""
    written = {numpy_helper.to_array(w).tobytes() for w in to_onnx(network).graph.initializer}
    for node in network.nodes:
        if node.op is not None and not isinstance(node.op, Scale | LeakyRelu):
            assert all(tensor.numpy().tobytes() in written for _, tensor in node.op.tensors())


def test_slopes_are_the_networks_own() -> None:
    """0.1 is no float32: module in float64, stored network and file must end with the same slope."""
    module = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2)).double()
    network = trace(module, (4,)).bind().detach().to(torch.float32)
    (slope,) = (node.op.negative_slope for node in network.nodes if isinstance(node.op, LeakyRelu))
    (alpha,) = (node.attribute[0].f for node in to_onnx(network).graph.node if node.op_type == "LeakyRelu")
    assert alpha == slope.item() == torch.tensor(0.1, dtype=torch.float32).item() != 0.1


def test_write_reads_back_whole(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "net.onnx"
    write_onnx(network, path)
    first = path.read_bytes()
    model = onnx.load(path)
    assert compare(model, network) <= 1e-4
    assert {p.key: p.value for p in model.metadata_props} == {"ctkd.network.sha256": network.sha256()}
    write_onnx(network, path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_unwritable_path(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing/net.onnx cannot be written: No such file or directory"):
        write_onnx(bound(nn.Sequential(nn.Linear(4, 2)), (4,)), tmp_path / "missing" / "net.onnx")


class FullShape(nn.Module):
    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", constant)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - self.constant)


def test_constant_that_differs_between_pixels_is_refused() -> None:
    constant = torch.zeros(2, 2, 2)
    constant[1, 0, 1] = 0.25
    with pytest.raises(BadInput, match=r"layer 'sub' .*differs between the pixels of one channel; accepted: one value"):
        to_onnx(bound(FullShape(constant), (2, 2, 2)))


def test_full_shape_constant_that_is_per_channel_is_accepted() -> None:
    network = bound(FullShape(torch.tensor([0.25, 0.5])[:, None, None].expand(2, 2, 2)), (2, 2, 2))
    model = to_onnx(network)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Flatten", "Gemm"]
    compare(model, network)


def test_per_feature_constant_on_flat_input() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("constant", torch.arange(5.0))
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(2.0 * x + self.constant)

    network = bound(Shifted(), (5,))
    model = to_onnx(network)
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Gemm"]
    compare(model, network)


def test_all_refusals_are_reported_at_once_with_their_paths() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    network = bound(module, (2, 4, 4))
    with pytest.raises(BadInput) as caught:
        to_onnx(network)
    assert caught.value.messages == (
        "layer '0' has no ONNX form that all verifiers read: Conv with groups=2; accepted: groups=1",
        "layer '2' has no ONNX form that all verifiers read: Conv with dilation=(2, 2); accepted: dilation=1",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Doubled(Op):
    def __call__(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * 2


Op.kinds.pop("Doubled")  # other tests may walk over all operators


def chain(*ops: tuple[Op, tuple[int, ...]], shape: tuple[int, ...] = (4,)) -> Network:
    nodes = [Node(None, (), shape, "input")]
    for i, (op, out) in enumerate(ops):
        nodes.append(Node(op, (i,), out, f"layer{i}"))
    return Network(tuple(nodes))


HEAD = (Linear(torch.ones(2, 4), torch.zeros(2)), (2,))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            chain((Doubled(), (4,)), HEAD),
            r"layer 'layer0' .* Doubled; accepted: Add, AvgPool, Conv, LeakyRelu, Linear, MaxPool, Relu,",
        ),
        (
            chain((Reshape((2, 2)), (2, 2)), (Reshape((4,)), (4,)), HEAD),
            r"'layer0' .* Reshape to \(2, 2\); accepted: ",
        ),
        (
            chain((Reshape((4,)), (4,)), HEAD, shape=(2, 2)),
            r"^input shape \(2, 2\); accepted: \(features,\) and ",
        ),
        (chain(), r"must end in logits of shape \(batch, classes\), found \(4,\)"),
        (chain(HEAD).to(torch.float64), r"'layer0' .* its weight is torch.float64; only float32 is exported"),
        (
            chain((Linear(torch.ones(2, 4), torch.tensor([0.0, torch.inf])), (2,))),
            r"'layer0' .* its bias holds values that are not finite",
        ),
        (
            chain((MaxPool((2, 2), (2, 2), (1, 1)), (1, 2, 2)), (Reshape((4,)), (4,)), HEAD, shape=(1, 2, 2)),
            r"'layer0' .* MaxPool with padding=\(1, 1\), which Marabou misreads; accepted: padding=0",
        ),
        (
            chain((MaxPool((2, 2), (1, 1), (0, 0)), (1, 2, 2)), (Reshape((4,)), (4,)), HEAD, shape=(1, 3, 3)),
            r"'layer0' .* MaxPool with kernel \(2, 2\) and stride \(1, 1\); accepted: a stride equal to the kernel",
        ),
        (
            chain((Scale(torch.full((1, 1), 2.0), torch.zeros(1, 1)), (4097,)), (Relu(), (4097,)), shape=(4097,)),
            r"'layer0' .* 4097 flat features would need a dense square weight; at most 4096 features",
        ),
    ],
)
def test_refusals(network: Network, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        to_onnx(network)


# The check ------------------------------------------------------------------------------------------------


def small() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return bound(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,))


def test_one_changed_weight_is_found() -> None:
    network = small()
    model = to_onnx(network)
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[0, int(np.abs(weight[0]).argmax())] += 0.01
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, model.graph.initializer[2].name))
    with pytest.raises(
        RunFailed, match=r"differs from the network by 0\.0\d+ in a logit .*at most 0\.0001 is accepted"
    ):
        compare(model, network)


def test_a_literal_batch_is_found() -> None:
    network = bound(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    model = to_onnx(network)
    shape = numpy_helper.from_array(np.array([1, 4], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Reshape", ["input", "shape"], list(model.graph.node[0].output)))
    with pytest.raises(RunFailed, match=r"does not run on an input of shape \(7, 1, 2, 2\)"):
        compare(model, network)


def test_invalid_model_is_found() -> None:
    model = to_onnx(small())
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(RunFailed, match=r"is not valid ONNX: .*nowhere"):
        compare(model, small())


def test_shape_and_finiteness_are_checked() -> None:
    network = small()
    wider = chain((Linear(torch.ones(2, 4), torch.zeros(2)), (2,)))
    with pytest.raises(RunFailed, match=r"returns shape \(1, 3\) for a batch of 1, not \(1, 2\)"):
        compare(to_onnx(network), wider)
    huge = chain((Linear(torch.full((2, 4), 3e38), torch.zeros(2)), (2,)))
    with pytest.raises(RunFailed, match="logits are not finite"):
        compare(to_onnx(huge), huge)


def test_points_come_from_the_box_asked_for() -> None:
    """Two networks that agree on [0, 0.5] only: the box decides whether that is noticed."""
    plain = chain((Linear(torch.eye(2, 4), torch.zeros(2)), (2,)))
    kinked = chain(
        (Linear(-torch.eye(4), torch.full((4,), 0.5)), (4,)),
        (Relu(), (4,)),
        (Linear(-torch.eye(2, 4), torch.full((2,), 0.5)), (2,)),
    )
    compare(to_onnx(kinked), plain, perturbation_box(torch.full((3, 4), 0.2), 0.25))
    with pytest.raises(RunFailed, match="differs from the network"):
        compare(to_onnx(kinked), plain, perturbation_box(torch.full((3, 4), 0.4), 0.25))
