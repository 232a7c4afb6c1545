# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a benchmark is made of in these tests: digits that a small network certifies, leaves undecided, or loses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctkd.boxes import perturbation_box
from ctkd.export.benchmark import BenchmarkReport, Candidate, Text, write_benchmark
from ctkd.propagate import Network, crown_pre_activation, margins_of, propagate, relaxed_margins

EPS = 0.06
MIX = {"cheap": 2, "tight": 3, "undecided": 4, "broken": 3}
TEXT = Text("digits", "test", "by hand", ["crown-ibp"], ["crown"], Counter(samples=4, natural=3), "@misc{x}", "1.0")


class Material(NamedTuple):
    """Candidates with their images and the attack's points."""

    network: Network
    candidates: list[Candidate]
    images: Tensor
    found: Tensor


def attacked(network: Network, x: Tensor, labels: Tensor) -> Tensor:
    """A few signed steps on the margin, inside the box."""
    box = perturbation_box(x, EPS)
    point = x.clone()
    for _ in range(8):
        point = point.detach().requires_grad_()
        others = margins_of(network(point), labels).scatter(1, labels[:, None], torch.inf)
        (gradient,) = torch.autograd.grad(others.amin(1).sum(), point)
        point = box.clamp(point - EPS / 3 * gradient.sign())
    return point.detach()


def sorted_digits(network: Network, images: Tensor, labels: Tensor) -> Material:
    """The first 200 correctly classified digits, as `ctkd certify` would sort them."""
    right = (network(images).argmax(1) == labels).nonzero().flatten()[:200]
    images, labels = images[right], labels[right]
    wide, box = network.to(torch.float64), perturbation_box(images, EPS).to(torch.float64)
    relaxed = {
        "crown-ibp": relaxed_margins(wide, propagate(wide, None, box).pre_activation, box, labels),
        "crown": relaxed_margins(wide, crown_pre_activation(wide, box), box, labels),
    }
    proved = {name: (margins > 0).sum(1) == network.classes - 1 for name, margins in relaxed.items()}
    found = attacked(network, images, labels)
    margins = margins_of(network(found), labels).scatter(1, labels[:, None], torch.inf).amin(1)
    candidates = []
    for k, sample in enumerate(right.tolist()):
        cheap, tight, broken = bool(proved["crown-ibp"][k]), bool(proved["crown"][k]), float(margins[k]) <= 0
        outcome = "cheap" if cheap else "tight" if tight else "broken" if broken else "undecided"
        stage = {"cheap": "crown-ibp", "tight": "crown", "broken": "attack", "undecided": ""}[outcome]
        candidates.append(Candidate(sample, int(labels[k]), outcome, stage, None, float(margins[k]), 0.25))
    counts = Counter(candidate.outcome for candidate in candidates)
    assert min(counts.values()) >= 8, counts
    assert len(counts) == 4
    return Material(network, candidates, images, found)


def write(material: Material, folder: Path, **changes: Any) -> BenchmarkReport:
    options: dict[str, Any] = {
        **material._asdict(),
        "eps": EPS,
        "folder": folder,
        "name": "digits-cnn",
        "seed": 5,
        "budget": 21_600,
        "text": TEXT,
        "samples": 12,
        "mix": dict(MIX),
        "hint": "; more come from there",
    }
    return write_benchmark(**(options | changes))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
