# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the training methods and of the certification. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctkd.options import Count, Index, NonNegative, Number, Options, Positive

Draws = Annotated[Count, Field(le=10**9)]
"""Of one sample."""


class GaussianNoiseOptions(Options):
    """The noise."""

    sigma: Positive = 0.25
    """Standard deviation of the noise on each pixel, pixel units; `ctkd smooth` takes it over."""
    draws: Count = 1
    """Noisy images per image and step."""


class NoisyAdversarialOptions(GaussianNoiseOptions):
    """The noise, and the search for the shift. The defaults of the search are those of the source for CIFAR-10."""

    draws: Count = 4
    """Noisy images per image, in each step of the search and in the loss (s of the source)."""
    penalty: Positive = 1.5
    """Price of a squared unit of L2 distance (γ of the source, 0.25 to 5): larger keeps the shifted image nearer."""
    steps: Index = 4
    """Gradient steps of the search (K of the source); 0 is training with noise alone."""
    step_size: Positive | None = None
    """Of the search (η1 of the source); None is ``0.5 / penalty``, as there."""
    cost: Literal["noisy", "plain"] = "noisy"
    """Whether the distance that is paid for has the noise in it, as in the source, or not."""


class SmoothOptions(Options):
    """The smoothed classifier, the statistics, and which samples."""

    sigma: Positive | None = None
    """Standard deviation of the noise, pixel units; None is that of the run's training, where it had noise."""
    selection: Draws = 100
    """Noisy images by which the class is chosen (n0 of the source)."""
    draws: Draws = 10_000
    """Noisy images by which its probability is bounded (n of the source, which takes 100,000)."""
    alpha: Annotated[Number, Field(gt=0, lt=1)] = 0.001
    """Each certificate is wrong with at most this probability."""
    seed: Annotated[Index, Field(lt=2**53)] = 0
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
