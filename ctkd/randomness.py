# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Randomness without state: every draw is keyed by the seed, its purpose and its place, and noise by its sample too.

A resumed run needs no generator state, and a sample's noise depends neither on what ran before it nor on the batch,
the process or the order that it is drawn in.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor


def _signed(number: int) -> int:
    """A number below 2^64 as the int64 of the same bits."""
    return number - (1 << 64) if number >> 63 else number


GOLDEN, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The increment of SplitMix64 and the factors of its finaliser."""
BLOCK = 1 << 15
"""Numbers made at once on the CPU, where what fits the cache is fastest; other devices make all at once."""


def _digest(seed: int, purpose: str, place: tuple[int, ...]) -> int:
    key = f"{seed}/{purpose}/{'/'.join(map(str, place))}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one place, such as ``("order", epoch)``."""
    return torch.Generator().manual_seed(_digest(seed, purpose, place) >> 1)


class Noise:
    """Random numbers for one batch; each sample's come from a stream of its own.

    A stream is keyed by seed, purpose, place and sample, so that a sample gets the same numbers in whatever batch,
    order or process it is: ``noise[rows].uniform(x[rows])`` and others like it never depend on the rest of the batch.
    Numbers are made on the device of the tensor that they are for, without waiting for it.

    Every draw gives fresh numbers: the object counts them. ``noise[rows]`` is a draw, too: it makes an independent
    source for some of the samples, which counts its own draws, so two of them differ even for equal rows.

    Args:
        seed, purpose, place: what the numbers are for, such as ``(0, "student-attack", epoch)``.
        samples: (batch,), int64: which samples of the data set these are.

    The numbers are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    Fig. 12-13): the finaliser of a key plus multiples of the golden ratio, once each for sample, draw and element.
    They are no secret: do not use them where an adversary must not guess them.
    """

    def __init__(self, seed: int, purpose: str, *place: int, samples: Tensor) -> None:
        self._keys = _hashed(samples, _signed(_digest(seed, purpose, place)))
        self._draws = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Noise]:
        raise TypeError("Noise cannot be iterated; take some of its samples by noise[rows]")

    def __getitem__(self, rows: Tensor | slice) -> Noise:
        """An independent source for some samples: ``rows`` are indices, a mask, or a slice of the batch."""
        child = object.__new__(Noise)
        keys = self._next()
        child._keys = keys[rows if isinstance(rows, slice) else rows.to(keys.device)]
        child._draws = 0
        return child

    def part(self, rows: slice) -> Noise:
        """Some samples' numbers from here on as they are in this batch, which ``noise[rows]`` are not.

        No draw: neither source moves the other. For batches that are computed in parts, or several times.
        """
        same = object.__new__(Noise)
        same._keys, same._draws = self._keys[rows], self._draws
        return same

    def follow(self, part: Noise) -> None:
        """Go on behind what was drawn from a part."""
        self._draws = part._draws

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape, type and device of ``like``, (batch, ...): all multiples of eps/2 alike.

        ``like``'s values are not read. Raises: ValueError if it is not floating, or of another number of samples.
        """
        if not like.is_floating_point() or like.dim() == 0 or len(like) != len(self):
            raise ValueError(
                f"noise for {len(self)} samples does not fit a tensor of shape {tuple(like.shape)} and {like.dtype}; "
                "take the noise of some samples by noise[rows], and the shape of anything by x.new_empty(shape)"
            )
        keys = self._next().to(like.device)
        spacing = torch.finfo(like.dtype).eps / 2  # 2^-bits: exact in the type, and 1 is out of reach
        bits = round(-math.log2(spacing))
        found = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        flat = found.reshape(len(self), -1) if len(self) else found
        size = flat.shape[1] if len(self) else 0
        rows = max(1, BLOCK // max(1, size)) if like.device.type == "cpu" else max(1, len(self))
        offsets = torch.arange(1, size + 1, device=like.device) * GOLDEN
        for start in range(0, len(self), rows):
            state = keys[start : start + rows, None] + offsets
            # The finaliser's last round leaves the highest 31 bits as they are.
            _finalised(state, rounds=2 if bits <= 31 else 3)
            state.bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)  # the shift keeps the sign
            flat[start : start + rows] = state
        return found.mul_(spacing)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape, type and device of ``like`` (Box and Muller 1958); below 5.8 in float32."""
        exact = like if like.dtype == torch.float64 else like.to(torch.float32)
        radius = (-2 * torch.log1p(-self.uniform(exact))).sqrt_()
        return radius.mul_((2 * math.pi * self.uniform(exact)).cos_()).to(like.dtype)

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """A CPU generator for whatever else is random, always the same object.

        It is keyed by all samples of the batch and their order: what is drawn from it changes where a batch is split
        otherwise, as several processes do. It is seeded on the host, which waits for the samples' device.
        """
        digest = hashlib.sha256(self._next().cpu().numpy().tobytes()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _next(self) -> Tensor:
        """The keys of the next draw, (batch,)."""
        self._draws += 1
        return _finalised(self._keys + _signed(self._draws * GOLDEN % (1 << 64)))


def _hashed(numbers: Tensor, key: int) -> Tensor:
    """Keys of streams from a key and non-negative numbers."""
    return _finalised((numbers.to(torch.int64) + 1) * GOLDEN + key)


def _finalised(state: Tensor, rounds: int = 3) -> Tensor:
    """The finaliser of SplitMix64, in place: a bijection of int64 that leaves no trace of the order of its input."""
    part = torch.empty_like(state)
    for shift, factor in ((30, FIRST), (27, SECOND), (31, 1))[:rounds]:
        torch.bitwise_right_shift(state, shift, out=part)
        state.bitwise_xor_(part.bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            state.mul_(factor)
    return state
