# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training steps on tiny nets, as core makes them, with the plugin's part listened to."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ctkd.api import Enclosure, Lesson, Needs, Schedule, TeacherOutputs
from ctkd.attacks.pgd import PGD, PGDOptions
from ctkd.distill.none import NoObjective
from ctkd.errors import BadInput
from ctkd.options import Options
from ctkd.propagate import Network
from ctkd.propagate.native import Native
from ctkd.randomness import Noise
from ctkd.testing.nets import SHAPE, TRAINABLE, batch, build, student, traced
from ctkd.testing.state import seed_everything
from ctkd.testing.subject import NotApplicable, Subject
from ctkd.train.options import TrainOptions
from ctkd.train.step import Loss, TrainingStep

TARGET = 0.1
TINY = Schedule(1e-9, TARGET, "ramp", epoch=0, step=1)
SMALL = Schedule(1e-6, TARGET, "ramp", epoch=0, step=2)
RAMP = Schedule(0.04, TARGET, "ramp", epoch=1, step=10)
FULL = Schedule(TARGET, TARGET, "full", epoch=2, step=20)
DTYPES = (torch.float32, torch.float64)


class Heard:
    """An objective that changes nothing and keeps the enclosures it is applied to."""

    reads = frozenset({"point", "box", "mixed"})
    teachers = 1
    teacher_inputs = student_points = frozenset[str]()
    needs_features = False

    def __init__(self) -> None:
        self.enclosures: list[Enclosure] = []

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        self.enclosures.append(enclosure)
        return lesson.robust


@dataclass(eq=False)
class WatchedMethod:
    """A bound method that is listened to; what it returns is checked at once."""

    method: Any
    subject: Subject
    network: Network | None = None
    result: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def needs(self, schedule: Schedule) -> Needs:
        found = self.method.needs(schedule)
        if not isinstance(found, Needs):
            self.subject.reject(
                f"needs(schedule) returned {type(found).__name__}",
                "BoundMethod.needs returns a ctkd.api.Needs",
                'return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box}), or the like',
            )
        return found

    def combine(self, step: Any) -> Tensor:
        try:
            found = self.method.combine(step)
        except KeyError as error:
            asked = self.method.needs(step.schedule)
            known = {*asked.points, *asked.boxes}
            if _from_the_step(error) and error.args[0] not in known:
                self.subject.reject(
                    f"combine(step) read step[{error.args[0]!r}], and needs(schedule) asked for {sorted(known)}",
                    "a step holds the points and boxes that BoundMethod.needs asks for",
                    f"add {error.args[0]!r} to Needs(points=...) or Needs(boxes=...)",
                )
            raise
        check_loss(self.subject, found, len(step.labels), "combine(step)", "BoundMethod.combine", scalar=True)
        self.network, self.result = step.network, found
        return found  # type: ignore[no-any-return]


def _from_the_step(error: KeyError) -> bool:
    """Whether it is the step that did not have the key, and not some other mapping."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code.co_qualname == "Combination.__getitem__"


def check_loss(subject: Subject, loss: Any, size: int, what: str, contract: str, *, scalar: bool) -> None:
    """Raises: ConformanceError unless it is a finite tensor of the right shape, attached to the student."""
    shapes = f"({size},), one value per sample{', or a scalar' if scalar else ''}"
    if not isinstance(loss, Tensor):
        subject.reject(f"{what} returned {type(loss).__name__}", f"{contract} returns a tensor, {shapes}", "return it")
    if tuple(loss.shape) != (size,) and not (scalar and loss.dim() == 0):
        subject.reject(
            f"{what} returned a tensor of shape {tuple(loss.shape)} for a batch of {size}",
            f"{contract} returns {shapes}",
            "sum over classes or features, not over the batch; step.loss(enclosure) has the right shape already",
        )
    if not loss.requires_grad:
        subject.reject(
            f"{what} returned a loss that is detached from the student",
            f"{contract} returns a loss with a gradient",
            "look for detach(), .data, .item(), torch.no_grad() or a tensor made anew of values",
        )
    if not bool(loss.isfinite().all()):
        subject.reject(
            f"{what} returned {'NaN' if bool(loss.isnan().any()) else 'an infinite value'}",
            f"{contract} returns finite values",
            "look for logarithms and divisions by numbers that may be 0 (a box of no width), 0 * inf, "
            "and exponentials of large margins; torch.autograd.set_detect_anomaly(True) finds the place",
        )


@dataclass(frozen=True, eq=False)
class Taken:
    """One step: its loss, the gradient by parameter name (None: not reached), and the network that it used."""

    loss: Loss
    gradient: dict[str, Tensor | None]
    module: nn.Module
    network: Network | None
    result: Tensor | None
    heard: list[Enclosure] = field(default_factory=list)

    @property
    def numbers(self) -> list[Tensor]:
        """All that must be equal in two equal steps."""
        parts = [part for part in self.gradient.values() if part is not None]
        return [self.loss.total.detach(), *parts]


def take_step(
    subject: Subject,
    method: Any,
    net: str = "batch norm",
    schedule: Schedule = FULL,
    *,
    objective: Any = None,
    teachers: Sequence[Callable[[Tensor], TeacherOutputs]] = (),
    attack: Any = None,
    backend: Any = None,
    dtype: torch.dtype = torch.float64,
    trained: bool = False,
    module: nn.Module | None = None,
    brought: Mapping[str, Any] | None = None,
) -> Taken:
    """One step on a net. ``attack``: by default two steps of PGD, with the options that the plugins bring."""
    if backend is None and module is None:
        graph = traced(net, trained=trained, dtype=dtype)
    else:
        graph = (backend or Native(Options())).trace(module or build(net, trained=trained, dtype=dtype), SHAPE)
    brought = {**getattr(method, "attack", {}), **(brought or {})}
    watched = WatchedMethod(method, subject)
    step = TrainingStep(
        graph=graph,
        method=watched,
        objective=objective or NoObjective(Options()),
        attack=attack or PGD(PGDOptions(steps=2, step_size=0.5, **brought)),
        backend=backend or Native(Options()),
        options=TrainOptions(eps=TARGET, shi_weight=0.0),
        teachers=list(teachers),
        teacher=build("plain", seed=7, dtype=dtype),  # for attacks that call one
    )
    x, labels = batch(dtype)
    loss = step(x, labels, schedule, Noise(0, "conformance-step", samples=torch.arange(len(x))))
    named = {name: p for name, p in graph.module.named_parameters() if p.requires_grad}
    try:
        found = torch.autograd.grad(loss.total, list(named.values()), retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        subject.reject(
            "a tensor of the student, or one that its loss depends on, was changed in place",
            "a step computes a loss, and changes nothing",
            "do not write to tensors of step.network or of enclosures: use operations that return new ones",
        )
    gradient: dict[str, Tensor | None] = dict(zip(named, found, strict=True))
    heard = objective.enclosures if isinstance(objective, Heard) else []
    return Taken(loss, gradient, graph.module, watched.network, watched.result, heard)


def accepted_nets(subject: Subject, method: Any, names: Sequence[str] = TRAINABLE) -> list[str]:
    """The nets that the method's own ``check`` does not refuse.

    Raises: NotApplicable if it refuses all.
    """
    check = getattr(method, "check", None)
    found, reasons = [], []
    for name in names:
        try:
            if check is not None:
                check(student(name))
            found.append(name)
        except BadInput as problem:
            reasons.append(f"{name}: {problem}")
    if not found:
        raise NotApplicable(f"check(network) refuses every net of this kit: {'; '.join(reasons)}")
    return found


def check_gradient(subject: Subject, taken: Taken, where: str) -> None:
    """Raises: ConformanceError unless each parameter has a finite gradient that is not zero."""
    contract = "the loss trains the student: its gradient is finite and reaches every parameter"
    for name, part in taken.gradient.items():
        if part is None or not bool(part.any()):
            what = "does not reach" if part is None else "is zero at"
            subject.reject(
                f"{where}: the gradient {what} parameter {name}",
                contract,
                "look for detach() and no_grad(), for a piece of the network that is left out, and for constants that "
                "take the place of its tensors",
            )
        if not bool(part.isfinite().all()):
            subject.reject(
                f"{where}: the gradient of parameter {name} is not finite",
                contract,
                "look for square roots, norms and divisions at 0, and for torch.where around a value that is infinite "
                "where it is not chosen; torch.autograd.set_detect_anomaly(True) finds the place",
            )


def check_repeats(
    subject: Subject, run: Callable[[], Sequence[Tensor]], what: str, source: str, example: str = ""
) -> None:
    """Raises: ConformanceError if two equal runs differ, with other global random numbers before each.

    ``example``: how numbers are drawn from the source; by default as from a generator.
    """
    results = []
    example = example or f"torch.rand(shape, generator={source})"
    for seed in (1, 2):
        seed_everything(seed)
        results.append([part.detach().clone() for part in run()])
    if not all(a.equal(b) for a, b in zip(*results, strict=True)):
        subject.reject(
            f"{what} differs between two equal runs",
            f"equal inputs give equal results, bit for bit; all randomness comes from {source}",
            f"draw from it, as in {example}, and keep no state of an earlier call",
        )


def check_state(subject: Subject, run: Callable[[Any, int], Tensor]) -> None:
    """State that a plugin keeps comes back from a checkpoint. ``run(plugin, i)`` makes its i-th step.

    Raises:
        ConformanceError: it does not.
        NotApplicable: there is no ``state_dict``.
    """
    first = subject.create()
    if hasattr(first, "state_dict") != hasattr(first, "load_state_dict"):
        subject.reject(
            "only one of state_dict and load_state_dict is there",
            "a plugin that keeps state has both: state_dict() gives JSON values, load_state_dict(values) takes them",
            "add the other one",
        )
    if not hasattr(first, "state_dict"):
        raise NotApplicable("it has no state_dict: it keeps no state from step to step")
    run(first, 0)
    run(first, 1)
    values = first.state_dict()
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        subject.reject(
            f"state_dict() cannot be written as JSON: {error}",
            "state_dict() returns JSON values: numbers, texts, lists and dicts with text keys, all finite",
            "convert tensors by .tolist() or float()",
        )
    second = subject.create()
    second.load_state_dict(json.loads(text))
    if not run(first, 2).equal(run(second, 2)):
        subject.reject(
            "after load_state_dict(state_dict()) the next step has another loss",
            "state_dict() holds all that a plugin carries from step to step",
            "add what is missing; floats must keep all their digits",
        )
