# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One sample's certificate by randomised smoothing (Cohen et al. 2019, arXiv 1902.02918).

The smoothed classifier g answers with the class that the network gives most often at ``x + sigma z``, z standard
normal. If the network gives a class with probability at least p > 1/2, then g gives it at every input that is less
than ``sigma Phi^-1(p)`` away in L2. p is bounded from below by sampling: the certificate holds with a probability of
at least ``1 - alpha``, over the noise drawn. It speaks about g, not about the network, and about L2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import betainc
from scipy.stats import norm
from torch import Tensor

from ctkd.api import Noise

CHUNK = 1000
"""Noisy images at once. Part of the result: each chunk has random numbers of its own."""
SLACK = 1e-9
"""Of alpha, relative."""


@dataclass(frozen=True)
class SmoothedCertificate:
    """What sampling found out about one sample.

    Attributes:
        predicted: the class that g is certified to give; None where the sampling abstained.
        count: draws on which the network gave the chosen class.
        probability: lower confidence bound of that class's probability under noise.
        radius: L2, pixel units; 0 where it abstained.
    """

    predicted: int | None
    count: int
    probability: float
    radius: float


def lower_confidence_bound(count: int, draws: int, alpha: float) -> float:
    """The one-sided bound of Clopper and Pearson (1934): at most the true probability in all but alpha of the cases.

    Found by bisection, since the distribution function is accurate where its inverse is not: ``scipy.stats.beta.ppf``
    is too large by far, or not a number, for some counts of many draws.
    """
    low, high = 0.0, 1.0 if count > 0 else 0.0
    while low < (middle := (low + high) / 2) < high:
        # The probability of at least so large a count; its rounding is far below what is left of alpha.
        if betainc(count, draws - count + 1, middle) <= alpha * (1 - SLACK):
            low = middle
        else:
            high = middle
    return low


def certificate(chosen: int, count: int, draws: int, alpha: float, sigma: float) -> SmoothedCertificate:
    """What ``count`` of ``draws`` certify of a class that was chosen from other draws."""
    probability = lower_confidence_bound(count, draws, alpha)
    if not probability > 0.5:
        return SmoothedCertificate(None, count, probability, 0.0)
    return SmoothedCertificate(chosen, count, probability, sigma * float(norm.ppf(probability)))


@torch.no_grad()
def certify_sample(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    sample: int,
    *,
    sigma: float,
    selection: int,
    draws: int,
    alpha: float,
    seed: int,
) -> SmoothedCertificate:
    """Choose a class from ``selection`` draws, then bound its probability from ``draws`` others (CERTIFY).

    Args:
        logits: (batch, *input_shape) to (batch, classes).
        x: (*input_shape,), one image.
        sample: its number in the split, which keys its noise together with the seed.
        sigma, selection, draws, alpha, seed: as in ``SmoothOptions``.
    """
    chosen = int(_counts(logits, x, sigma, selection, _noise(seed, "selection", sample)).argmax())
    count = int(_counts(logits, x, sigma, draws, _noise(seed, "estimation", sample))[chosen])
    return certificate(chosen, count, draws, alpha, sigma)


def _noise(seed: int, purpose: str, sample: int) -> Noise:
    return Noise(seed, f"ctkd-smoothing-{purpose}", samples=torch.tensor([sample]))


def _counts(logits: Callable[[Tensor], Tensor], x: Tensor, sigma: float, draws: int, noise: Noise) -> Tensor:
    """(classes,): how often each class wins. Logits that are not finite count for none."""
    total: Tensor | None = None
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        # In float64, whose normal numbers reach 8.5 (float32: 5.8); rounding to the image's type counts to the network.
        z = noise.normal(x.new_empty(1, size, *x.shape, dtype=torch.float64)).squeeze(0)
        found = logits((x + sigma * z).to(x.dtype))
        winners = found.argmax(1)[found.isfinite().all(1)]
        counts = torch.bincount(winners, minlength=found.shape[1])
        total = counts if total is None else total + counts
    assert total is not None
    return total
