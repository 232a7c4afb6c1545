# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Settings of the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from ctkd.machine import prepared


def test_float32_is_float32_inside_and_what_it_was_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        with prepared():
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this PyTorch has the older switches alone")
def test_the_newer_switches_are_put_back_too() -> None:
    """In a process of its own: what they say together cannot be undone one by one."""
    code = """
from operator import attrgetter
import torch
from ctkd.machine import prepared

names = ["cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"]
places = [attrgetter(name)(torch.backends) for name in names]
for chosen in (*places, torch.backends):
    chosen.fp32_precision = "tf32"
    before = [place.fp32_precision for place in places]
    assert "tf32" in before
    with prepared():
        assert [place.fp32_precision for place in places] == ["ieee"] * len(places)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert [place.fp32_precision for place in places] == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_large_tensors_use_memory_again() -> None:
    """In a process of its own: pages are fetched from the system for each tensor outside, and hardly any inside."""
    code = """
import resource, torch
from ctkd.machine import prepared

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
with prepared():
    faults()
    kept = faults()
assert kept * 20 < usual, (kept, usual)
assert faults() > 10 * kept  # and as before afterwards
"""
    subprocess.run([sys.executable, "-c", code], check=True)
