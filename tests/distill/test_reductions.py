# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Relations between objectives that their definitions promise, on one step's loss and gradient in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import Enclosure
from ctkd.config import resolve
from ctkd.divergence import divergence_from

from ..train.steps import RAMP, make, one_step, same
from .helpers import BATCH, CLASSES, FEATURES, Frozen, Sure, box, head, numbers

ONE, TWO = Frozen(40), Frozen(50)
CLEAN_ONLY: dict[str, Any] = {"weight_rate": 0, "temperature_rate": 0}


def distil(name: str, *teachers: Any, bound: str = "adversarial", **options: Any) -> Any:
    return one_step(make("bound", bound), make("distill", name, **options), *(teachers or (ONE,)))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        # ARD with alpha = 1 and T = 1 is AD-CERT at alpha 0; so is IAD-I with full trust, or before it begins.
        (("ard", {"temperature": 1}), ("logits", {})),
        (("iad", {"beta": 0}), ("logits", {})),
        (("iad", {"begin_epoch": 2, "temperature": 3}), ("ard", {"temperature": 3})),
        (("iad", {"beta": 0, "partial_trust": False, "alpha": 0.3}), ("ard", {"temperature": 1, "alpha": 0.3})),
        # At alpha 0 the teacher is not heard.
        (("iad", {"alpha": 0}), ("ard", {"alpha": 0})),
        (("rslad", {}), ("logits", {"variant": "rslad"})),
        (("rslad", {"adversarial_weight": 1, "clean_weight": 0}), ("logits", {})),
        (("rslad", {"adversarial_weight": 0, "clean_weight": 1}), ("logits", {"variant": "natural"})),
        # AKD without its teacher is adversarial training; with nothing else, AD-CERT up to the teacher's entropy.
        (("akd", {"mix": 0}), ("none", {})),
        (("logits", {"weight": 0}), ("none", {})),
        (("logits-box", {"weight": 0}), ("none", {})),
        # On a point the worst case is the case.
        (("logits-box", {}), ("logits", {})),
        (("logits-box", {"temperature": 3, "weight": 0.4}), ("logits", {"temperature": 3, "weight": 0.4})),
        (("features+logits", {"feature_weight": 0}), ("logits", {})),
        (("features+logits", {"logit_weight": 0, "feature_weight": 2}), ("features", {"weight": 2})),
    ],
)
def test_one_teacher(left: tuple[str, dict[str, Any]], right: tuple[str, dict[str, Any]]) -> None:
    same(distil(left[0], **left[1]), distil(right[0], **right[1]))


@pytest.mark.parametrize(
    ("left", "teacher", "right"),
    [
        # Two teachers of which only one is heard, at the input where it is heard.
        (("b-mtard", {**CLEAN_ONLY, "adversarial_weight": 1}), ONE, ("logits", {"teacher_input": "adversarial"})),
        (("b-mtard", {**CLEAN_ONLY, "adversarial_weight": 0}), TWO, ("logits", {"variant": "natural"})),
        (("iad-ii", {"adversarial_weight": 0, "natural_weight": 0}), ONE, ("none", {})),
        (
            ("iad-ii", {"adversarial_weight": 1, "natural_weight": 0, "beta": 0}),
            ONE,
            ("logits", {"teacher_input": "adversarial"}),
        ),
        (
            ("iad-ii", {"adversarial_weight": 0, "natural_weight": 1, "temperature": 2}),
            TWO,
            ("logits", {"teacher_input": "adversarial", "temperature": 2}),
        ),
        (
            ("iad-ii", {"adversarial_weight": 0.4, "natural_weight": 0, "begin_epoch": 9}),
            ONE,
            ("logits", {"teacher_input": "adversarial", "weight": 0.4}),
        ),
    ],
)
def test_two_teachers(left: tuple[str, dict[str, Any]], teacher: Any, right: tuple[str, dict[str, Any]]) -> None:
    same(distil(left[0], ONE, TWO, **left[1]), distil(right[0], teacher, **right[1]))


def test_akd_with_nothing_but_the_teacher_is_ad_cert_up_to_a_constant() -> None:
    akd, logits = distil("akd", mix=1), distil("logits")
    assert not torch.isclose(akd[0].total, logits[0].total)
    for left, right in zip(akd[1], logits[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


def test_options_change_something() -> None:
    """So that the equalities above are not those of a method that ignores its options."""
    totals = [
        distil(name, **options)[0].total.item()
        for name, options in [
            ("logits", {}),
            ("rslad", {}),
            ("logits", {"variant": "natural"}),
            ("logits", {"teacher_input": "adversarial"}),
            ("ard", {}),
            ("iad", {}),
            ("iad", {"partial_trust": False}),
            ("akd", {}),
            ("akd", {"teacher_input": "adversarial"}),
            ("features+logits", {}),
        ]
    ]
    assert len({round(total, 9) for total in totals}) == len(totals)


def test_rslad_cert_at_alpha_zero_is_rslad() -> None:
    """Attack included: the objective brings it, so what the command line would train is compared."""
    base = {"attack.steps": 3, "train.eps": 0.1, "distill.name": "rslad"}
    cert = resolve({**base, "bound.name": "mtl-ibp", "bound.alpha": 0})
    plain = resolve({**base, "bound.name": "adversarial"})
    assert cert.attack == plain.attack
    assert cert.attack.options.model_dump()["objective"] == "kl-teacher"
    found = [one_step(c.bound.create(), c.distill.create(), ONE, attack=c.attack.create()) for c in (cert, plain)]
    same(*found)
    hard = one_step(plain.bound.create(), plain.distill.create(), ONE)
    assert not torch.isclose(hard[0].total, found[0][0].total)  # the soft-label attack finds other points


def test_rslad_cert_mixes_rslad_with_the_loss_of_the_box() -> None:
    """(1 - alpha) (5/6 KL(p(x) || q(x_adv)) + 1/6 KL(p(x) || q(x))) + alpha CE(box)."""
    loss, _ = one_step(make("bound", "mtl-ibp", alpha=0.3), make("distill", "rslad"), ONE)
    attacked, clean, box_loss = (
        loss.terms[name] for name in ("distill/logits/point", "distill/logits-clean/point", "robust/box")
    )
    assert not torch.allclose(attacked, clean)
    expected = 0.7 * (5 * attacked + clean) / 6 + 0.3 * box_loss
    torch.testing.assert_close(loss.total, expected.mean())


def test_what_was_set_beats_the_attack_that_an_objective_brings() -> None:
    flags = {"bound.name": "mtl-ibp", "distill.name": "rslad", "attack.objective": "margin"}
    assert resolve(flags).attack.options.model_dump()["objective"] == "margin"
    usual = resolve({"bound.name": "mtl-ibp", "distill.name": "logits"})
    assert usual.attack.options.model_dump()["objective"] == "cross-entropy"


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "cc-ibp"])
def test_features_and_logits_without_points_is_features(name: str) -> None:
    same(distil("features+logits", bound=name), distil("features", bound=name))


# Worst-case divergence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ibp", "cc-ibp", "crown-ibp", "mtl-ibp", "adversarial"])
def test_a_one_hot_teacher_turns_logits_box_into_the_robust_loss(name: str) -> None:
    same(distil("logits-box", Sure(), bound=name), distil("none", Sure(), bound=name))


@pytest.mark.parametrize("name", ["ibp", "crown-ibp"])
@pytest.mark.parametrize("temperature", [1, 3])
def test_logits_box_bounds_the_divergence_at_every_point_of_the_box(name: str, temperature: float) -> None:
    """On the enclosures that training makes, against images sampled in their boxes."""
    seen: list[tuple[Enclosure, Any]] = []
    objective = make("distill", "logits-box", temperature=temperature)
    original = objective.loss

    def spy(enclosure: Enclosure, lesson: Any) -> Tensor:
        seen.append((enclosure, lesson.teacher["clean"].logits))
        return original(enclosure, lesson)

    objective.loss = spy
    bound = make("bound", name)
    combine = bound.combine
    networks = []

    def watch(step: Any) -> Tensor:
        networks.append(step.network)
        return combine(step)

    bound.combine = watch
    one_step(bound, objective, ONE)
    ((enclosure, teacher),), (network,) = seen, networks
    assert enclosure.kind == "box"
    worst = objective.bound(enclosure, teacher)
    low, high = enclosure.inputs.lower, enclosure.inputs.upper
    rng = torch.Generator().manual_seed(1)
    for i in range(200):
        share = torch.rand(low.shape, dtype=low.dtype, generator=rng)
        share = share.round() if i % 2 else share
        found = divergence_from(teacher, network(low + share * (high - low)), temperature)
        assert (found <= worst + 1e-12).all()


def test_logits_box_without_width_is_the_divergence() -> None:
    weight, bias = head()
    centre, teacher = numbers(3, BATCH, FEATURES), numbers(5, BATCH, CLASSES)
    bound = make("distill", "logits-box").bound(box(centre, torch.zeros_like(centre)), teacher)
    torch.testing.assert_close(bound, divergence_from(teacher, centre @ weight.T + bias))


def test_logits_box_on_a_loss_of_the_methods_own_judges_the_box() -> None:
    """As loss fusion and TAPS make them: no margins, a loss, and the functionals of the box."""
    enclosure = box(numbers(3, BATCH, FEATURES), numbers(4, BATCH, FEATURES).abs())
    own = enclosure.estimated(torch.full((BATCH,), 7.0, dtype=torch.float64))
    assert own.margins is None
    objective, teacher = make("distill", "logits-box"), numbers(5, BATCH, CLASSES)
    torch.testing.assert_close(objective.bound(own, teacher), objective.bound(enclosure, teacher))


def test_logits_box_needs_functionals() -> None:
    from ctkd.errors import RunFailed

    bare = dataclasses.replace(box(numbers(3, BATCH, FEATURES), numbers(4, BATCH, FEATURES).abs()), lower=None)
    with pytest.raises(RunFailed, match=r"distill.name=logits-box needs bounds of linear functionals .* gives none"):
        make("distill", "logits-box").bound(bare, numbers(5, BATCH, CLASSES))


# Feature map -------------------------------------------------------------------------------------------------


def test_the_term_of_a_linear_map_bounds_every_point_of_the_interval() -> None:
    from ctkd.api import Lesson, TeacherOutputs

    objective = make("distill", "features", map="linear", weight=1.0)
    (matrix,) = objective.prepare((FEATURES, 3), torch.Generator().manual_seed(0))
    a = matrix.detach().double()
    centre, radius, target = numbers(3, BATCH, FEATURES), numbers(4, BATCH, FEATURES).abs(), numbers(9, BATCH, 3)
    taught = ({"clean": TeacherOutputs(numbers(5, BATCH, CLASSES), target)},)
    lesson = Lesson(target[:, 0], torch.zeros(BATCH), RAMP, taught, {}, lambda name, value: value)
    term = objective.distance(box(centre, radius), lesson).detach() * 3  # a mean over three features
    rng = torch.Generator().manual_seed(2)
    for i in range(200):
        share = 2 * torch.rand(BATCH, FEATURES, dtype=torch.float64, generator=rng) - 1
        u = centre + (share.sign() if i % 2 else share) * radius
        assert (((u @ a.T - target) ** 2).sum(1) <= term + 1e-9).all()
    # Each coordinate is met by a corner of its own, so the bound cannot be lowered coordinate by coordinate.
    met = torch.zeros(BATCH, dtype=torch.float64)
    for k in range(3):
        corners = [centre + sign * a[k].sign() * radius for sign in (1, -1)]
        met += torch.maximum(*(((u @ a[k]) - target[:, k]) ** 2 for u in corners))
    torch.testing.assert_close(met, term)
