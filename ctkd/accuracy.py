# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The one meaning of correct, and the accuracies that follow from it. Core computes them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Attack, Needs, PropagationBackend, Split
from ctkd.boxes import Box, perturbation_box
from ctkd.contract import check_points
from ctkd.distributed import all_sum, share, whole
from ctkd.options import Options
from ctkd.propagate import Network, margins_of
from ctkd.propagate.native import Native
from ctkd.randomness import Noise


def smallest_margin(margins: Tensor, labels: Tensor) -> Tensor:
    """(batch,): the smallest margin over the classes other than the label; -inf where one is not finite."""
    others = margins.scatter(1, labels[:, None], torch.inf)
    finite = margins.isfinite().all(1)
    return torch.where(finite, others.amin(1), -torch.inf)


def is_correct(margins: Tensor, labels: Tensor) -> Tensor:
    """(batch,): all margins greater than zero and finite. A tie is a violation."""
    return smallest_margin(margins, labels) > 0


@torch.no_grad()
def natural_accuracy(network: Callable[[Tensor], Tensor], split: Split, batch: int = 1000) -> float:
    """Fraction of the split that is correct without perturbation."""
    correct = 0
    for start in range(0, len(split), batch):
        x, labels = split.images[start : start + batch], split.labels[start : start + batch]
        correct += int(is_correct(margins_of(network(x), labels), labels).sum())
    return correct / len(split)


def found_inside(
    attack: Attack,
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    box: Box,
    noise: Noise,
    reference: Tensor | None = None,
) -> Tensor:
    """The attack's points, checked and clamped to the box."""
    given = {} if reference is None else {"reference": reference}
    found = attack.perturb(network, x, labels, box, noise, **given)
    return box.clamp(check_points(found, x, f"perturb of {type(attack).__name__}").detach())


def attacked_margins(
    network: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, eps: float, attack: Attack, noise: Noise
) -> Tensor:
    """(batch,): the smallest margin at the clean point and at the attack's point, replayed inside the box."""
    box = perturbation_box(x, eps)
    found = found_inside(attack, network, x, labels, box, noise)
    with torch.no_grad():
        replayed = smallest_margin(margins_of(network(found), labels), labels)
        return torch.minimum(replayed, smallest_margin(margins_of(network(x), labels), labels))


def adversarial_accuracy(
    network: Callable[[Tensor], Tensor],
    split: Split,
    eps: float,
    attack: Attack,
    seed: int,
    batch: int = 500,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Fraction of the split that stays correct under the attack. An upper estimate of the robust accuracy.

    ``between`` is called after each batch and may raise. Several processes share each batch.
    """
    robust = 0
    for start in range(0, len(split), batch):
        rows = _own_rows(split, start, batch)
        if rows:
            x, labels = _samples(split, rows)
            noise = Noise(seed, "evaluation-attack", samples=torch.arange(rows.start, rows.stop))
            robust += int((attacked_margins(network, x, labels, eps, attack, noise) > 0).sum())
        between()
    return whole(robust) / len(split)


def _own_rows(split: Split, start: int, batch: int) -> range:
    """The samples of a batch that are this process's."""
    rows = range(start, min(start + batch, len(split)))
    return rows[share(len(rows))]


def _samples(split: Split, rows: range) -> tuple[Tensor, Tensor]:
    return split.images[rows.start : rows.stop], split.labels[rows.start : rows.stop]


@torch.no_grad()
def interval_report(
    network: Network, split: Split, eps: float, batch: int = 1000, backend: PropagationBackend | None = None
) -> dict[str, Any]:
    """Natural and interval-certified accuracy at ``eps`` by a backend (None: ctkd's), and each activation's state.

    ``layers`` has, per activation, the shares of dead, active and unstable neurons and the mean width of its input.
    Several processes share each batch.
    """
    backend = backend or Native(Options())
    natural = certified = 0
    zeros = torch.zeros(4, dtype=torch.float64, device=split.images.device)
    layers = {network.nodes[i].path: zeros for i in network.activations}
    for start in range(0, len(split), batch):
        rows = _own_rows(split, start, batch)
        if not rows:
            continue
        x, labels = _samples(split, rows)
        flow = backend.propagate(network, x, perturbation_box(x, eps), Needs())
        natural += int(is_correct(margins_of(flow.value[: flow.points], labels), labels).sum())
        certified += int(is_correct(backend.interval_margins(network, flow, labels)[0], labels).sum())
        for i in network.activations:
            lower, upper = flow.pre_activation[i]
            dead, active = (upper <= 0).double().mean(), (lower >= 0).double().mean()
            row = torch.stack([dead, active, 1 - dead - active, (upper - lower).double().mean()]) * len(labels)
            path = network.nodes[i].path
            layers[path] = layers[path] + row
    names = ("dead", "active", "unstable", "width")
    shares = {path: (all_sum(row) / len(split)).tolist() for path, row in layers.items()}
    return {
        "natural_accuracy": whole(natural) / len(split),
        "interval_certified_accuracy": whole(certified) / len(split),
        "layers": {path: dict(zip(names, row, strict=True)) for path, row in shares.items()},
    }
