# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Distillation objectives (``ctkd.api.Objective``), paired with bound methods that evaluate what they read."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Box, Enclosure, Kind, Lesson, Schedule, TeacherOutputs
from ctkd.attacks.pgd import PGDOptions
from ctkd.bounds.adversarial import Adversarial
from ctkd.bounds.cc_ibp import CCIBP, CCIBPOptions
from ctkd.bounds.ibp import IBP
from ctkd.config import resolve
from ctkd.errors import BadInput
from ctkd.options import Options, validate
from ctkd.plugins import registry
from ctkd.propagate import margins_of
from ctkd.randomness import generator
from ctkd.teaching import Teacher
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.lessons import POINTS, WatchedObjective
from ctkd.testing.nets import batch, network, traced
from ctkd.testing.runs import check_resumes, quick_settings, sandbox, teachers_in
from ctkd.testing.steps import DTYPES, FULL, RAMP, SMALL, Taken, check_gradient, check_repeats, check_state, take_step
from ctkd.testing.subject import NotApplicable, Subject

KINDS = frozenset(typing.get_args(Kind))
METHODS: dict[str, Callable[[], Any]] = {
    "point": lambda: Adversarial(Options()),
    "box": lambda: IBP(Options()),
    "mixed": lambda: CCIBP(CCIBPOptions()),
}
"""For each kind of enclosure a bound method that evaluates it alone."""
NETS = ("plain", "batch norm", "residual")
SURE = 1e4
"""Factor on the logits of a teacher that has no doubt."""
Teaching = Callable[[Tensor], TeacherOutputs]


def _applicable(subject: Subject) -> Any:
    """The objective; raises NotApplicable for one without teachers, which core never calls."""
    objective = subject.create()
    if not objective.teachers:
        raise NotApplicable("teachers is 0: core never calls it")
    return objective


def _teacher(net: str, number: int, dtype: torch.dtype, scale: float = 1.0) -> Teaching:
    """A network of the student's architecture and other weights; ``scale``: on its logits."""
    teacher = Teacher((network(net, seed=100 + number, trained=True, dtype=dtype),))

    def outputs(x: Tensor) -> TeacherOutputs:
        found = teacher.outputs(x)
        return TeacherOutputs(scale * found.logits, found.features)

    return outputs


def _prepared(objective: Any, net: str) -> list[Tensor]:
    """The objective's own tensors, made for student and teacher of one net."""
    graph = traced(net).bind()
    assert graph.features_node is not None
    width = int(torch.tensor(graph.nodes[graph.features_node].shape).prod())
    prepare = getattr(objective, "prepare", None)
    return [] if prepare is None else list(prepare((width, width), generator(0, "conformance-objective")))


def _step(
    subject: Subject,
    objective: Any,
    kind: str,
    net: str = "batch norm",
    schedule: Schedule = FULL,
    *,
    dtype: torch.dtype = torch.float64,
    teachers: list[Teaching] | None = None,
) -> Taken:
    teachers = teachers or [_teacher(net, i, dtype) for i in range(objective.teachers)]
    watched = WatchedObjective(objective, subject)
    brought = getattr(objective, "attack", {})
    return take_step(
        subject,
        METHODS[kind](),
        net,
        schedule,
        objective=watched,
        teachers=teachers,
        dtype=dtype,
        brought=brought,
    )


def _steps(subject: Subject, schedules: tuple[Schedule, ...] = (FULL,)) -> Iterator[tuple[str, Taken]]:
    objective = _applicable(subject)
    for net in NETS:
        _prepared(objective, net)
        for kind in sorted(objective.reads):
            for dtype in DTYPES:
                for schedule in schedules:
                    yield (
                        f"on an enclosure of kind {kind!r}, net {net!r}, {dtype}, radius {schedule.eps:g}",
                        _step(subject, objective, kind, net, schedule, dtype=dtype),
                    )


def exercise(subject: Subject) -> list[Tensor]:
    """Steps on each kind of enclosure that it reads."""
    objective = subject.create()
    if not objective.teachers:
        return []
    _prepared(objective, "batch norm")
    taken = [
        _step(subject, objective, kind, schedule=each) for kind in sorted(objective.reads) for each in (RAMP, FULL)
    ]
    return [number for each in taken for number in each.numbers]


def declares_what_it_is(subject: Subject) -> None:
    """``reads``, ``teachers`` and the other attributes have the types and values of ``Objective``."""
    objective = subject.create()
    sets = {"reads": KINDS, "teacher_inputs": POINTS, "student_points": POINTS}
    for name, known in sets.items():
        value = getattr(objective, name, None)
        if not isinstance(value, frozenset) or not value <= known:
            subject.reject(
                f"{name} is {value!r}",
                f"Objective.{name} is a frozenset of {sorted(known)}",
                f'set it, such as {name} = frozenset({{"{min(known)}"}}); frozenset() for none',
            )
    count = getattr(objective, "teachers", None)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        subject.reject(
            f"teachers is {count!r}", "Objective.teachers is how many teachers it needs", "set it; 0 for none"
        )
    if not isinstance(getattr(objective, "needs_features", None), bool):
        subject.reject(
            f"needs_features is {getattr(objective, 'needs_features', 'not there')!r}",
            "Objective.needs_features is True if the teacher's features are read",
            "set it",
        )
    if count and not objective.reads:
        subject.reject("reads is empty", "an objective with a teacher is applied to the kinds in reads", "name them")
    problems: list[str] = []
    if validate(PGDOptions, getattr(objective, "attack", {}), "attack", problems) is None:
        subject.reject(
            "; ".join(problems),
            "Objective.attack holds options of the default attack, pgd",
            "see `ctkd plugins show pgd`",
        )


def loss_is_per_sample_finite_and_attached(subject: Subject) -> None:
    """The loss is (batch,), finite and attached to the student, on each kind that it reads; in float32 and float64."""
    for where, taken in _steps(subject, (SMALL, RAMP, FULL)):
        if taken.loss.total.dtype != next(taken.module.parameters()).dtype:
            subject.reject(
                f"{where}: the loss is {taken.loss.total.dtype}",
                "a loss has the dtype of the network",
                "make constants by new_tensor, zeros_like and the like",
            )


def gradient_reaches_every_parameter(subject: Subject) -> None:
    """Down to a radius near 0 the gradient is finite and reaches every parameter of the student."""
    for where, taken in _steps(subject, (SMALL, FULL)):
        check_gradient(subject, taken, where)


def reads_only_what_it_declares(subject: Subject) -> None:
    """It reads no input, point, feature or teacher beyond its declarations, and leaves the teachers' outputs alone."""
    for _ in _steps(subject):
        pass  # the watched objective refuses what is read beyond them


def listens_to_its_teachers(subject: Subject) -> None:
    """Another teacher gives another loss: each of them on at least one kind of enclosure."""
    objective = _applicable(subject)
    count, heard = objective.teachers, set()
    for kind in sorted(objective.reads):
        _prepared(objective := subject.create(), "plain")
        usual = _step(subject, objective, kind, "plain").loss.total
        for i in range(count):
            teachers = [_teacher("plain", 50 + j if i == j else j, torch.float64) for j in range(count)]
            _prepared(objective := subject.create(), "plain")
            other = _step(subject, objective, kind, "plain", teachers=teachers).loss.total
            if not bool(torch.isclose(usual, other, rtol=1e-9, atol=0)):
                heard.add(i)
    missing = sorted(set(range(count)) - heard)
    if missing:
        subject.reject(
            f"the loss does not depend on lesson.teachers[{missing[0]}]",
            "Objective.teachers counts the teachers that it learns from",
            "correct teachers, or use that teacher's outputs",
        )


def repeats_under_its_seed(subject: Subject) -> None:
    """Two equal steps give the same loss and gradient bit for bit, whatever the global random numbers."""
    _applicable(subject)
    check_repeats(subject, lambda: exercise(subject), "the loss or its gradient", "the generator of prepare")


def stays_finite_at_the_extremes(subject: Subject) -> None:
    """Loss and gradient are finite for a student that equals its teacher, and for a teacher that has no doubt."""
    objective = _applicable(subject)
    _prepared(objective, "plain")
    for kind in sorted(objective.reads):
        for dtype in DTYPES:
            sure = [_teacher("plain", i, dtype, SURE) for i in range(objective.teachers)]
            taken = _step(subject, objective, kind, "plain", dtype=dtype, teachers=sure)
            _check_finite(subject, taken.numbers, f"kind {kind!r}, {dtype}, teacher with logits of {SURE:g}")
            _check_finite(
                subject, _equal(subject, objective, kind, dtype), f"kind {kind!r}, {dtype}, student = teacher"
            )


def _check_finite(subject: Subject, numbers: list[Tensor], where: str) -> None:
    if not all(bool(part.isfinite().all()) for part in numbers):
        subject.reject(
            f"{where}: the loss or its gradient is not finite",
            "losses and gradients are finite: a student may come to equal its teacher, and a teacher may have no doubt",
            "work with log_softmax in place of log(softmax); give square roots and norms a smooth form at 0",
        )


def _equal(subject: Subject, objective: Any, kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Loss and gradient on an enclosure without width, where teachers answer what the student does."""
    x, labels = batch(dtype)
    graph = traced("plain", dtype=dtype)
    bound = graph.bind()
    assert bound.features_node is not None
    features, logits = bound.evaluate(x, bound.features_node, bound.output)
    answer = TeacherOutputs(logits.detach(), features.detach())
    each = Enclosure(
        Box(x, x),
        typing.cast(Kind, kind),
        features,
        torch.zeros_like(features),
        margins_of(logits, labels),
        logits if kind == "point" else None,
        lower=lambda rows: (rows @ logits.unsqueeze(2)).squeeze(2),
    )
    point = replace(each, kind="point", logits=logits)
    lesson = Lesson(
        each.robust_loss(),
        labels,
        FULL,
        tuple(dict.fromkeys(POINTS, answer) for _ in range(objective.teachers)),
        dict.fromkeys(POINTS, point),
        lambda name, value: value,
    )
    loss = WatchedObjective(objective, subject).loss(each, lesson)
    parameters = list(graph.module.parameters())
    found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
    return [loss.detach(), *(part for part in found if part is not None)]


def learns_its_own_tensors(subject: Subject) -> None:
    """``prepare`` returns trainable tensors, drawn from its generator alone, and the gradient reaches them."""
    objective = _applicable(subject)
    if not hasattr(objective, "prepare"):
        raise NotApplicable("it has no prepare: it learns nothing of its own")
    own = _prepared(objective, "plain")
    for tensor in own:
        if not isinstance(tensor, Tensor) or not tensor.is_leaf or not tensor.requires_grad:
            subject.reject(
                f"prepare returned {type(tensor).__name__} that is no leaf tensor with requires_grad",
                "Objective.prepare returns trainable tensors, which core optimises and keeps in checkpoints",
                "call requires_grad_() on a tensor that was made last",
            )
    check_repeats(subject, lambda: _prepared(subject.create(), "plain"), "what prepare returns", "generator")
    for kind in sorted(objective.reads) if own else ():
        total = _step(subject, objective, kind, "plain").loss.total
        if any(part is None for part in torch.autograd.grad(total, own, allow_unused=True)):
            subject.reject(
                f"on an enclosure of kind {kind!r} the gradient does not reach all tensors of prepare",
                "what Objective.prepare returns is what the loss trains",
                "use the very tensors that prepare returned, not copies",
            )


def keeps_its_state_in_checkpoints(subject: Subject) -> None:
    """``state_dict`` is JSON, and a new object that loads it goes on with the same loss."""
    objective = _applicable(subject)
    kind = min(objective.reads)
    made: set[int] = set()

    def run(plugin: Any, i: int) -> Tensor:
        if id(plugin) not in made:
            _prepared(plugin, "plain")
            made.add(id(plugin))
        schedule = Schedule(RAMP.eps, RAMP.target, RAMP.phase, RAMP.epoch, RAMP.step + i)
        return _step(subject, plugin, kind, "plain", schedule).loss.total.detach()

    check_state(subject, run)


def _accepted(settings: dict[str, Any]) -> str | None:
    """A bound method that a run with these settings can have."""
    for name in dict.fromkeys(["mtl-ibp", "cc-ibp", "ibp", *registry().names("bound")]):
        try:
            resolve({**settings, "bound.name": name})
        except BadInput:
            continue
        return name
    return None


def resumes_to_the_same_weights(subject: Subject) -> None:
    """A run that is killed twice and resumed ends with the weights of one that was left alone."""
    objective = _applicable(subject)
    with sandbox() as folder:
        settings = {
            **quick_settings(),
            **subject.settings("distill"),
            **teachers_in(folder, objective.teachers),
        }
        bound = _accepted(settings)
        settings["bound.name"] = bound or "mtl-ibp"
        check_resumes(subject, settings, folder)


CHECKS = (
    *COMMON,
    declares_what_it_is,
    loss_is_per_sample_finite_and_attached,
    gradient_reaches_every_parameter,
    reads_only_what_it_declares,
    listens_to_its_teachers,
    repeats_under_its_seed,
    stays_finite_at_the_extremes,
    learns_its_own_tensors,
    keeps_its_state_in_checkpoints,
    resumes_to_the_same_weights,
    leaves_global_state_alone(exercise),
)
