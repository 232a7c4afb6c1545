# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options that architectures share, and what all of them ask of their input. Never imports torch."""

from __future__ import annotations

from typing import Literal

from ctkd.errors import BadInput
from ctkd.options import Number, Options, Positive

ActivationName = Literal["relu", "leaky-relu", "sigmoid", "tanh"]


class ImageNetOptions(Options):
    """Of every network that begins with a convolution."""

    batch_norm: bool = True
    """Batch norm before each activation."""
    activation: ActivationName = "relu"
    """After each hidden layer."""
    mean: tuple[Number, ...] = ()
    """Subtracted from the pixels, which lie in [0, 1]: one number, one per channel, or none."""
    std: tuple[Positive, ...] = ()
    """Divides what is left: one number, one per channel, or none."""


def check_images(model: str, input_shape: tuple[int, ...], smallest: int) -> None:
    """Raises: BadInput unless the input is an image (channels, height, width) of at least smallest x smallest."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise BadInput(
            f"model {model} needs images of at least {smallest}x{smallest} pixels, found inputs of shape {input_shape}"
        )


def per_channel(name: str, values: tuple[float, ...], channels: int, default: float) -> tuple[float, ...]:
    """``values`` as one number per channel; none means ``default``. Raises: BadInput on any other count."""
    if len(values) not in (0, 1, channels):
        raise BadInput(f"model.{name} has {len(values)} numbers; accepted: 1, or {channels}, one per channel")
    return values if len(values) == channels else (values or (default,)) * channels
