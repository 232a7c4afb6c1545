# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""HDGE (Liu and Abbeel 2020, arXiv 2007.09070): cross entropy plus a contrastive estimate of -log p(x | y)."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import cross_entropy, normalize

from ctkd.api import Needs
from ctkd_hdge.options import HDGEOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ctkd.api import Kind, Schedule, Step


class HDGE:
    """``loss(clean) + weight * contrast(clean)``, no box and no attack at all. An estimate, not a bound.

    A classifier's logits f(x) are read as negative energies: p(x | y) is proportional to exp(f(x)[y]). Its
    normalisation, a sum over all images, is replaced by one over earlier samples. The contrast is the cross entropy of
    telling the sample among those, by the scores of its own class, see ``contrast``. The samples' logits wait in a
    queue, first in first out, without gradient; it is part of checkpoints. At the start it holds random directions.

    Ours: a shorter queue; no noise on the inputs; the terms for log p(x) by Langevin samples and by the same contrast
    are left out. With several processes each has a queue of its own samples. Objectives act on the clean point.
    """

    Options = HDGEOptions
    evaluates: frozenset[Kind] = frozenset({"point"})
    sound = False
    point: Literal["adversarial", "clean"] = "clean"

    def __init__(self, options: HDGEOptions) -> None:
        self.options = options
        self.queue: Tensor | None = None
        self.place = 0

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(points=frozenset({"clean"}))

    def combine(self, step: Step) -> Tensor:
        clean = step["clean"]
        assert clean.logits is not None
        queue = self._queue(clean.logits)
        term = step.record("hdge/contrast", contrast(clean.logits, step.labels, queue, self.options.temperature))
        self._push(queue, clean.logits.detach())
        return step.loss(clean) + self.options.weight * term

    def _queue(self, logits: Tensor) -> Tensor:
        """(queue, classes), unit vectors, float32, where the logits are."""
        if self.queue is None:
            generator = torch.Generator().manual_seed(0)
            self.queue = normalize(torch.randn(self.options.queue, logits.shape[1], generator=generator))
        return self.queue.to(logits.device)

    def _push(self, queue: Tensor, logits: Tensor) -> None:
        newest = normalize(logits[-len(queue) :].float())
        rows = (torch.arange(len(newest), device=queue.device) + self.place) % len(queue)
        self.queue = queue.index_copy(0, rows, newest)
        self.place = (self.place + len(newest)) % len(queue)

    def state_dict(self) -> dict[str, Any]:
        if self.queue is None:
            return {"queue": None, "place": 0}
        content = base64.b64encode(self.queue.cpu().numpy().tobytes()).decode()
        return {"queue": content, "classes": self.queue.shape[1], "place": self.place}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self.place, self.queue = values["place"], None
        if values["queue"] is not None:
            content = bytearray(base64.b64decode(values["queue"]))
            self.queue = torch.frombuffer(content, dtype=torch.float32).reshape(-1, values["classes"])


def contrast(logits: Tensor, labels: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """``-log( exp(s(u) / T) / (exp(s(u) / T) + sum over k of exp(s(q_k) / T)) )`` of each sample.

    u is the sample's logit vector, normalised to length 1 in L2, and q_k are those of earlier samples. The score is
    ``s(v) = log(sum over classes c of exp(d_c v_c))`` with d the one-hot label, so every other class contributes
    exp(0), as in the published code. The paper writes ``s(v) = v[label]``; the order of scores is the same.

    Args:
        logits: (batch, classes).
        labels: (batch,).
        queue: (negatives, classes), unit vectors without gradient.
        temperature: T.

    Returns:
        (batch,).
    """
    others = math.log(logits.shape[1] - 1) if logits.shape[1] > 1 else -math.inf
    own = normalize(logits).gather(1, labels[:, None])
    negatives = queue.to(logits.dtype).t()[labels]  # (batch, negatives): each one's entry of the sample's class
    scores = torch.cat([own, negatives], 1)
    scores = torch.logaddexp(scores, torch.full_like(scores, others)) / temperature
    return cross_entropy(scores, torch.zeros_like(labels), reduction="none")
