# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of the teacher. Light: no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ctkd.options import Count, NonNegative, Options, Positive, Unit

Several = Annotated[Count, Field(ge=2)]


class ClusTROptions(Options):
    """Natural training first, then training on clusters, whose defaults are those of the published code unless told."""

    model: str | None = None
    """Another architecture than the student's, with its default options; None is the student's with the student's."""
    epochs: Count = 15
    """Of the natural training."""
    lr: Positive = 1e-3
    """Of the natural training: Adam's learning rate at its start; it drops to a fifth after 1/2 and 3/4 of it."""
    batch_size: Count = 256
    """Images per step of the natural training."""
    clusters: Count = 2
    """Clusters per class (k). With 1 the teacher's last layer is linear in its features, which objectives on features
    need; with more it has none."""
    cluster_epochs: Count = 10
    """Of the training on clusters; they are found anew before each. Ours: published runs have 25 to 90."""
    cluster_lr: Positive = 1e-4
    """Of the training on clusters: Adam's learning rate at its start."""
    cluster_milestones: tuple[Unit, ...] = (1 / 3, 2 / 3)
    """Fractions of its epochs after which the learning rate drops."""
    cluster_lr_decay: Unit = 0.1
    """Factor at each of them."""
    batch_clusters: Several = 12
    """Clusters per batch (m): one, and the nearest ones of other classes; all of those where there are fewer."""
    batch_samples: Several = 20
    """Images per cluster and batch (d); all of a cluster that has fewer."""
    consistency: NonNegative = 0.0
    """Weight of equal answers within the run's eps (λ of ClusTR+QTRADES, 8 in its published command); 0 is ClusTR
    alone, which sees no adversarial examples."""
    gap: NonNegative = 12.5
    """Distance that clusters of other classes shall keep (α), in units of twice the variance within clusters."""
