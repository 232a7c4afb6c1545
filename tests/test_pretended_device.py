# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The device that tests pretend to have: what mixes with it, and what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .pretended_device import DEVICE, pretended_device

THREE = torch.tensor([2, 0, 1])
MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, here: x + here,
        lambda x, here: here * x.sum(),
        lambda x, here: x @ here,
        lambda x, here: torch.cat([x, here]),
        lambda x, here: torch.where(x > 0, x, here),
        lambda x, here: here[THREE.to(x.device)],
        lambda x, here: here[MASK.to(x.device)],
        lambda x, here: x.gather(1, THREE[:, None]),
        lambda x, here: x.index_select(0, THREE),
        lambda x, here: x.index_copy(0, THREE, here),
        lambda x, here: x.scatter(1, THREE[:, None], 1.0),
        lambda x, here: x.masked_fill(MASK, 0.0),
        lambda x, here: x.index_put_((THREE,), here),
        lambda x, here: torch.isin(x, here),
        lambda x, here: x.add_(here),
        lambda x, here: torch.add(x, x, out=here),
        lambda x, here: x.numpy(),
        lambda x, here: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x, here: torch.arange(3).to(torch.float32) + x,
    ],
)
def test_what_fails_on_a_gpu_fails(mix: Callable[[Tensor, Tensor], object]) -> None:
    with pretended_device() as device, pytest.raises(RuntimeError, match=r"device|cannot index|numpy"):
        mix(torch.eye(3, device=device), torch.eye(3))


def test_what_works_on_a_gpu_works() -> None:
    with pretended_device() as device:
        x, here = torch.eye(3).to(device), torch.arange(9.0).reshape(3, 3)
        x[0] = here[0]
        x[:, 1] = torch.tensor(7.0)
        x[MASK.to(device)] = 2.0
        assert x.tolist() == [[2, 2, 2], [0, 7, 0], [2, 2, 2]]
        assert x[MASK].shape == (2, 3)
        assert x[THREE].device.type == DEVICE
        assert float(x.sum() + torch.tensor(1.0)) == 20
        assert bool((x > 0).any())
        assert torch.full((2,), 3.0, device=device).new_zeros(2).device.type == DEVICE
        assert here.new_tensor([1.0], device=device).device.type == DEVICE
        view = x[1:]
        view.zero_()
        assert x.cpu().sum() == 6
        free = here.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad((free.relu() @ x).sum(), free)
        assert gradient.device.type == DEVICE
        assert gradient.cpu()[2].tolist() == [6, 0, 0]


def test_a_process_that_used_it_ends_well() -> None:
    code = (
        "import torch\nfrom tests.pretended_device import pretended_device\n"
        "torch.ones(1, requires_grad=True).sum().backward()\n"
        "with pretended_device() as device:\n"
        "    x = torch.ones(2, device=device).requires_grad_()\n"
        "    torch.autograd.grad((2 * x).sum(), x)\n"
        "with torch.random.fork_rng():\n    torch.manual_seed(0)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
