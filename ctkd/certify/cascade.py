# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Attack first, then certify what is left, cheap stages before tight ones. Every number comes from stored rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ctkd.accuracy import found_inside
from ctkd.api import Attack, CertificationStage, Found, Split
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.proofs import ProofFolder
from ctkd.certify.settling import PRECISION, Batch, Stopwatch
from ctkd.certify.store import Row, Store
from ctkd.distributed import from_leader, gathered, greatest, rank, world
from ctkd.errors import Interrupted
from ctkd.interrupt import StopRequest
from ctkd.machine import device_name, plain_convolutions
from ctkd.progress import Reporter
from ctkd.propagate import Network
from ctkd.randomness import Noise


@dataclass(frozen=True)
class Certificate:
    """Counts over the samples asked for.

    Attributes:
        natural, certified, broken, undecided: numbers of samples; broken includes the misclassified.
        stages: how many samples each stage certified.
        devices: how many samples were settled on each device.
        complete: False if the samples are a part of the split.
    """

    samples: int
    natural: int
    certified: int
    broken: int
    undecided: int
    stages: Mapping[str, int]
    devices: Mapping[str, int]
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
            "devices": dict(self.devices),
        }


@dataclass(frozen=True, eq=False)
class Cascade:
    """Attack and stages for one network and radius.

    Both compute on ``device``. All else, and with it all that decides what counts, stays on the CPU: the network's
    prediction, the replay of points, and the comparison of bounds with zero.
    """

    network: Network
    eps: float
    attack: Attack
    stages: Mapping[str, CertificationStage]
    seed: int
    device: str = "cpu"
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
        proofs: ProofFolder | None = None,
    ) -> Certificate:
        """Settle the samples that the store does not have yet. ``hint`` tells an interrupted user how to go on.

        Several processes settle a batch each at a time. The leader alone has a store, and writes what all found;
        proofs are written by the process that has them, each before its sample's row is stored.

        Raises:
            Contradiction: a sample is both certified and broken. Its rows are not stored.
            Interrupted: a signal came; finished samples are stored.
        """
        done = from_leader(lambda: {row.sample for row in _rows(store, settings, samples)})
        reporter.begin(f"certifying at eps={self.eps:g}", len(samples), len(done))
        try:
            # A sample's noise is its own: how samples are batched changes no more than the last bits of a margin.
            todo = [i for i in samples if i not in done]
            left = len(todo)
            for start in range(0, len(todo), batch * world()):
                mine = todo[start + rank() * batch :][:batch]
                parts = self.parts(split, mine, lambda: bool(stop), proofs)
                for rows in self._exchanged(parts):
                    if store is not None:
                        store.add(settings, rows)
                    reporter.advance(len(rows))
                    left -= len(rows)
                    _obey(stop, left, rows, hint)
                _obey(stop, left, [], hint)
        finally:
            reporter.end()
            for name in sorted(self.nonsense):
                reporter.warn(f"{self._label(name)} returned NaN for some samples; such bounds prove nothing")
        return from_leader(lambda: count(_rows(store, settings, samples), len(samples) == len(split)))

    def _exchanged(self, parts: Iterator[list[Row]]) -> Iterator[list[Row]]:
        """The rows of all processes' next parts, until none has a part left."""
        while True:
            found = gathered((next(parts, None), self.nonsense))
            if all(part is None for part, _ in found):
                return
            self.nonsense.update(*(names for _, names in found))
            yield [row for part, _ in found for row in part or ()]

    def settle(self, split: Split, indices: list[int], stop: Callable[[], bool] = lambda: False) -> list[Row]:
        """One batch: natural prediction, attack, stages. Without the samples that ``stop`` cuts short."""
        return [row for part in self.parts(split, indices, stop) for row in part]

    def parts(
        self, split: Split, indices: list[int], stop: Callable[[], bool], proofs: ProofFolder | None = None
    ) -> Iterator[list[Row]]:
        """The rows of one batch, each as soon as it is final. After ``stop`` only one more part comes."""
        if not indices:
            return
        x, labels = split.images[indices], split.labels[indices]
        batch = Batch.of(self.network, x, labels, indices, perturbation_box(x, self.eps), device_name(self.device))
        box = batch.box.to(PRECISION)
        watch = Stopwatch(batch)
        self._attack(batch)
        left = waiting = torch.arange(len(indices))
        for name, stage in self.stages.items():
            if getattr(stage, "search", None) is None:
                # Attacked samples go through these as well: that is how a contradiction would show.
                self._learn(batch, left, self._ask(stage, box[left], labels[left], stop), name)
                left = left[batch.unproved(left)]
                if len(left) == 0:
                    break
                continue
            watch.lap(waiting)
            left = left[batch.unproved(left) & ~batch.broken(left)]
            yield [batch.row(k) for k in waiting.tolist() if k not in left]
            waiting = left
            for chunk in torch.split(left, getattr(stage, "at_once", 1)) if len(left) else ():
                if stop():
                    break
                self._learn(batch, chunk, self._ask(stage, box[chunk], labels[chunk], stop), name, proofs)
                watch.lap(chunk)
                # What a signal cut short is not final, nor what is undecided and has another stage to go.
                last = name == list(self.stages)[-1] and not stop()
                settled = chunk if last else chunk[~batch.unproved(chunk) | batch.broken(chunk)]
                waiting = waiting[~torch.isin(waiting, settled)]
                yield [batch.row(k) for k in settled.tolist()]
            if stop():
                return
            left = waiting
        watch.lap(waiting)
        yield [batch.row(k) for k in waiting.tolist()]

    @cached_property
    def _attacked(self) -> Network:
        """The network on the device."""
        return self.network.to(self.device)

    @cached_property
    def _bounded(self) -> Network:
        """The same in the arithmetic of the bounds."""
        return self._attacked.to(PRECISION)

    def _attack(self, batch: Batch) -> None:
        found, right = batch.x.clone(), batch.natural > 0
        if right.any():
            noise = Noise(self.seed, "certification-attack", samples=torch.tensor(batch.indices)[right])
            x, labels = batch.x[right].to(self.device), batch.labels[right].to(self.device)
            box = batch.box[right].to(self.device)
            found[right] = found_inside(self.attack, self._attacked, x, labels, box, noise).cpu()
        batch.replay(torch.arange(len(found)), found)

    @torch.no_grad()
    def _ask(self, stage: CertificationStage, box: Box, labels: Tensor, stop: Callable[[], bool]) -> Found:
        """What a stage says about boxes; what it returns lies on the device."""
        given = self._bounded, box.to(self.device), labels.to(self.device)
        search = getattr(stage, "search", None)
        with plain_convolutions(self.device):
            return Found(stage.margins(*given)) if search is None else search(*given, stop)

    def _learn(self, batch: Batch, rows: Tensor, found: Found, name: str, proofs: ProofFolder | None = None) -> None:
        if batch.learn(rows, found, name, self._label(name), needs_proof=proofs is not None):
            self.nonsense.add(name)
        for row, proof in zip(rows.tolist(), found.proofs, strict=False):
            if (
                proofs is not None
                and proof is not None
                and batch.proved[row]
                and not bool(batch.broken(rows.new_tensor([row])))
            ):
                proofs.write(batch.indices[row], int(batch.labels[row]), batch.box[row : row + 1], proof)

    def _label(self, stage: str) -> str:
        return self.labels.get(stage, f"stage {stage!r}")


def _obey(stop: StopRequest, left: int, rows: list[Row], hint: str) -> None:
    (signal,) = greatest(stop.signal_number or 0)
    if signal and left:
        after = f" after sample {rows[-1].sample}" if rows else ""
        raise Interrupted(f"interrupted{after}; finished samples are stored. {hint}", signal)


def _rows(store: Store | None, settings: int, samples: range) -> list[Row]:
    assert store is not None  # the leader's
    return store.rows(settings, samples)


def count(rows: list[Row], complete: bool) -> Certificate:
    """Counts from stored rows."""
    stages = Counter(row.stage for row in rows if row.status == "certified")
    statuses = [row.status for row in rows]
    return Certificate(
        samples=len(rows),
        natural=sum(row.stage != "natural" for row in rows),
        certified=statuses.count("certified"),
        broken=statuses.count("broken"),
        undecided=statuses.count("undecided"),
        stages=stages,
        devices=Counter(row.device for row in rows),
        complete=complete,
        seconds=sum(row.seconds for row in rows),
    )
