# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is known about the samples of one batch while the cascade works on it. Core decides here what counts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.accuracy import smallest_margin
from ctkd.api import Found
from ctkd.boxes import Box
from ctkd.certify.store import Row
from ctkd.contract import check_points
from ctkd.errors import Contradiction, RunFailed
from ctkd.propagate import Network, margins_of

PRECISION = torch.float64
"""Arithmetic of the bounds; the network's weights are float32."""
ROUNDING = 1e-10
"""A lower bound counts as greater than zero from here on, times the size of the sample's margins (at least 1): far
above the rounding of float64 bounds, far below anything that matters. See docs/soundness.md."""


@dataclass(eq=False)
class Batch:
    """Samples on their way through the stages. Everything about sample k of the batch is at place k.

    Attributes:
        indices: numbers in the split.
        network: in float32, as it is deployed; ``wide`` is the same in the arithmetic of the bounds.
        box: in float32.
        prediction: (batch,).
        natural, attacked: (batch,), smallest margin at the image, and at any replayed point.
        replayed: (batch,), smallest margin of any replayed point in the arithmetic of the bounds.
        lower: (batch, classes), best lower bounds of the margins.
        proved: the stage that certified each sample; "" for none.
        broke: the stage that found a counterexample to it; "" for none.
        seconds: (batch,).
        device: the name of that where attack and stages compute. All tensors here are on the CPU.
    """

    indices: Sequence[int]
    network: Network
    wide: Network
    x: Tensor
    labels: Tensor
    box: Box
    prediction: Tensor
    natural: Tensor
    attacked: Tensor
    replayed: Tensor
    lower: Tensor
    proved: list[str]
    broke: list[str]
    seconds: Tensor
    device: str

    @staticmethod
    @torch.no_grad()
    def of(network: Network, x: Tensor, labels: Tensor, indices: Sequence[int], box: Box, device: str = "cpu") -> Batch:
        """Only the natural prediction is known."""
        logits = network(x)
        natural = smallest_margin(margins_of(logits, labels), labels)
        lower = torch.full((len(labels), network.classes), -torch.inf, dtype=PRECISION, device=x.device)
        nothing = [""] * len(labels)
        return Batch(
            indices,
            network,
            network.to(PRECISION),
            x,
            labels,
            box,
            logits.argmax(1),
            natural,
            natural.clone(),
            torch.full_like(natural, torch.inf, dtype=PRECISION),
            lower,
            nothing,
            list(nothing),
            torch.zeros(len(labels), dtype=torch.float64),
            device,
        )

    @torch.no_grad()
    def replay(self, rows: Tensor, points: Tensor, by: str = "") -> None:
        """Points inside the boxes, in both arithmetics; ``by`` is the stage that found them."""
        for network, known in ((self.network, self.attacked), (self.wide, self.replayed)):
            dtype = network.dtype
            found = smallest_margin(margins_of(network(points.to(dtype)), self.labels[rows]), self.labels[rows])
            if network is self.network:
                for k in rows[(found <= 0) & (known[rows] > 0)].tolist():
                    self.broke[k] = by
            known[rows] = torch.minimum(known[rows], found)

    def learn(self, rows: Tensor, found: object, name: str, label: str, *, needs_proof: bool) -> bool:
        """Take over what a stage says about some samples, on whatever device it says it.

        Args:
            name, label: the stage, and how messages call it.
            needs_proof: a sample counts as certified only with a proof.

        Returns: whether some bound was not a number; such a bound proves nothing.

        Raises:
            RunFailed: it is not what a stage must return.
            Contradiction: a sample is certified, and broken by a replayed point.
        """
        if not isinstance(found, Found):
            raise RunFailed(f"{label} returned {type(found).__name__}; search must return ctkd.api.Found")
        margins = _checked(found.margins, (len(rows), self.network.classes), label)
        if found.proofs and len(found.proofs) != len(rows):
            raise RunFailed(f"{label} returned {len(found.proofs)} proofs for {len(rows)} samples")
        if found.points is not None:
            x = self.x[rows]
            points = found.points.to(x) if isinstance(found.points, Tensor) else found.points
            self.replay(rows, self.box[rows].clamp(check_points(points, x, label)), name)
        known = torch.where(margins.isnan(), -torch.inf, margins)
        self.lower[rows] = torch.maximum(self.lower[rows], known)
        size = self.lower[rows].abs().amax(1).clamp(min=1)
        enough = smallest_margin(self.lower[rows], self.labels[rows]) > ROUNDING * size
        for k, row in enumerate(rows.tolist()):
            if enough[k] and (not needs_proof or (found.proofs and found.proofs[k] is not None)):
                self.proved[row] = name
        self._contradict(label)
        return bool(margins.isnan().any())

    def _contradict(self, label: str) -> None:
        """A point replayed in the arithmetic of the bounds must not break a certified sample."""
        both = [k for k in (self.replayed <= 0).nonzero().flatten().tolist() if self.proved[k]]
        if both:
            k = both[0]
            lower = float(smallest_margin(self.lower, self.labels)[k])
            raise Contradiction(
                f"sample {self.indices[k]} is certified by {label} (margin at least {lower:.3g}) and "
                f"broken by an attacked point (margin {float(self.replayed[k]):.3g}); a bound is wrong, and nothing "
                "was reported. "
                f"{len(both)} such sample(s) in this batch, network {self.network.sha256()[:12]}"
            )

    def unproved(self, rows: Tensor) -> Tensor:
        """(rows,), boolean."""
        return torch.tensor([self.proved[k] == "" for k in rows.tolist()], dtype=torch.bool)

    def broken(self, rows: Tensor) -> Tensor:
        """(rows,), boolean: whether any replayed point breaks it. Then it is not certified, whatever the bounds say."""
        return self.attacked[rows] <= 0

    def row(self, k: int) -> Row:
        """What is to be stored."""
        bound = float(smallest_margin(self.lower[k : k + 1], self.labels[k : k + 1]))
        if self.attacked[k] <= 0:
            status, stage = "broken", "natural" if self.natural[k] <= 0 else self.broke[k] or "attack"
        else:
            status, stage = ("certified" if self.proved[k] else "undecided"), self.proved[k]
        return Row(
            self.indices[k],
            int(self.labels[k]),
            int(self.prediction[k]),
            status,  # type: ignore[arg-type]
            stage,
            bound if math.isfinite(bound) else None,
            float(self.attacked[k]),
            float(self.seconds[k]),
            self.device,
        )


def _checked(margins: object, wanted: tuple[int, int], label: str) -> Tensor:
    """The margins, on the CPU."""
    if isinstance(margins, Tensor) and margins.shape == wanted and margins.dtype == PRECISION:
        return margins.cpu()
    found = f"{margins.dtype} of shape {tuple(margins.shape)}" if isinstance(margins, Tensor) else type(margins)
    raise RunFailed(f"{label} returned {found}; it must return {PRECISION} of shape {wanted}")


class Stopwatch:
    """Shares the time of a piece of work out among samples."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.began = batch, time.monotonic()

    def lap(self, rows: Tensor) -> None:
        now = time.monotonic()
        if len(rows):
            self.batch.seconds[rows] += (now - self.began) / len(rows)
        self.began = now
