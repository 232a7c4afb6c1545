# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Attack first, then certify what is left, cheap stages before tight ones. Every number comes from stored rows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctkd.accuracy import found_inside, smallest_margin
from ctkd.api import Attack, CertificationStage, Split
from ctkd.boxes import perturbation_box
from ctkd.certify.store import Row, Store
from ctkd.distributed import from_leader, gathered, greatest, rank, world
from ctkd.errors import Contradiction, Interrupted, RunFailed
from ctkd.interrupt import StopRequest
from ctkd.progress import Reporter
from ctkd.propagate import Network, margins_of
from ctkd.randomness import Noise

PRECISION = torch.float64
"""Arithmetic of the bounds; the network's weights are float32."""
ROUNDING = 1e-10
"""A lower bound counts as greater than zero from here on, times the size of the sample's margins (at least 1): far
above the rounding of float64 bounds, far below anything that matters. See docs/soundness.md."""


@dataclass(frozen=True)
class Certificate:
    """Counts over the samples asked for.

    Attributes:
        natural, certified, broken, undecided: numbers of samples; broken includes the misclassified.
        stages: how many samples each stage certified.
        complete: False if the samples are a part of the split.
    """

    samples: int
    natural: int
    certified: int
    broken: int
    undecided: int
    stages: Mapping[str, int]
    complete: bool
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Accuracies as fractions, with an interval where samples are undecided and the sampling error of a subset."""
        n = self.samples
        certified = self.certified / n
        return {
            "natural_accuracy": self.natural / n,
            "adversarial_accuracy": (n - self.broken) / n,
            "certified_accuracy": certified,
            "robust_accuracy_interval": [certified, (n - self.broken) / n],
            "certified_standard_error": None if self.complete else math.sqrt(certified * (1 - certified) / n),
            "counts": {"certified": self.certified, "broken": self.broken, "undecided": self.undecided},
            "stages": dict(self.stages),
        }


@dataclass(frozen=True, eq=False)
class Cascade:
    """Attack and stages for one network and radius."""

    network: Network
    eps: float
    attack: Attack
    stages: Mapping[str, CertificationStage]
    seed: int
    labels: Mapping[str, str] = field(default_factory=dict)
    """How messages name the stages."""
    nonsense: set[str] = field(default_factory=set)
    """Stages that returned NaN."""

    def run(
        self,
        split: Split,
        samples: range,
        store: Store | None,
        settings: int,
        batch: int,
        reporter: Reporter,
        stop: StopRequest,
        hint: str,
    ) -> Certificate:
        """Settle the samples that the store does not have yet. ``hint`` tells an interrupted user how to go on.

        Several processes settle a batch each at a time. The leader alone has a store, and writes what all found.

        Raises:
            Contradiction: a sample is both certified and broken. Its rows are not stored.
            Interrupted: a signal came; finished batches are stored.
        """
        done = from_leader(lambda: {row.sample for row in _rows(store, settings, samples)})
        reporter.begin(f"certifying at eps={self.eps:g}", len(samples), len(done))
        try:
            # A sample's noise is its own: how samples are batched changes no more than the last bits of a margin.
            todo = [i for i in samples if i not in done]
            for start in range(0, len(todo), batch * world()):
                mine = todo[start + rank() * batch :][:batch]
                found = gathered((self.settle(split, mine) if mine else [], self.nonsense))
                rows = [row for settled, _ in found for row in settled]
                self.nonsense.update(*(names for _, names in found))
                if store is not None:
                    store.add(settings, rows)
                reporter.advance(len(rows))
                (signal,) = greatest(stop.signal_number or 0)
                if signal and start + len(rows) < len(todo):
                    raise Interrupted(
                        f"interrupted after sample {rows[-1].sample}; finished samples are stored. {hint}", signal
                    )
        finally:
            reporter.end()
            for name in sorted(self.nonsense):
                reporter.warn(f"{self._label(name)} returned NaN for some samples; such bounds prove nothing")
        return from_leader(lambda: count(_rows(store, settings, samples), len(samples) == len(split)))

    def settle(self, split: Split, indices: list[int]) -> list[Row]:
        """One batch: natural prediction, attack, stages."""
        began = time.monotonic()
        x, labels = split.images[indices], split.labels[indices]
        box = perturbation_box(x, self.eps)
        with torch.no_grad():
            logits = self.network(x)
            natural = smallest_margin(margins_of(logits, labels), labels)
        found = x.clone()
        correct = natural > 0
        if correct.any():
            noise = Noise(self.seed, "certification-attack", samples=torch.tensor(indices)[correct])
            found[correct] = found_inside(self.attack, self.network, x[correct], labels[correct], box[correct], noise)
        with torch.no_grad():
            attacked = torch.minimum(natural, smallest_margin(margins_of(self.network(found), labels), labels))
            lower, settled_by = self._certify(x, labels)
            self._contradict(indices, labels, found, lower, settled_by)
        seconds = (time.monotonic() - began) / len(indices)
        rows = []
        for k, index in enumerate(indices):
            # A sample that any replayed point breaks is not certified, whatever the bounds say.
            broken, certified = float(attacked[k]) <= 0, settled_by[k] != ""
            status = "broken" if broken else "certified" if certified else "undecided"
            stage = ("attack" if natural[k] > 0 else "natural") if broken else settled_by[k] if certified else ""
            bound = float(lower[k])
            rows.append(
                Row(
                    index,
                    int(labels[k]),
                    int(logits[k].argmax()),
                    status,  # type: ignore[arg-type]
                    stage,
                    bound if math.isfinite(bound) else None,
                    float(attacked[k]),
                    seconds,
                )
            )
        return rows

    def _certify(self, x: Tensor, labels: Tensor) -> tuple[Tensor, list[str]]:
        """Smallest lower bound per sample, elementwise best over the stages, and the stage that proved it.

        Attacked samples go through the stages as well: that is how a contradiction would show.
        """
        network = self.network.to(PRECISION)
        box = perturbation_box(x, self.eps).to(PRECISION)
        best = torch.full((len(labels), network.classes), -torch.inf, dtype=PRECISION)
        by = [""] * len(labels)
        left = torch.arange(len(labels))
        for name, stage in self.stages.items():
            margins = stage.margins(network, box[left], labels[left])
            self._check_margins(margins, len(left), name)
            # A bound that is not a number proves nothing.
            if bool(margins.isnan().any()):
                self.nonsense.add(name)
            margins = torch.where(margins.isnan(), -torch.inf, margins)
            best[left] = torch.maximum(best[left], margins)
            size = best[left].abs().amax(1).clamp(min=1)
            proved = smallest_margin(best[left], labels[left]) > ROUNDING * size
            for k in left[proved].tolist():
                by[k] = name
            left = left[~proved]
            if len(left) == 0:
                break
        return smallest_margin(best, labels), by

    def _check_margins(self, margins: object, batch: int, name: str) -> None:
        wanted = (batch, self.network.classes)
        if isinstance(margins, Tensor) and margins.shape == wanted and margins.dtype == PRECISION:
            return
        found = f"{margins.dtype} of shape {tuple(margins.shape)}" if isinstance(margins, Tensor) else type(margins)
        raise RunFailed(f"{self._label(name)} returned {found}; it must return {PRECISION} of shape {wanted}")

    def _label(self, stage: str) -> str:
        return self.labels.get(stage, f"stage {stage!r}")

    def _contradict(self, indices: list[int], labels: Tensor, found: Tensor, lower: Tensor, by: list[str]) -> None:
        """The attacked point, replayed in the arithmetic of the bounds, must not break a certified sample."""
        network = self.network.to(PRECISION)
        replayed = smallest_margin(margins_of(network(found.to(PRECISION)), labels), labels)
        both = [k for k in (replayed <= 0).nonzero().flatten().tolist() if by[k]]
        if both:
            k = both[0]
            raise Contradiction(
                f"sample {indices[k]} is certified by {self._label(by[k])} (margin at least {float(lower[k]):.3g}) and "
                f"broken by an attacked point (margin {float(replayed[k]):.3g}); a bound is wrong, and nothing was "
                f"reported. "
                f"{len(both)} such sample(s) in this batch, network {self.network.sha256()[:12]}"
            )


def _rows(store: Store | None, settings: int, samples: range) -> list[Row]:
    assert store is not None  # the leader's
    return store.rows(settings, samples)


def count(rows: list[Row], complete: bool) -> Certificate:
    """Counts from stored rows."""
    stages: dict[str, int] = {}
    for row in rows:
        if row.status == "certified":
            stages[row.stage] = stages.get(row.stage, 0) + 1
    statuses = [row.status for row in rows]
    return Certificate(
        samples=len(rows),
        natural=sum(row.stage != "natural" for row in rows),
        certified=statuses.count("certified"),
        broken=statuses.count("broken"),
        undecided=statuses.count("undecided"),
        stages=stages,
        complete=complete,
        seconds=sum(row.seconds for row in rows),
    )
