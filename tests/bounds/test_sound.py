# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a method says of its training loss: a sound one is never below the loss at any input of the box."""

from __future__ import annotations

import pytest
import torch

from ctkd.api import cross_entropy
from ctkd.boxes import perturbation_box
from ctkd.plugins import load, registry
from ctkd.propagate import margins_of, trace

from ..train.steps import FULL, batch, make, one_step

OWN = [name for name in registry().names("bound") if registry().find("bound", name).target.startswith("ctkd.")]


def is_sound(name: str) -> bool:
    entry = registry().find("bound", name)
    return bool(load(entry.target, entry.origin).sound)


def test_only_pure_bounds_say_that_they_are_sound() -> None:
    assert {name for name in OWN if is_sound(name)} == {"ibp", "crown-ibp"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ibp", {}),
        ("crown-ibp", {}),
        ("crown-ibp", {"loss_fusion": True}),
        ("crown-ibp", {"beta_start": 0.4, "beta_end": 0.4}),
        ("crown-ibp", {"beta_start": 0.4, "beta_end": 0.4, "loss_fusion": True}),
    ],
)
def test_sound_losses_are_above_the_loss_at_every_input(name: str, options: dict[str, object]) -> None:
    loss, _ = one_step(make("bound", name, **options), schedule=FULL, batch_norm=False)
    bound = loss.terms["robust/box"].detach()
    torch.manual_seed(3)  # the network and the batch of one_step
    module = make("model", "cnn-small", channels=3, hidden=8, batch_norm=False).build((1, 8, 8), 4).double()
    network = trace(module, (1, 8, 8)).bind().detach()
    x, labels = batch()
    rng = torch.Generator().manual_seed(1)
    box = perturbation_box(x, FULL.eps)
    for _ in range(50):
        part = torch.rand(x.shape, dtype=x.dtype, generator=rng).round(
            decimals=int(torch.randint(2, (), generator=rng))
        )
        point = box.clamp(box.lower + part * (box.upper - box.lower))
        assert (cross_entropy(margins_of(network(point), labels)) <= bound + 1e-12).all()
