# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of certification. Light: no torch."""

from __future__ import annotations

from typing import Literal

from ctkd.options import Count, Index, Options, Positive


class CertifyOptions(Options):
    """What ``ctkd certify`` does to each sample."""

    stages: tuple[str, ...] = ("ibp", "crown-ibp", "crown")
    """Certification stages, cheap to tight; each runs on what the ones before left open."""
    split: Literal["test", "validation", "train"] = "test"
    samples: Count | None = None
    """How many samples; None is all from ``start`` on."""
    start: Index = 0
    attack_steps: Count = 40
    attack_restarts: Count = 2
    attack_step_size: Positive = 0.1
    """Relative to the box's half-width."""
    batch_size: Count = 250
    precision: Literal["float64", "float32"] = "float64"
    """Arithmetic of the bounds. The network's weights are float32 in both cases."""
    seed: Index = 0


class ExportOptions(Options):
    """What ``ctkd export`` writes."""

    samples: Count = 10
    """Instances: correctly classified images of the split, drawn with the seed."""
    seed: Index = 0
    timeout: Positive = 60.0
    """Seconds per instance in ``instances.csv``."""
