# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Weights from files: formats, name maps, and what must never run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ctkd.api import Data
from ctkd.errors import BadInput
from ctkd.propagate import Network

from .conftest import Surroundings

Make = Callable[..., Any]
Check = Callable[..., None]


def exercised(network: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """The same network with batch-norm statistics and scales that are not those of a fresh one."""
    torch.manual_seed(1)
    for part in network:
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
            for tensor in (part.bias, part.running_mean):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
    network(torch.rand(8, *shape))
    return network.eval()


def small(channels: int = 1) -> nn.Sequential:
    """cnn-small, as somebody else would write it."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 100),
        nn.BatchNorm1d(100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def seven(channels: int, size: int) -> nn.Sequential:
    """The layout of the published CNN-7, so 0, 3, 6, 9, 12 are convolutions and 16, 19 fully connected."""
    layers: list[nn.Module] = []
    for before, after, stride in ((channels, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    width = 128 * (size // 2) ** 2
    layers += [nn.Flatten(), nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers)


# Formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "checkpoint", "legacy", "parallel", "safetensors", "ordered"])
def test_every_format_gives_the_same_network(
    form: str, tmp_path: Path, obtain: Make, good: Path, good_state: dict[str, Tensor]
) -> None:
    path = tmp_path / ("t.safetensors" if form == "safetensors" else "t.pth")
    if form == "safetensors":
        save_file(good_state, path)
    elif form == "checkpoint":
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict()
        torch.save({"state_dict": good_state, "epoch": 160, "optimizer": optimizer}, path)
    elif form == "parallel":
        torch.save({f"module.{name}": tensor for name, tensor in good_state.items()}, path)
    elif form == "ordered":
        torch.save(OrderedDict(good_state), path)
    else:
        torch.save(good_state, path, _use_new_zipfile_serialization=form != "legacy")
    assert obtain("file", path=path).sha256() == Network.load(good).sha256()


def test_a_run_may_be_named_by_its_folder(obtain: Make, quick_run: tuple[Path, Any], good: Path) -> None:
    assert obtain("file", path=quick_run[0]).sha256() == quick_run[1]["student_sha256"]
    assert obtain("file", path=quick_run[0] / "teacher").sha256() == Network.load(good).sha256()


def test_a_state_dict_of_another_model(tmp_path: Path, obtain: Make) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 100)).state_dict(), tmp_path / "t.pt")
    with pytest.raises(BadInput, match=r"the weights are for another architecture: .*Missing key"):
        obtain("file", path=tmp_path / "t.pt", model="mlp")


def test_a_whole_run_with_a_checkpoint_as_teacher(
    train_command: Callable[..., Any], tmp_path: Path, good: Path, good_state: dict[str, Tensor]
) -> None:
    torch.save({"state_dict": good_state, "epoch": 3}, tmp_path / "t.ckpt")
    code, out, err = train_command({"teacher.path": tmp_path / "t.ckpt", "distill.name": "features"}, "--json")
    assert code == 0, err
    assert json.loads(out)["teacher"]["sha256"] == Network.load(good).sha256()
    assert (tmp_path / "run" / "teacher" / "network.safetensors").exists()


# What must not run ---------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_file_does_not_run(
    form: str, tmp_path: Path, refused: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = {"state_dict": {"0.weight": torch.zeros(2)}, "extra": Malicious(marker)}
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(marker), protocol=2))
        part = "evil.pt"
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
        part = "evil.pt wants to run code when it is read (posix.system), which ctkd never does"
    refused({"teacher.path": path}, part)
    assert not marker.exists()
    if form != "pickle":  # the test would notice: read with execution allowed, the same file does run
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (nn.Linear(2, 2), "wants to run code when it is read (torch.nn.modules.linear.Linear)"),
        ({"a": torch.zeros(1), "args": argparse.Namespace()}, "wants to run code when it is read (argparse.Namespace)"),
        ([1, 2], "holds no state dict (names to tensors, alone or under 'state_dict'), found list"),
        ({"epoch": 3, "lr": 0.1}, "found a mapping with 'epoch', 'lr'"),
        ({}, "holds no state dict"),
    ],
)
def test_other_pickles_are_one_clear_line(content: Any, part: str, tmp_path: Path, refused: Check) -> None:
    torch.save(content, tmp_path / "t.pt")
    refused({"teacher.path": tmp_path / "t.pt"}, part)


def test_unreadable_files(tmp_path: Path, refused: Check, good_state: dict[str, Tensor]) -> None:
    torch.save(good_state, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    refused({"teacher.path": tmp_path / "cut.pt"}, "cut.pt is not a PyTorch checkpoint, or is damaged: ")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused({"teacher.path": tmp_path / "empty.pt"}, "empty.pt is not a safetensors file, or is damaged")
    (tmp_path / "t.onnx").write_bytes(b"x")
    refused({"teacher.path": tmp_path / "t.onnx"}, "an ONNX file is read by --teacher onnx")
    refused({"teacher.path": tmp_path / "absent.pt"}, "absent.pt cannot be read: No such file or directory")


# Names of other projects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_expressive_losses_layout(form: str, tmp_path: Path, obtain: Make, digits: Data) -> None:
    reference = exercised(seven(1, 8), (1, 8, 8))
    assert {"0.weight", "1.running_mean", "13.weight", "16.bias", "17.weight", "19.bias"} <= set(reference.state_dict())
    path = tmp_path / f"t.{form}"
    if form == "pt":
        torch.save({"state_dict": reference.state_dict(), "epoch": 160, "optimizer": {}}, path)
    else:  # keeps no order, and "10" sorts before "3"
        save_file(reference.state_dict(), path)
    teacher = obtain("file", path=path, model="cnn7", names="expressive-losses", mean=0.1307, std=0.3081)
    x = digits.validation.images[:20]
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), reference((x - 0.1307) / 0.3081), rtol=1e-4, atol=1e-4)
    assert teacher.feature_shape == (512,)


def test_normalisation_per_channel(tmp_path: Path, obtain: Make, digits: Data) -> None:
    from dataclasses import replace

    from ctkd.api import Split

    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    colours = Split(
        digits.train.images.expand(-1, 3, -1, -1) * torch.tensor([1, 0.5, 0.2])[:, None, None], digits.train.labels
    )
    data = replace(digits, train=colours)
    reference = exercised(small(3), (3, 8, 8))
    torch.save({"state_dict": reference.state_dict()}, tmp_path / "t.pt")
    options = {"path": tmp_path / "t.pt", "names": "expressive-losses"}
    teacher = obtain("file", Surroundings(data), **options, mean=mean, std=std)
    x = colours.images[:9]
    shifted = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), reference(shifted), rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match=r"teacher\.mean: 2 values for images of 3 channels"):
        obtain("file", Surroundings(data), **options, mean=(0, 0), std=1)


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1, 1)])
@pytest.mark.parametrize("own", [False, True])
def test_ctbench_layout(shape: tuple[int, ...], own: bool, tmp_path: Path, obtain: Make, digits: Data) -> None:
    """A normalisation layer stands first, so every place is one higher; also where the model normalises by itself.

    CTBench saves its own Sequential, which keeps its layers in a list; the constants are called mean and sigma.
    """
    reference = exercised(seven(1, 8), (1, 8, 8))
    state = {"layers.0.mean": torch.full(shape, 0.3), "layers.0.sigma": torch.full(shape, 0.7)}
    for name, tensor in reference.state_dict().items():
        place, _, last = name.partition(".")
        state[f"layers.{int(place) + 1}.{last}"] = tensor
    torch.save(state, tmp_path / "t.pt")
    table = {"name": "cnn7", **({"mean": (0.9,), "std": (0.9,)} if own else {})}
    teacher = obtain("file", Surroundings(digits, table), path=tmp_path / "t.pt", names="ctbench")
    x = digits.validation.images[:20]
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), reference((x - 0.3) / 0.7), rtol=1e-4, atol=1e-4)


def test_own_names_with_a_normalisation(tmp_path: Path, obtain: Make, digits: Data) -> None:
    reference = exercised(small(), (1, 8, 8))
    torch.save(reference.state_dict(), tmp_path / "t.pt")
    x = digits.validation.images[:5]
    with torch.no_grad():
        found = obtain("file", path=tmp_path / "t.pt", mean=0.5, std=0.25)(x)
        torch.testing.assert_close(found, reference((x - 0.5) / 0.25), rtol=1e-4, atol=1e-4)


def test_a_layer_without_bias(tmp_path: Path, obtain: Make, digits: Data) -> None:
    reference = exercised(small(), (1, 8, 8))
    state = {name: tensor for name, tensor in reference.state_dict().items() if name != "0.bias"}
    nn.init.zeros_(reference[0].bias)  # type: ignore[arg-type]
    torch.save(state, tmp_path / "t.pt")
    x = digits.validation.images[:5]
    teacher = obtain("file", path=tmp_path / "t.pt", names="expressive-losses", mean=0, std=1)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), reference(x), rtol=1e-4, atol=1e-4)


def test_another_architecture_names_the_first_layer_that_differs(tmp_path: Path, refused: Check) -> None:
    names = {"teacher.names": "expressive-losses", "teacher.mean": 0, "teacher.std": 1}
    state = small().state_dict()

    def save(changed: dict[str, Tensor]) -> dict[str, Any]:
        torch.save(changed, tmp_path / "t.pt")
        return {**names, "teacher.path": tmp_path / "t.pt"}

    part = "layer 3 is Conv2d (64, 64, 3, 3) ('3') in the file and Conv2d (32, 16, 4, 4) ('3') in the model"
    wide = {**state, "0.weight": state["0.weight"], "3.weight": torch.zeros(64, 64, 3, 3)}
    refused(save(wide), part)
    shorter = {name: tensor for name, tensor in state.items() if not name.startswith("10.")}
    refused(save(shorter), "layer 7 is missing in the file and Linear (10, 100) ('10') in the model")
    refused(save({**state, "11.weight": torch.zeros(2, 2)}), "layer 8 is Linear (2, 2) ('11') in the file and missing")
    plain = {name: tensor for name, tensor in state.items() if not name.startswith("1.")}
    refused(save(plain), "layer 2 is Conv2d (32, 16, 4, 4) ('3') in the file and BatchNorm (16,) ('1') in the model")
    refused(save({**state, "11.alpha": torch.zeros(2)}), "layer '11' with alpha is none of a feed-forward network")
    ctbench = {"teacher.names": "ctbench", "teacher.path": tmp_path / "t.pt"}
    save(state)
    refused(ctbench, "names = ctbench expects a normalisation first, found Conv2d (16, 1, 4, 4) ('0')")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"names": "expressive-losses"}, "names = expressive-losses needs mean and std, which such files do not hold"),
        ({"names": "ctbench", "mean": 0, "std": 1}, "names = ctbench takes mean and std from the file; leave them out"),
        ({"mean": 0.5}, "mean and std belong together"),
        ({"mean": 0.5, "std": 0}, "teacher.std.0=0: must be greater than 0"),
        ({"names": "ctbnch"}, "teacher.names=ctbnch: must be 'own', 'expressive-losses' or 'ctbench'"),
        ({"model": "cnn-smal"}, "teacher.model=cnn-smal: not known: did you mean 'cnn-small'?"),
        ({"outputs": "logit"}, "teacher.outputs=logit: must be 'logits' or 'probabilities'"),
    ],
)
def test_options_that_do_not_fit(settings: dict[str, Any], part: str, refused: Check) -> None:
    refused({"teacher.path": "t.pt", **{f"teacher.{key}": value for key, value in settings.items()}}, part)


def test_a_network_of_ctkd_takes_no_map(refused: Check, good: Path) -> None:
    settings = {"teacher.path": good, "teacher.mean": 0, "teacher.std": 1}
    refused(settings, "is a network of ctkd: leave out teacher.names, mean and std")


def test_logits_are_not_probabilities(refused: Check, good: Path) -> None:
    part = "teacher.outputs=probabilities, but the rows that it returns are not in [0, 1]"
    refused({"teacher.path": good, "teacher.outputs": "probabilities"}, part)
    features = {"teacher.path": good, "teacher.outputs": "probabilities", "distill.name": "features"}
    refused(features, "distill.name=features reads the teacher's features, and teacher 'file' gives logits only")
