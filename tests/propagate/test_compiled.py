# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Compiled training bounds against the plain ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.propagate import Network
from ctkd.propagate.ops import Relu
from ctkd.propagate.ops import compiled as module
from ctkd.propagate.ops.compiled import CompiledRelu
from ctkd.run import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
SMALL = {
    "train.epochs": 1,
    "train.warmup": 0,
    "train.ramp": 0,
    "model.channels": 2,
    "model.hidden": 4,
    "train.compile": True,
}


def results(op: Relu, dtype: torch.dtype, layout: torch.memory_format, points: int, *, mixed: bool) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(6, 3, 4, 4, generator=draw).to(dtype).contiguous(memory_format=layout).requires_grad_()
    radius = torch.rand(6 - points, 3, 4, 4, generator=draw).to(dtype)
    radius = (radius.contiguous() if mixed else radius.contiguous(memory_format=layout)).requires_grad_()
    found = op.joint(value, radius, points)
    upstream = [torch.randn(part.shape, generator=draw).to(dtype) for part in found]
    return [*found, *torch.autograd.grad(found, (value, radius), upstream)]


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_the_plain_ones(
    dtype: torch.dtype, tolerance: float, layout: torch.memory_format
) -> None:
    for points in (0, 2):
        for mixed in (False, True):
            plain = results(Relu(), dtype, layout, points, mixed=mixed)
            compiled = results(CompiledRelu(), dtype, layout, points, mixed=mixed)
            for a, b in zip(plain, compiled, strict=True):
                # Where a bound is zero up to rounding, bfloat16 may take the other side's gradient.
                far = (a - b).abs() > tolerance * (1 + a.abs())
                assert far.double().mean() <= (0.02 if dtype == torch.bfloat16 else 0)


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr("ctkd.train.loop.compile_now", broken)
    monkeypatch.setattr(module, "kernels", broken)
    with pytest.warns(UserWarning, match="^not compiled, which only makes it slower: no compiler$"):
        folder, _ = train(settings=SMALL, out=tmp_path / "run", certify=False)
    assert folder.network.exists()


@needs_compiler
def test_a_compiled_training_ends_where_the_plain_one_does(tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        folder, _ = train(settings={**SMALL, "train.compile": compiled}, out=tmp_path / str(compiled), certify=False)
        weights.append(Network.load(folder.network).tensors())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.05, atol=0.01)  # Adam magnifies rounding
    assert not any(node["op"] == "CompiledRelu" for node in Network.load(folder.network).structure())
