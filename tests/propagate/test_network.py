# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Storing networks, and their fingerprint."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctkd.errors import BadInput
from ctkd.propagate import Network, Node, interval_margins, propagate, trace
from ctkd.propagate.ops import Reshape, Scale
from ctkd.storage import read_tensors, write_tensors

from .nets import KINDS, make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    for seed in range(8):
        case = make(kind, seed)
        network, box = case.network.to(dtype), case.box.to(dtype)
        network.save(tmp_path / "network.safetensors")
        loaded = Network.load(tmp_path / "network.safetensors")
        assert loaded.dtype == dtype
        assert loaded.sha256() == network.sha256()
        assert [(n.inputs, n.shape, n.path, type(n.op)) for n in loaded.nodes] == [
            (n.inputs, n.shape, n.path, type(n.op)) for n in network.nodes
        ]
        flow, again = propagate(network, case.x.to(dtype), box), propagate(loaded, case.x.to(dtype), box)
        assert torch.equal(flow.value, again.value)
        assert torch.equal(flow.radius, again.radius)
        margins = [interval_margins(n, f, case.labels)[0] for n, f in ((network, flow), (loaded, again))]
        assert torch.equal(*margins)


def test_pooling_is_nonlinear_but_no_activation() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(1), nn.Flatten())
    network = trace(module, (1, 2, 2)).bind()
    assert [type(network.nodes[i].op).__name__ for i in network.nonlinear] == ["Tanh", "MaxPool", "Relu"]
    assert [type(network.nodes[i].op).__name__ for i in network.activations] == ["Tanh", "Relu"]


def test_a_network_with_gradients_can_be_saved(tmp_path: Path) -> None:
    network = make("conv", 0).graph.bind()
    network.save(tmp_path / "n")
    assert Network.load(tmp_path / "n").sha256() == network.sha256()


def change(network: Network, node: int, name: str, function: object) -> Network:
    op = network.nodes[node].op
    nodes = list(network.nodes)
    new = dataclasses.replace(op, **{name: function(getattr(op, name))})
    nodes[node] = dataclasses.replace(nodes[node], op=new)
    return Network(tuple(nodes))


def one_ulp(tensor: Tensor) -> Tensor:
    flat = tensor.clone().flatten()
    flat[-1] = torch.nextafter(flat[-1], flat.new_tensor(torch.inf))
    return flat.reshape(tensor.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_follows_every_weight_and_not_the_paths(kind: str) -> None:
    network = make(kind, 1).network
    found = {network.sha256()}
    count = 1
    for i, node in enumerate(network.nodes):
        for name, _ in node.op.tensors() if node.op else ():
            found.add(change(network, i, name, one_ulp).sha256())
            count += 1
    assert len(found) == count
    renamed = Network(tuple(dataclasses.replace(node, path=f"other.{node.path}") for node in network.nodes))
    assert renamed.sha256() == network.sha256()
    assert network.to(torch.float32).sha256() != network.sha256()


def test_fingerprint_follows_structure() -> None:
    network = make("residual", 0).network
    i = next(i for i, node in enumerate(network.nodes) if type(node.op).__name__ == "Conv")
    assert change(network, i, "padding", lambda p: (p[0] + 1, p[1])).sha256() != network.sha256()


def test_fingerprint_follows_the_shape_of_tensors() -> None:
    """Equal bytes along another dimension are another network."""

    def scaled(shape: tuple[int, ...]) -> Network:
        scale = Scale(torch.arange(1.0, 4.0).reshape(shape), torch.zeros(1, 1, 1, 1))
        return Network(
            (
                Node(None, (), (3, 3, 3), "input"),
                Node(scale, (0,), (3, 3, 3), "s"),
                Node(Reshape((27,)), (1,), (27,), "f"),
            )
        )

    x = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    channels, rows = scaled((1, 3, 1, 1)), scaled((1, 1, 3, 1))
    assert not torch.equal(channels(x), rows(x))
    assert channels.sha256() != rows.sha256()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    make("mlp", 0).network.save(path)
    return path


def test_a_damaged_weight_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-5] ^= 1
    saved.write_bytes(data)
    with pytest.raises(BadInput, match="do not match their checksum; the file is damaged"):
        Network.load(saved)


def test_a_truncated_file_is_noticed(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(BadInput, match="not a safetensors file, or is damaged"):
        Network.load(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 100])
def test_nonsense_is_refused(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(BadInput):
        Network.load(saved)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.safetensors cannot be read"):
        Network.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_unread(saved: Path, protocol: int) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (saved.with_name("executed"),))  # type: ignore[return-value]

    saved.write_bytes(pickle.dumps(Trap(), protocol))
    with pytest.raises(BadInput, match="can execute code"):
        Network.load(saved)
    assert not saved.with_name("executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_refused(saved: Path, zipped: bool) -> None:
    torch.save({"weight": torch.zeros(2)}, saved, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match="only safetensors files are accepted"):
        Network.load(saved)


def test_another_safetensors_file_is_refused(saved: Path) -> None:
    write_tensors(saved, {"weight": torch.zeros(2)})
    with pytest.raises(BadInput, match="not a network that ctkd wrote"):
        Network.load(saved)


@pytest.mark.parametrize(
    "edit",
    [
        lambda entries: entries[1].update(op="Nothing"),
        lambda entries: entries[1].pop("inputs"),
        lambda entries: entries[1]["tensors"].append("absent"),
        lambda entries: entries[1]["attributes"].update(unknown=1),
        lambda entries: entries.clear(),
        lambda entries: entries[-1].update(inputs=[99]),
    ],
)
def test_an_unreadable_structure_is_refused(saved: Path, edit: object) -> None:
    tensors, metadata = read_tensors(saved)
    entries = json.loads(metadata["structure"])
    edit(entries)
    write_tensors(saved, tensors, metadata | {"structure": json.dumps(entries)})
    with pytest.raises(BadInput):
        Network.load(saved)
