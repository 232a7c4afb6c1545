# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The complete stage and the Marabou program give one answer on the same exported instances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ctkd.accuracy import smallest_margin
from ctkd.boxes import perturbation_box
from ctkd.certify.complete import CompleteOptions, CompleteStage
from ctkd.export import export_instances
from ctkd.propagate import Network, margins_of
from ctkd.train.finish import finalise

from ..export.conftest import ask, marabou
from .nets import Residual

__all__ = ["marabou"]


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10))


def _residual() -> nn.Module:
    branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    first = nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*first, Residual(branch), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10))


def trained(build: Callable[[], nn.Module], x: Tensor, labels: Tensor) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build()
        optimiser = torch.optim.Adam(module.parameters(), 5e-3)
        for _ in range(250):
            rows = torch.randint(len(labels), (128,))
            noisy = (x[rows] + 0.1 * torch.randn_like(x[rows]).sign()).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(module(noisy), labels[rows]).backward()
            optimiser.step()
    return finalise(module, (1, 8, 8))


@pytest.mark.parametrize(("build", "radii"), [(_mlp, (0.06, 0.09)), (_residual, (0.08, 0.12))])
def test_one_answer(tmp_path: Path, marabou: str, build: Callable[[], nn.Module], radii: tuple[float, ...]) -> None:
    data = load_digits()
    x, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    net = trained(build, x, labels)
    rows = (net(x).argmax(1) == labels).nonzero().flatten()[:5]
    stage = CompleteStage(CompleteOptions(timeout=60, attack_starts=1))
    mine, theirs, split = [], [], 0
    for eps in radii:
        box = perturbation_box(x[rows], eps)
        found = stage.search(net.to(torch.float64), box.to(torch.float64), labels[rows], lambda: False)
        assert found.points is not None
        inside = (found.points >= box.lower) & (found.points <= box.upper)
        assert bool(inside.all())
        broken = smallest_margin(margins_of(net(found.points), labels[rows]), labels[rows]) <= 0
        proved = torch.tensor([proof is not None for proof in found.proofs])
        assert bool((broken ^ proved).all())  # nothing is undecided
        split += sum(len(proof["path.split"]) for proof in found.proofs if proof is not None)
        mine += ["unsat" if yes else "sat" for yes in proved.tolist()]
        report = export_instances(
            net, x[rows], labels[rows], rows.tolist(), eps, tmp_path / f"{eps}", name="net", timeout=20
        )
        paths = [report.folder / name for name in report.specifications]
        theirs += [ask(marabou, report.folder / report.model, path).verdict for path in paths]
    assert mine == theirs
    assert set(mine) == {"sat", "unsat"}
    assert split > 0
