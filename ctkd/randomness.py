# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Randomness without state: every draw is keyed by the seed, its purpose and its place.

A resumed run needs no generator state, and a step's attack noise does not depend on what ran before it.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one place, such as ``("order", epoch)``."""
    key = f"{seed}/{purpose}/{'/'.join(map(str, place))}"
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
