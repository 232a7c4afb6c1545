# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Relations between the methods that their definitions promise, on one step's loss and gradient in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import Schedule, TeacherOutputs

from ..train.steps import BATCH, RAMP, batch, make, one_step, same


@pytest.mark.parametrize("name", ["cc-ibp", "mtl-ibp"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_alpha_one_is_ibp(name: str, batch_norm: bool) -> None:
    same(
        one_step(make("bound", name, alpha=1), batch_norm=batch_norm),
        one_step(make("bound", "ibp"), batch_norm=batch_norm),
    )


@pytest.mark.parametrize("name", ["cc-ibp", "mtl-ibp"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_alpha_zero_is_adversarial_training(name: str, batch_norm: bool) -> None:
    same(
        one_step(make("bound", name, alpha=0), batch_norm=batch_norm),
        one_step(make("bound", "adversarial"), batch_norm=batch_norm),
    )


def test_alpha_between_is_neither() -> None:
    between = one_step(make("bound", "cc-ibp", alpha=0.5))[0].total
    assert between != one_step(make("bound", "ibp"))[0].total
    assert between != one_step(make("bound", "adversarial"))[0].total


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_cc_ibp_is_never_above_mtl_ibp(alpha: float) -> None:
    cc = one_step(make("bound", "cc-ibp", alpha=alpha))[0].terms["robust/mixed"]
    terms = one_step(make("bound", "mtl-ibp", alpha=alpha))[0].terms
    mtl = (1 - alpha) * terms["robust/point"] + alpha * terms["robust/box"]
    assert cc.shape == (BATCH,)
    assert (cc <= mtl + 1e-12).all()
    assert (cc < mtl - 1e-9).any()


def test_crown_ibp_with_beta_zero_is_ibp() -> None:
    same(one_step(make("bound", "crown-ibp", beta_start=0, beta_end=0)), one_step(make("bound", "ibp")))


def test_crown_ibp_mixes_margins_by_beta() -> None:
    """At 60 % of the ramp beta = 1 + (0 - 1) * 0.6 = 0.4; the mixed margins lie between the two pure ones."""
    method = make("bound", "crown-ibp", beta_start=1, beta_end=0)
    assert RAMP.between(1.0, 0.0) == pytest.approx(0.4)
    mixed = one_step(method)[0].total
    pure = [one_step(make("bound", "crown-ibp", beta_start=b, beta_end=b))[0].total for b in (0, 1)]
    assert min(pure) - 1e-9 <= mixed <= max(pure)


@pytest.mark.parametrize("name", ["adversarial", "ibp", "crown-ibp", "cc-ibp", "mtl-ibp"])
def test_zero_weight_features_change_nothing(name: str) -> None:
    def teacher(x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(x.new_ones(len(x), 4), x.new_ones(len(x), 8))

    objective = make("distill", "features", weight=0)
    same(one_step(make("bound", name), objective, teacher), one_step(make("bound", name)))


def test_zero_weight_logits_change_nothing() -> None:
    def teacher(x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(x.new_ones(len(x), 4), None)

    objective = make("distill", "logits", weight=0)
    same(one_step(make("bound", "mtl-ibp"), objective, teacher), one_step(make("bound", "mtl-ibp")))


def test_ad_cert_with_a_one_hot_teacher_is_mtl_ibp() -> None:
    """The teacher's probabilities are exactly 0 and 1: 0 log 0 counts as 0, in the loss and in its gradient."""
    _, labels = batch()

    def teacher(x: Tensor) -> TeacherOutputs:
        logits = torch.full((BATCH, 4), -1e6, dtype=torch.float64).scatter(1, labels[:, None], 1e6)
        assert (logits.softmax(1) == 0).any()
        return TeacherOutputs(logits, None)

    same(
        one_step(make("bound", "mtl-ibp"), make("distill", "logits"), teacher),
        one_step(make("bound", "mtl-ibp")),
    )


def test_features_on_a_mixed_enclosure_is_cc_dist() -> None:
    """Against the source's formula: the larger of the two squared end-point distances, times 5 / dim, summed."""
    target = torch.linspace(0, 1, 8, dtype=torch.float64)

    def teacher(x: Tensor) -> TeacherOutputs:
        return TeacherOutputs(x.new_zeros(len(x), 4), target.expand(len(x), 8))

    seen: dict[str, Tensor] = {}
    objective = make("distill", "features")
    original = objective.loss

    def spy(enclosure: Any, *rest: Any) -> Tensor:
        seen["low"], seen["high"] = enclosure.centre - enclosure.radius, enclosure.centre + enclosure.radius
        return original(enclosure, *rest)

    objective.loss = spy
    loss, _ = one_step(make("bound", "cc-ibp", alpha=0.3), objective, teacher)
    ends = torch.maximum((seen["low"] - target) ** 2, (seen["high"] - target) ** 2)
    torch.testing.assert_close(loss.terms["distill/features/mixed"], 5 / 8 * ends.sum(1))
    assert (seen["high"] > seen["low"]).any()


def test_kappa_weighs_the_clean_loss() -> None:
    """kappa goes linearly with eps: at 60 % of the ramp from 1 to 0 it is 0.4, on the clean loss."""
    ibp = one_step(make("bound", "ibp"), kappa_start=1.0, kappa_end=0.0)[0]
    expected = 0.4 * ibp.terms["clean"].mean() + 0.6 * ibp.terms["robust/box"].mean()
    torch.testing.assert_close(ibp.total, expected)


def test_warmup_is_natural_training() -> None:
    warmup = Schedule(eps=0.0, target=0.05, phase="warmup", epoch=0, step=0)
    loss, _ = one_step(make("bound", "cc-ibp"), schedule=warmup)
    assert set(loss.terms) == {"clean"}
    torch.testing.assert_close(loss.total, loss.terms["clean"].mean())
    regularised, _ = one_step(make("bound", "cc-ibp"), schedule=warmup, shi_weight=0.5)
    assert {"shi/tightness", "shi/balance"} <= set(regularised.terms)
