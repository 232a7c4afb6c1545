# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training behind Gaussian noise. Neither method bounds anything: their losses are estimates, and eps plays no part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy

from ctkd.api import Box, Enclosure, Needs
from ctkd.propagate import margins_of
from ctkd_smoothing.options import GaussianNoiseOptions, NoisyAdversarialOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Schedule, Step
    from ctkd.propagate import Network


class GaussianNoise:
    """``mean over draws of loss(x + sigma z)``, z standard normal (Cohen et al. 2019). An estimate, not a bound.

    Noisy images are not clamped to [0, 1], as in the source. Batch norm takes the statistics of the clean batch; the
    deployed network has those of clean images, too. Objectives act on the noisy points.
    """

    Options = GaussianNoiseOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False
    needs_radius = True
    point: Literal["adversarial", "clean"] = "clean"

    def __init__(self, options: GaussianNoiseOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(points=frozenset({"clean"}))

    def combine(self, step: Step) -> Tensor:
        x = step["clean"].inputs.lower
        return _mean_loss(step, x, _noise(step, x, self.options))


class NoisyAdversarial:
    """Noisy adversarial learning (arXiv 2010.10987, Algorithm 1). An estimate, not a bound.

    The source bounds the worst expected loss at noisy inputs, over all distributions of them within a Wasserstein
    budget of the data, by a constant plus the mean of
    ``sup over x' of loss(x' + sigma z) - penalty |x' + sigma z - x|^2``: the transport cost is paid for the noise, too.
    Its training searches one x' for each image by gradient ascent, on the average over some draws of z, which are new
    in each step, and descends on the mean loss around it. ``cost="plain"`` leaves the noise out of the distance, which
    the source found worse.

    Ours: the loss has draws of its own, the network of the search has the batch statistics of the step as constants,
    and x' is not clamped to [0, 1]. The source's certificate, of a distribution and not of an image, is not computed.
    Objectives act on the noisy points around x'.
    """

    Options = NoisyAdversarialOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False
    needs_radius = True
    point: Literal["adversarial", "clean"] = "clean"

    def __init__(self, options: NoisyAdversarialOptions) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(points=frozenset({"clean"}))

    def combine(self, step: Step) -> Tensor:
        x = step["clean"].inputs.lower
        noise = _noise(step, x, self.options)
        shifted = worst_shift(
            step.network.detach(), x, step.labels, lambda: _noise(step, x, self.options), self.options
        )
        step.record("noisy-adversarial/distance", (shifted - x).flatten(1).norm(dim=1))
        return _mean_loss(step, shifted, noise)


def worst_shift(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    draw: Callable[[], Sequence[Tensor]],
    options: NoisyAdversarialOptions,
) -> Tensor:
    """Gradient ascent on ``mean over noise of CE(x' + noise) - penalty |x' + noise - x|^2`` from x, per sample.

    Args:
        logits: (batch, *input_shape) to (batch, classes).
        x: (batch, *input_shape).
        labels: (batch,).
        draw: the noise of one step, tensors like x.
        options: ``cost="plain"`` takes the noise out of the distance.

    Returns:
        x', like x, detached.
    """
    x = x.detach()
    point = x.clone()
    step_size = options.step_size if options.step_size is not None else 0.5 / options.penalty
    for _ in range(options.steps):
        noise = draw()
        with torch.enable_grad():
            point.requires_grad_()
            losses = [cross_entropy(logits(point + z), labels, reduction="sum") for z in noise]
            (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), point)
        distance = point - x
        if options.cost == "noisy":
            distance = distance + torch.stack(tuple(noise)).mean(0)
        point = (point + step_size * (gradient - 2 * options.penalty * distance)).detach()
    return point


def _noise(step: Step, x: Tensor, options: GaussianNoiseOptions) -> list[Tensor]:
    return [options.sigma * step.noise.normal(x) for _ in range(options.draws)]


def _mean_loss(step: Step, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
    losses = [step.loss(_enclosure(step.network, (x + z).detach(), step.labels)) for z in noise]
    return torch.stack(losses).mean(0)


def _enclosure(network: Network, x: Tensor, labels: Tensor) -> Enclosure:
    """The student at a batch of points."""
    tap = network.features_node
    features, logits = network.evaluate(x, tap if tap is not None else network.output, network.output)
    margins = margins_of(logits, labels)
    return Enclosure(
        inputs=Box(x, x),
        kind="point",
        centre=None if tap is None else features,
        radius=None if tap is None else torch.zeros_like(features),
        margins=margins,
        logits=logits,
        lower=lambda rows: (rows @ logits.unsqueeze(2)).squeeze(2),
        upper_margins=margins,
    )
