# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every objective against its formula written out in loops over samples and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import Enclosure, TeacherOutputs
from ctkd.plugins import registry

from ..train.steps import make
from .helpers import BATCH, CLASSES, FEATURES, box, head, labels, lesson, numbers, one_hot, point


@dataclass
class Given:
    """What one loss is computed from. Leaves require gradients."""

    own: Tensor = field(default_factory=lambda: numbers(1, BATCH, CLASSES).requires_grad_())
    clean: Tensor = field(default_factory=lambda: numbers(2, BATCH, CLASSES).requires_grad_())
    centre: Tensor = field(default_factory=lambda: numbers(3, BATCH, FEATURES).requires_grad_())
    radius: Tensor = field(default_factory=lambda: numbers(4, BATCH, FEATURES).abs().requires_grad_())
    teachers: list[dict[str, Tensor]] = field(
        default_factory=lambda: [
            {"clean": numbers(5, BATCH, CLASSES), "adversarial": numbers(6, BATCH, CLASSES)},
            {"clean": numbers(7, BATCH, CLASSES), "adversarial": numbers(8, BATCH, CLASSES)},
        ]
    )
    target: Tensor = field(default_factory=lambda: numbers(9, BATCH, FEATURES))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.own, self.clean, self.centre, self.radius]

    def enclosure(self, kind: str) -> Enclosure:
        return point(self.own, self.centre) if kind == "point" else box(self.centre, self.radius, kind)

    def loss(self, objective: Any, kind: str) -> tuple[Tensor, dict[str, Tensor]]:
        enclosure = self.enclosure(kind)
        taught = [
            {name: TeacherOutputs(logits, self.target) for name, logits in teacher.items()} for teacher in self.teachers
        ]
        recorded: dict[str, Tensor] = {}
        robust = enclosure.robust_loss()
        given = lesson(robust, taught[: objective.teachers], {"clean": point(self.clean)}, recorded=recorded)
        return objective.loss(enclosure, given), recorded


# The formulas, one sample at a time; z, p, ... are lists of scalars. ------------------------------------------


def log_softmax(z: Tensor, temperature: float = 1.0) -> list[Tensor]:
    scaled = [value / temperature for value in z]
    largest = max(float(value.detach()) for value in scaled)
    total = sum((value - largest).exp() for value in scaled)
    assert isinstance(total, Tensor)
    return [value - largest - total.log() for value in scaled]


def kl(reference: Tensor, z: Tensor, temperature: float = 1.0) -> Tensor:
    log_p, log_q = log_softmax(reference, temperature), log_softmax(z, temperature)
    return torch.stack([p.exp() * (p - q) for p, q in zip(log_p, log_q, strict=True)]).sum()


def cross_entropy(z: Tensor, label: int) -> Tensor:
    return -log_softmax(z)[label]


def probability(z: Tensor, label: int) -> Tensor:
    return log_softmax(z)[label].exp()


Formula = Callable[[Given, int, int], Tensor]


def p(g: Given, i: int, teacher: int = 0, where: str = "clean") -> Tensor:
    return g.teachers[teacher][where][i]


def logits(g: Given, i: int, y: int) -> Tensor:
    return 0.3 * cross_entropy(g.own[i], y) + 0.7 * 4 * kl(p(g, i, 0, "adversarial"), g.own[i], 2)


def rslad_usual(g: Given, i: int, y: int) -> Tensor:
    return kl(p(g, i), g.own[i]) * 5 / 6 + kl(p(g, i), g.clean[i]) / 6


def logits_natural(g: Given, i: int, y: int) -> Tensor:
    return kl(p(g, i), g.clean[i])


def ard(g: Given, i: int, y: int) -> Tensor:
    return 0.8 * 9 * kl(p(g, i), g.own[i], 3) + 0.2 * cross_entropy(g.clean[i], y)


def rslad(g: Given, i: int, y: int) -> Tensor:
    return 0.4 * kl(p(g, i), g.own[i]) + 0.9 * kl(p(g, i), g.clean[i])


def iad(g: Given, i: int, y: int) -> Tensor:
    a = probability(p(g, i, 0, "adversarial"), y) ** 0.3
    both = a * 4 * kl(p(g, i), g.own[i], 2) + (1 - a) * kl(g.clean[i], g.own[i])
    return 0.6 * both + 0.4 * cross_entropy(g.clean[i], y)


def iad_code(g: Given, i: int, y: int) -> Tensor:
    a = probability(p(g, i, 0, "adversarial"), y) ** 0.1
    return kl(p(g, i), g.own[i]) + (1 - a) * kl(g.clean[i], g.own[i])


def iad_before(g: Given, i: int, y: int) -> Tensor:
    return kl(p(g, i), g.own[i])


def iad_ii(g: Given, i: int, y: int) -> Tensor:
    a = probability(p(g, i, 0, "adversarial"), y) ** 0.1
    first = a * kl(p(g, i, 0, "adversarial"), g.own[i], 2) + (1 - a) * kl(g.clean[i], g.own[i])
    second = kl(p(g, i, 1, "adversarial"), g.own[i], 2)
    return 0.25 * cross_entropy(g.own[i], y) + 0.5 * 4 * first + 0.25 * 4 * second


def iad_ii_before(g: Given, i: int, y: int) -> Tensor:
    first, second = (kl(p(g, i, t, "adversarial"), g.own[i]) for t in (0, 1))
    return 0.25 * cross_entropy(g.own[i], y) + 0.5 * first + 0.25 * second


def akd(g: Given, i: int, y: int) -> Tensor:
    log_q = log_softmax(g.own[i])
    soft = [0.3 * probability(p(g, i, 0, "adversarial"), k) + 0.7 * (k == y) for k in range(CLASSES)]
    return torch.stack([-share * q for share, q in zip(soft, log_q, strict=True)]).sum()


def b_mtard_off(g: Given, i: int, y: int) -> Tensor:
    adversarial = kl(p(g, i, 0, "adversarial") / 2, g.own[i])
    natural = kl(p(g, i, 1, "clean") / 3, g.clean[i])
    return 0.3 * adversarial + 0.7 * natural


def feature_distance(centre: Tensor, radius: Tensor, target: Tensor, weight: float) -> Tensor:
    total = centre.new_zeros(())
    for c, r, t in zip(centre, radius, target, strict=True):
        total = total + torch.maximum((c - r - t) ** 2, (c + r - t) ** 2)
    return weight / len(target) * total


def features_box(g: Given, i: int, y: int) -> Tensor:
    robust = box(g.centre, g.radius).robust_loss()[i]
    return robust + feature_distance(g.centre[i], g.radius[i], g.target[i], 5)


def features_logits(g: Given, i: int, y: int) -> Tensor:
    still = torch.zeros(FEATURES, dtype=torch.float64)
    followed = 0.25 * cross_entropy(g.own[i], y) + 0.75 * 4 * kl(p(g, i), g.own[i], 2)
    return followed + feature_distance(g.centre[i], still, g.target[i], 3)


def features_logits_box(g: Given, i: int, y: int) -> Tensor:
    return box(g.centre, g.radius).robust_loss()[i] + feature_distance(g.centre[i], g.radius[i], g.target[i], 3)


def logits_box(g: Given, i: int, y: int) -> Tensor:
    weight, bias = head()
    prediction = [value.exp() for value in log_softmax(p(g, i), 2)]
    exponents = []
    for j in range(CLASSES):
        row = [prediction[k] - float(k == j) for k in range(CLASSES)]
        low = torch.stack([row[k] * bias[k] for k in range(CLASSES)]).sum()
        for f in range(FEATURES):
            merged = torch.stack([row[k] * weight[k, f] for k in range(CLASSES)]).sum()
            low = low + merged * g.centre[i, f] - merged.abs() * g.radius[i, f]
        exponents.append((-low / 2).exp())
    negative_entropy = torch.stack([q * q.log() for q in prediction]).sum()
    worst = 4 * (negative_entropy + torch.stack(exponents).sum().log())
    return 0.4 * box(g.centre, g.radius).robust_loss()[i] + 0.6 * worst


CASES: list[tuple[str, dict[str, Any], str, Formula]] = [
    ("logits", {"weight": 0.7, "temperature": 2, "teacher_input": "adversarial"}, "point", logits),
    ("logits", {"variant": "natural"}, "point", logits_natural),
    ("ard", {"alpha": 0.8, "temperature": 3}, "point", ard),
    ("rslad", {}, "point", rslad_usual),
    ("rslad", {"adversarial_weight": 0.4, "clean_weight": 0.9}, "point", rslad),
    ("iad", {"alpha": 0.6, "beta": 0.3, "temperature": 2}, "point", iad),
    ("iad", {"partial_trust": False, "begin_epoch": 1}, "point", iad_code),
    ("iad", {"begin_epoch": 2}, "point", iad_before),
    ("iad-ii", {"temperature": 2, "begin_epoch": 1}, "point", iad_ii),
    ("iad-ii", {"begin_epoch": 2}, "point", iad_ii_before),
    ("akd", {"mix": 0.3, "teacher_input": "adversarial"}, "point", akd),
    (
        "b-mtard",
        {
            "adversarial_weight": 0.3,
            "weight_rate": 0,
            "temperature_rate": 0,
            "adversarial_temperature": 2,
            "natural_temperature": 3,
        },
        "point",
        b_mtard_off,
    ),
    ("features", {}, "box", features_box),
    ("features", {}, "mixed", features_box),
    ("features+logits", {"feature_weight": 3, "logit_weight": 0.75, "temperature": 2}, "point", features_logits),
    ("features+logits", {"feature_weight": 3, "logit_weight": 0.75, "temperature": 2}, "box", features_logits_box),
    ("logits-box", {"weight": 0.6, "temperature": 2}, "box", logits_box),
    ("logits-box", {"weight": 0.6, "temperature": 2}, "mixed", logits_box),
]


@pytest.mark.parametrize(("name", "options", "kind", "formula"), CASES)
def test_values_and_gradients(name: str, options: dict[str, Any], kind: str, formula: Formula) -> None:
    given = Given()
    found, recorded = given.loss(make("distill", name, **options), kind)
    expected = torch.stack([formula(given, i, int(y)) for i, y in enumerate(labels())])
    assert found.shape == (BATCH,)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    weights = torch.arange(1.0, BATCH + 1, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((weights * loss).sum(), given.leaves, allow_unused=True, materialize_grads=True)
        for loss in (found, expected)
    ]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
    assert recorded
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients[0])


def test_every_objective_has_a_reference() -> None:
    own = {e.name for e in registry().entries.values() if e.kind == "distill" and e.target.startswith("ctkd.")}
    assert {name for name, *_ in CASES} == own - {"none"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "options", "kind", "formula"), CASES)
def test_extreme_logits_stay_finite(
    name: str, options: dict[str, Any], kind: str, formula: Formula, dtype: torch.dtype
) -> None:
    """Student and teachers as sure as 1000 against -1000, right or wrong: probabilities underflow to 0."""

    def extreme(seed: int) -> Tensor:
        return (1e3 * numbers(seed, BATCH, CLASSES).sign()).to(dtype)

    given = Given(
        own=extreme(1).requires_grad_(),
        clean=extreme(2).requires_grad_(),
        centre=(numbers(3, BATCH, FEATURES, scale=1e3)).to(dtype).requires_grad_(),
        radius=(numbers(4, BATCH, FEATURES, scale=1e3)).abs().to(dtype).requires_grad_(),
        teachers=[{"clean": extreme(5 + t), "adversarial": extreme(7 + t)} for t in range(2)],
        target=numbers(9, BATCH, FEATURES).to(dtype),
    )
    found, recorded = given.loss(make("distill", name, **options), kind)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert all(term.isfinite().all() for term in recorded.values())
    for gradient in torch.autograd.grad(found.sum(), given.leaves, allow_unused=True, materialize_grads=True):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "options"), [("logits", {}), ("akd", {"mix": 1}), ("logits-box", {}), ("iad", {})])
def test_a_one_hot_teacher_is_the_label(name: str, options: dict[str, Any]) -> None:
    """Then the divergence is the cross entropy; the trust of IAD is 1."""
    sure = one_hot(labels())
    given = Given(teachers=[{"clean": sure, "adversarial": sure}])
    found, _ = given.loss(make("distill", name, **options), "point")
    expected = torch.stack([cross_entropy(given.own[i], int(y)) for i, y in enumerate(labels())])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    left, right = (torch.autograd.grad(loss.sum(), given.own)[0] for loss in (found, expected))
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_a_map_is_that_of_the_formula() -> None:
    """features with map=linear: centre A c, radius |A| r."""
    given = Given()
    objective = make("distill", "features", map="linear", weight=2.0)
    given.target = numbers(9, BATCH, 3)
    (matrix,) = objective.prepare((FEATURES, 3), torch.Generator().manual_seed(0))
    found, _ = given.loss(objective, "box")
    expected = []
    for i in range(BATCH):
        rows = [matrix[k].double() for k in range(3)]
        centre = torch.stack(
            [torch.stack([a * c for a, c in zip(row, given.centre[i], strict=True)]).sum() for row in rows]
        )
        radius = torch.stack(
            [torch.stack([a.abs() * r for a, r in zip(row, given.radius[i], strict=True)]).sum() for row in rows]
        )
        robust = box(given.centre, given.radius).robust_loss()[i]
        expected.append(robust + feature_distance(centre, radius, given.target[i], 2))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-8)
    leaves = [given.centre, given.radius, matrix]
    for left, right in zip(
        torch.autograd.grad(found.sum(), leaves),
        torch.autograd.grad(torch.stack(expected).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
