# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Architectures: parameters counted by hand, shapes, bounds that hold, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput
from ctkd.export import compare, to_onnx
from ctkd.plugins import create_from
from ctkd.propagate import interval_margins, margins_of, propagate, relaxed_margins, trace

SMALL: dict[str, dict[str, Any]] = {
    "cnn7": {"width": 2, "hidden": 6},
    "cnn5": {"width": 2, "hidden": 6},
    "resnet": {"width": 2, "blocks": (1, 2), "hidden": 6},
    "mlp": {"widths": (6, 5)},
    "cnn-small": {"channels": 2, "hidden": 6},
}
WITH_NORMALISATION = ("cnn7", "cnn5", "resnet")
IMAGE = (3, 8, 8)


def build(name: str, shape: tuple[int, ...], classes: int = 10, **options: Any) -> nn.Module:
    module: nn.Module = create_from("model", {"name": name, **options}).build(shape, classes)
    return module


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def conv(before: int, after: int, kernel: int) -> int:
    """Weights and biases, and two numbers of batch norm per channel."""
    return (before * kernel**2 + 1 + 2) * after


def dense(before: int, after: int) -> int:
    return (before + 1 + 2) * after


def convolutions(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.out_channels, m.stride[0]) for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_cnn7_is_the_published_network() -> None:
    module = build("cnn7", (3, 32, 32))
    layers = conv(3, 64, 3) + conv(64, 64, 3) + conv(64, 128, 3) + 2 * conv(128, 128, 3)
    assert parameters(module) == layers + dense(128 * 16 * 16, 512) + 513 * 10 == 17_192_650
    assert convolutions(module) == [(64, 1), (64, 1), (128, 2), (128, 1), (128, 1)]
    assert parameters(build("cnn7", (1, 28, 28))) == 17_192_650 - 2 * 9 * 64 - 128 * (16**2 - 14**2) * 512


def test_cnn7_strides_once_more_on_large_images() -> None:
    module = build("cnn7", (3, 64, 64), classes=200)
    assert convolutions(module) == [(64, 1), (64, 1), (128, 2), (128, 1), (128, 2)]
    assert parameters(module) == 17_192_650 + 513 * 190
    assert module.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 200)
    assert convolutions(build("cnn7", (3, 63, 63), width=1, hidden=1))[-1] == (2, 1)


def test_cnn5() -> None:
    layers = conv(3, 64, 3) + conv(64, 64, 4) + conv(64, 128, 4)
    assert parameters(build("cnn5", (3, 32, 32))) == layers + dense(128 * 8 * 8, 512) + 513 * 10 == 4_400_074


@pytest.mark.parametrize(("pool", "features"), [(False, 64 * 8 * 8), (True, 64)])
def test_resnet(pool: bool, features: int) -> None:
    module = build("resnet", (3, 32, 32), blocks=(2, 1, 1), pool=pool)
    first = conv(3, 16, 3) + 2 * 2 * conv(16, 16, 3)
    others = sum(conv(c, 2 * c, 3) + conv(2 * c, 2 * c, 3) + conv(c, 2 * c, 1) for c in (16, 32))
    assert parameters(module) == first + others + dense(features, 100) + 101 * 10
    assert parameters(build("resnet", (3, 32, 32), blocks=(2, 1, 1), pool=pool, hidden=0)) == (
        first + others + (features + 1) * 10
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 12), (2, 7, 5)])
@pytest.mark.parametrize("name", SMALL)
def test_logits_have_the_right_shape(name: str, shape: tuple[int, ...]) -> None:
    for options in (SMALL[name], SMALL[name] | {"batch_norm": False}):
        module = build(name, shape, 7, **options)
        assert module(torch.rand(3, *shape)).shape == (3, 7)
        assert any("BatchNorm" in type(m).__name__ for m in module.modules()) == options.get("batch_norm", True)


def trained(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Batch norm statistics as after some training."""
    with torch.no_grad():
        for _ in range(5):
            module.train()(torch.rand(16, *shape))
    return module.double().eval()


CASES = [
    *((name, {}) for name in SMALL),
    *((name, {"activation": activation}) for name in SMALL for activation in ("leaky-relu", "sigmoid", "tanh")),
    *((name, {"mean": (0.4, 0.5, 0.6), "std": (0.25,)}) for name in WITH_NORMALISATION),
    ("resnet", {"pool": True, "hidden": 0}),
    ("resnet", {"blocks": (), "batch_norm": False}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_bounds_contain_every_point(name: str, changes: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = trained(build(name, IMAGE, 4, **(SMALL[name] | changes)), IMAGE)
        x, labels = torch.rand(2, *IMAGE, dtype=torch.float64), torch.tensor([0, 3])
        share = torch.rand(60, 2, *IMAGE, dtype=torch.float64)
    network = trace(module, IMAGE).bind().detach()
    box = perturbation_box(x, 0.02)
    flow = propagate(network, None, box)
    share[30:] = share[30:].round()
    inside = box.lower + share * (box.upper - box.lower)
    with torch.no_grad():
        found = torch.stack([margins_of(module(one), labels) for one in inside])
    for bound in (
        interval_margins(network, flow, labels)[0],
        relaxed_margins(network, flow.pre_activation, box, labels),
    ):
        assert (bound <= found + 1e-9).all()
        assert bound.isfinite().all()


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_they_can_be_exported(name: str, changes: dict[str, Any]) -> None:
    module = trained(build(name, IMAGE, 4, **(SMALL[name] | changes)), IMAGE)
    network = trace(module, IMAGE).bind().detach().to(torch.float32)
    compare(to_onnx(network), network)


@pytest.mark.parametrize("name", WITH_NORMALISATION)
def test_normalisation_comes_first_and_is_not_trained(name: str) -> None:
    plain = build(name, IMAGE, **SMALL[name])
    mean, std = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1), 0.25
    module = build(name, IMAGE, **SMALL[name], mean=tuple(mean.flatten().tolist()), std=(std,))
    assert parameters(module) == parameters(plain)
    assert set(dict(module.named_buffers())) >= {"0.mean", "0.std"}
    plain.load_state_dict(dict(zip(plain.state_dict(), list(module.state_dict().values())[2:], strict=True)))
    x = torch.rand(2, *IMAGE)
    expected: Tensor = plain.eval()((x - mean) / std)
    torch.testing.assert_close(module.eval()(x), expected)
    # One of the two, and one number for all channels.
    torch.testing.assert_close(build(name, IMAGE, **SMALL[name], mean=(0.5,))[0](x), x - 0.5)
    torch.testing.assert_close(build(name, IMAGE, **SMALL[name], std=(0.5, 1, 2))[0](x)[:, 2], x[:, 2] / 2)


@pytest.mark.parametrize("name", WITH_NORMALISATION)
@pytest.mark.parametrize("option", ["mean", "std"])
def test_normalisation_of_another_size_is_refused(name: str, option: str) -> None:
    with pytest.raises(BadInput) as caught:
        build(name, IMAGE, **SMALL[name], **{option: (0.5, 0.5)})
    assert str(caught.value) == f"model.{option} has 2 numbers; accepted: 1, or 3, one per channel"


@pytest.mark.parametrize(
    ("name", "options", "shape", "size"),
    [
        ("cnn7", {}, (3, 2, 8), "3x3"),
        ("cnn7", {}, (64,), "3x3"),
        ("cnn5", {}, (1, 8, 3), "4x4"),
        ("cnn-small", {}, (1, 3, 8), "4x4"),
        ("resnet", {}, (3, 3, 3), "4x4"),
        ("resnet", {"blocks": (1, 1)}, (3, 8), "2x2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    name: str, options: dict[str, Any], shape: tuple[int, ...], size: str
) -> None:
    with pytest.raises(BadInput) as caught:
        build(name, shape, **options)
    assert str(caught.value) == f"model {name} needs images of at least {size} pixels, found inputs of shape {shape}"


@pytest.mark.parametrize(("name", "smallest"), [("cnn7", 3), ("cnn5", 4), ("cnn-small", 4), ("resnet", 4)])
def test_the_smallest_images_fit(name: str, smallest: int) -> None:
    shape = (1, smallest, smallest)
    assert build(name, shape).eval()(torch.rand(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width"),
        ({"activation": "gelu"}, "activation"),
        ({"std": (0.0,)}, "std"),
        ({"hidden": 0}, "hidden"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        build("cnn7", IMAGE, **options)


def test_options_do_not_import_torch() -> None:
    modules = ", ".join(f"ctkd.models.{name}" for name in ("cnn5", "cnn7", "cnn_small", "mlp", "options", "resnet"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
