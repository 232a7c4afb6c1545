# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The Magnet loss of a batch of clusters (Rippel et al. 2016, arXiv 1511.05939, eq. 5), as ClusTR uses it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def magnet_loss(features: Tensor, cluster_of: Tensor, class_of: Tensor, gap: float) -> Tensor:
    """``relu( |r - mu|^2 / 2 s^2 + gap + log sum over clusters of other classes of exp(-|r - mu'|^2 / 2 s^2) )``.

    mu are the means of the batch's clusters, and s^2 is the squared distance of the samples to those of their own,
    summed and divided by their number less one. Both carry gradient, as in the published code; its small constants in
    logarithm and denominator are left out.

    Args:
        features: (batch, dim), r.
        cluster_of: (batch,), each sample's cluster, counted from 0 within the batch; none is empty.
        class_of: (clusters,), of two classes at least.
        gap: α.

    Returns:
        (batch,).
    """
    members = one_hot(cluster_of, len(class_of)).to(features.dtype)
    means = members.t() @ features / members.sum(0)[:, None]
    distances = (features[:, None] - means).square().sum(2)
    own = distances.gather(1, cluster_of[:, None]).squeeze(1)
    # Where all samples of each cluster agree there is no scale: any will do.
    variance = (own.sum() / (len(own) - 1)).clamp(min=torch.finfo(own.dtype).tiny ** 0.5)
    same = class_of[cluster_of][:, None] == class_of
    others = (-distances / (2 * variance)).masked_fill(same, -torch.inf).logsumexp(1)
    return (own / (2 * variance) + gap + others).relu()
