# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Objectives, attacks and backends as strangers write them: good ones, and many that break one part of the contract."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from ctkd.api import Box, Enclosure, Lesson, Needs, Noise
from ctkd.options import Options
from ctkd.propagate import CleanPass, Flow, Graph, Network
from ctkd.propagate.native import Native


class Plain:
    """Takes options and keeps them."""

    Options: type[Options] = Options

    def __init__(self, options: Any) -> None:
        self.options = options


# Objectives ----------------------------------------------------------------------------------------------


class Follow(Plain):
    """The squared distance of the point's logits from the teacher's, added."""

    reads = frozenset({"point"})
    teachers = 1
    teacher_inputs = frozenset({"clean"})
    student_points = frozenset[str]()
    needs_features = False

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        assert enclosure.logits is not None
        return lesson.robust + (enclosure.logits - lesson.teacher["clean"].logits).square().mean(1)


class ReadsAdversarial(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return super().loss(enclosure, lesson) + lesson.teacher["adversarial"].logits.mean(1)


class ReadsStudent(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return super().loss(enclosure, lesson) + lesson.points["clean"].robust_loss()


class ReadsFeatures(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        features = lesson.teacher["clean"].features
        assert features is not None
        return super().loss(enclosure, lesson) + features.mean(1)


class ReadsSecondTeacher(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return super().loss(enclosure, lesson) + lesson.teachers[1]["clean"].logits.mean(1)


class BatchMean(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return super().loss(enclosure, lesson).mean()


class Deaf(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return lesson.robust


class Root(Follow):
    """A distance whose gradient is infinite where it is 0."""

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        assert enclosure.logits is not None
        return lesson.robust + (enclosure.logits - lesson.teacher["clean"].logits).square().sum(1).sqrt()


class Logarithm(Follow):
    """The logarithm of a probability that may be 0."""

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        assert enclosure.logits is not None
        teacher = lesson.teacher["clean"].logits.softmax(1)
        return lesson.robust + (enclosure.logits.softmax(1) * (teacher.log() - enclosure.logits)).sum(1)


class WritesLogits(Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        lesson.teacher["clean"].logits.sub_(lesson.teacher["clean"].logits.mean(1, keepdim=True))
        return super().loss(enclosure, lesson)


class ForgetsItsMean(Follow):
    """A running mean of the divergence that checkpoints do not hold."""

    mean = 0.0

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        assert enclosure.logits is not None
        target = lesson.teacher["clean"].logits.log_softmax(1)
        term = kl_div(enclosure.logits.log_softmax(1), target, reduction="none", log_target=True).sum(1)
        self.mean = 0.9 * self.mean + 0.1 * float(term.detach().mean())
        return lesson.robust + term * (1 + self.mean)


class LearnsACopy(Follow):
    """Trains a tensor that prepare did not return."""

    def prepare(self, widths: tuple[int | None, int | None], generator: torch.Generator) -> list[Tensor]:
        made = torch.randn(1, generator=generator).requires_grad_()
        self.scale = made.detach().clone().requires_grad_()
        return [made]

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        return super().loss(enclosure, lesson) * self.scale.square()


# Attacks -------------------------------------------------------------------------------------------------


class Step(Plain):
    """One signed step from a random point."""

    sign = 1.0

    def perturb(self, logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        point = (box.lower + noise.uniform(x) * (box.upper - box.lower)).requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(logits(point), labels), point)
        return box.clamp(point.detach() + self.sign * gradient.sign() * (box.upper - box.lower))


class WrongSign(Step):
    sign = -1.0


class LeavesTheBox(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        found = super().perturb(logits, x, labels, box, noise)
        return found + 0.3 * (found - x).sign()


class LeavesGradients(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        point = x.clone().requires_grad_()
        cross_entropy(logits(point), labels).backward()  # type: ignore[no-untyped-call]
        assert point.grad is not None
        return box.clamp(x + point.grad.sign() * (box.upper - box.lower))


class KeepsTheGraph(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        return super().perturb(logits, x, labels, box, noise).requires_grad_()


class GlobalStart(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        found = super().perturb(logits, x, labels, box, noise)
        return box.clamp(found + 0.01 * (random.random() - 0.5))


class WritesInput(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        return x.copy_(super().perturb(logits, x, labels, box, noise))


class SetsMode(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        if isinstance(logits, nn.Module):
            logits.eval()
        return super().perturb(logits, x, labels, box, noise)


class DividesByWidth(Step):
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Noise) -> Tensor:
        found = super().perturb(logits, x, labels, box, noise)
        width = box.upper - box.lower
        return box.lower + (found - box.lower) / width * width


# Backends ------------------------------------------------------------------------------------------------


class Own(Native):
    """The native engine under another name."""

    Options = Options


class Shrinks(Own):
    """Input boxes a thousandth too small."""

    def propagate(self, network: Network, points: Tensor | None, box: Box | None, needs: Needs) -> Flow:
        if box is not None:
            by = 5e-4 * (box.upper - box.lower)
            box = Box(box.lower + by, box.upper - by)
        return super().propagate(network, points, box, needs)


class DeafToTighter(Own):
    def propagate(self, network: Network, points: Tensor | None, box: Box | None, needs: Needs) -> Flow:
        return super().propagate(network, points, box, replace(needs, tighten=None))


class MovesStatistics(Own):
    def clean_pass(self, graph: Graph, x: Tensor) -> CleanPass:
        found = super().clean_pass(graph, x)
        graph.module.train()(x)
        return found


class Detaches(Own):
    def relaxed_lower(self, network: Network, bounds: Any, box: Box, rows: Tensor) -> Tensor:
        return super().relaxed_lower(network.detach(), bounds, box, rows)


BROKEN: dict[str, tuple[type, ...]] = {
    "distill": (
        ReadsAdversarial,
        ReadsStudent,
        ReadsFeatures,
        ReadsSecondTeacher,
        BatchMean,
        Deaf,
        Root,
        Logarithm,
        WritesLogits,
        ForgetsItsMean,
        LearnsACopy,
    ),
    "attack": (
        WrongSign,
        LeavesTheBox,
        LeavesGradients,
        KeepsTheGraph,
        GlobalStart,
        WritesInput,
        SetsMode,
        DividesByWidth,
    ),
    "propagation": (Shrinks, DeafToTighter, MovesStatistics, Detaches),
}
GOOD: dict[str, type] = {
    "distill": Follow,
    "attack": Step,
    "propagation": Own,
}
