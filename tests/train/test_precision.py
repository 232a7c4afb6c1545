# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training steps that compute in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.plugins import registry
from tests.train.steps import BATCH, batch, make, one_step

METHODS = registry().names("bound")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_every_bound_method_stays_near_its_float32_step(name: str, precision: str) -> None:
    plain, exact = one_step(make("bound", name))
    lowered, found = one_step(make("bound", name), precision=precision)
    assert lowered.total.dtype == plain.total.dtype
    assert lowered.total.item() == pytest.approx(plain.total.item(), rel=0.1)
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (exact, found))
    assert b.isfinite().all()
    assert torch.cosine_similarity(a, b, dim=0) > 0.9


class Recorded:
    """An attack that keeps the networks and points that it was given."""

    def __init__(self) -> None:
        self.dtypes: list[set[torch.dtype]] = []

    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Any, noise: Any, reference: Any = None) -> Tensor:
        self.dtypes.append({tensor.dtype for node in logits.nodes if node.op for _, tensor in node.op.tensors()})
        return box.upper.clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("precision", "attacked", "bounded"), [("fp32", False, False), ("mixed", True, False), ("bf16", True, True)]
)
def test_what_computes_in_bfloat16(precision: str, attacked: bool, bounded: bool) -> None:
    attack = Recorded()
    loss, _ = one_step(make("bound", "cc-ibp"), attack=attack, precision=precision)
    assert loss.flow is not None
    assert (torch.bfloat16 in attack.dtypes[0]) is attacked
    assert ({value.dtype for value, _ in loss.flow.entering.values()} == {torch.bfloat16}) is bounded


def test_points_lie_in_the_float32_box() -> None:
    x, _ = batch()
    loss, _ = one_step(make("bound", "cc-ibp"), precision="mixed")
    assert loss.attacked is not None
    assert loss.attacked.shape[0] == BATCH
    assert ((loss.attacked - x).abs() <= 0.03 + 1e-12).all()
