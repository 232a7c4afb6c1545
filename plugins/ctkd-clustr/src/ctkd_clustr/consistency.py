# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The term for equal answers around each image that ClusTR+QTRADES adds: TRADES with an attack of one step."""

from __future__ import annotations

import torch
from torch import Tensor

from ctkd.api import Noise
from ctkd.boxes import perturbation_box
from ctkd.propagate import Network

STEP = 1.25
"""Step of the attack, relative to the radius; 10/255 at 8/255 in the published code."""


def consistency(network: Network, x: Tensor, logits: Tensor, eps: float, noise: Noise) -> Tensor:
    """Cross entropy of the class probabilities near each image with those at the image, an estimate of its maximum.

    The point near the image starts anywhere within ``eps``, and takes one signed gradient step towards a larger value.
    Gradient flows through the probabilities at both points, as in the published code. There the second ones are the
    softmax of the sums of exponentials, not these sums divided by their total, which are taken here.

    Args:
        network: classifier by distances to clusters, float32.
        x: (batch, *input_shape), in [0, 1].
        logits: (batch, classes), the network's at x.
        eps: L-infinity radius, pixel units.
        noise: of these samples, for the start.

    Returns:
        (batch,).
    """
    box, targets = perturbation_box(x, eps), logits.softmax(1)
    frozen = network.detach()
    start = (x + eps * (2 * noise.uniform(x) - 1)).clamp(box.lower, box.upper).requires_grad_()
    (gradient,) = torch.autograd.grad(_cross_entropy(targets.detach(), frozen(start)).sum(), start)
    near = (start.detach() + STEP * eps * gradient.sign()).clamp(box.lower, box.upper)
    return _cross_entropy(targets, network(near))


def _cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(1)).sum(1)
