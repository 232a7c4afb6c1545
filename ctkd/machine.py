# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Settings of the whole process while ctkd computes, put back afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

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
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


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
