# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Settings of the whole process while ctkd computes, put back afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of glibc's ``mallopt`` (malloc.h)."""
USUAL = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}  # no trimming at all: the largest threshold is 2 GiB


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Full float32 products, and freed memory kept for the next step."""
    with full_precision(), kept_memory():
        yield


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32: no TF32 and no bfloat16 inside convolutions and matrix products, on any device.

    PyTorch allows TF32 in CUDA's convolutions by default, which makes bounds wrong by more than any tolerance.
    """
    places: list[Any] = [
        place
        for backend in (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
        for name in ("matmul", "conv", "rnn")
        if hasattr(place := getattr(backend, name, None), "fp32_precision")  # from PyTorch 2.9 on
    ]
    before = [place.fp32_precision for place in places]
    matmul = convolutions = None
    # Whoever set places one by one cannot read the older switches; both together must say one thing.
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@contextlib.contextmanager
def plain_convolutions(device: str) -> Iterator[None]:
    """Convolutions are sums of products, whose rounding docs/soundness.md bounds. In float64 on a CPU they always are.

    On a GPU cuDNN may choose Winograd's or a Fourier transform's, so it does nothing inside; PyTorch's own kernels and
    cuBLAS, which take its place, are slower. It belongs to the process: one thread at a time may use it.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


DEVICES = ("cpu", "cuda")
"""Kinds of device that are accepted."""
EMULATION = "CUBLAS_EMULATE_DOUBLE_PRECISION"
"""Lets cuBLAS (from CUDA 13 on) make float64 products of integer ones, by rules of its own."""


def device_problem(device: str) -> str | None:
    """Why nothing can be computed on a device, named as PyTorch does; None if it can."""
    try:
        if torch.device(device).type not in DEVICES:
            raise RuntimeError("accepted: cpu, cuda, cuda:N")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def certifying_problem(device: str) -> str | None:
    """The same for certificates, whose float64 must be float64."""
    problem = device_problem(device)
    if problem is None and torch.device(device).type == "cuda" and os.environ.get(EMULATION, "0") not in ("", "0"):
        return f"{EMULATION}={os.environ[EMULATION]} lets products in float64 be emulated; unset it"
    return problem


def device_name(device: str) -> str:
    """What is recorded of it: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Freed memory stays with the process and is used again; afterwards the system gets it back.

    By default glibc fetches every tensor of more than 32 MB from the system and returns it at once, and each of its
    pages is then filled with zeros anew: a fourth of a training step of CNN-7. Elsewhere than on glibc nothing happens.
    """
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is None:
        yield
        return
    for parameter, value in KEEPING.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
