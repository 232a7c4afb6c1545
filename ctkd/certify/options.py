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
    device: str | None = None
    """Where attack and bounds are computed, as PyTorch names devices; None is the training's device, or the CPU where
    this machine has not got that. Points and bounds are judged on the CPU."""
    proofs: bool = False
    """Whether stages that search (``alpha-crown``, ``complete``) store proofs in the run folder, for
    ``ctkd check-proofs``. They certify nothing without one then. ReLU and LeakyReLU networks only."""


class ExportOptions(Options):
    """What ``ctkd export`` writes."""

    samples: Count = 10
    """Instances: correctly classified images of the split, drawn with the seed."""
    seed: Index = 0
    """Which images."""
    timeout: Positive = 60.0
    """Seconds per instance in ``instances.csv``."""


class BenchmarkOptions(Options):
    """What ``ctkd export --format vnncomp`` writes."""

    samples: Count = 60
    """Instances, if ``mix`` does not say how many."""
    seed: Index = 0
    """Seed of the instances that lie in the repository; the competition generates them again with its own."""
    mix: str | None = None
    """Instances of each outcome, such as "cheap=10,tight=20,undecided=20,broken=10"; None is as even as it can be."""
    budget: Positive = 21_600.0
    """Seconds that the timeouts add up to; the competition's limit by default."""
    pool: Count = 200
    """Images of each outcome that the repository carries, for seeds to draw from."""
    cheap: tuple[str, ...] = ("ibp", "crown-ibp")
    """Certification stages that count as cheap; the others are tight."""
    name: str | None = None
    """Of the network's file; by default those of the data set and the model."""
