# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the training methods and of the certification. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctkd.options import Count, Index, NonNegative, Number, Options, Positive


class GaussianNoiseOptions(Options):
    """The noise."""

    sigma: Positive = 0.25
    """Standard deviation of the noise on each pixel, pixel units; `ctkd smooth` takes it over."""
    draws: Count = 1
    """Noisy images per image and step."""


class NoisyAdversarialOptions(GaussianNoiseOptions):
    """The noise, and the search for the shift. The defaults of the search are this package's own."""

    draws: Count = 2
    """Noisy images per image and step; the same noise serves the search and the loss."""
    penalty: Positive = 2.0
    """Price of a squared unit of L2 distance (γ of the source): larger keeps the shifted image nearer."""
    steps: Index = 5
    """Gradient steps of the search (K of the source); 0 is training with noise alone."""
    step_size: Positive = 0.1
    """Of the search (η1 of the source); at ``1 / (2 * penalty)`` and above it need not converge."""


class SmoothOptions(Options):
    """The smoothed classifier, the statistics, and which samples."""

    sigma: Positive | None = None
    """Standard deviation of the noise, pixel units; None is that of the run's training, where it had noise."""
    selection: Count = 100
    """Noisy images by which the class is chosen (n0 of the source)."""
    draws: Count = 10_000
    """Noisy images by which its probability is bounded (n of the source, which takes 100,000)."""
    alpha: Annotated[Number, Field(gt=0, lt=1)] = 0.001
    """Each certificate is wrong with at most this probability."""
    seed: Index = 0
    """Of the noise; a sample's noise does not depend on the other samples."""
    split: Literal["test", "validation"] = "test"
    """Of the run's data set."""
    start: Index = 0
    """First sample of the split."""
    samples: Count | None = None
    """How many; None is all."""
    radii: tuple[NonNegative, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """L2 radii, pixel units, at which the certified accuracy is reported."""
    device: str = "cpu"
    """Where the network runs, as PyTorch names devices."""
