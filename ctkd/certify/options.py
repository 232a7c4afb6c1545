# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options of certification. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctkd.options import Count, Index, Options, PluginTables, Positive


class CertifyOptions(Options):
    """What ``ctkd certify`` does to each sample."""

    stages: Annotated[PluginTables, Field(min_length=1)] = ("ibp", "crown-ibp", "crown")  # type: ignore[assignment]
    """Certification stages, cheap to tight, by name or as tables; each runs on what the ones before left open."""
    split: Literal["test", "validation", "train"] = "test"
    """Part of the data."""
    samples: Count | None = None
    """How many samples; None is all from ``start`` on."""
    start: Index = 0
    """First sample of the split."""
    attack_steps: Count = 40
    """PGD steps of each restart, on the margin."""
    attack_restarts: Count = 2
    """Random starting points of the attack."""
    attack_step_size: Positive = 0.1
    """Relative to the box's half-width."""
    further_attacks: PluginTables = ()
    """Attacks beside PGD, by name or as tables of name and options; each on what those before did not break. Teachers
    are evaluated by the same attacks."""
    batch_size: Count = 250
    """Samples settled together; results are stored per batch."""
    seed: Index = 0
    """Of the attack's starting points."""


class ExportOptions(Options):
    """What ``ctkd export`` writes."""

    samples: Count = 10
    """Instances: correctly classified images of the split, drawn with the seed."""
    seed: Index = 0
    """Which images."""
    timeout: Positive = 60.0
    """Seconds per instance in ``instances.csv``."""
