# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bound methods (``ctkd.api.BoundMethod``)."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Box, BoxContext, Enclosure, Kind, Schedule
from ctkd.attacks.pgd import PGDOptions
from ctkd.boxes import perturbation_box
from ctkd.options import validate
from ctkd.propagate import Network, margins_of
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.nets import CLASSES, NETS, TRAINABLE, above, batch, build, extreme_margins, largest_loss, trial_points
from ctkd.testing.nets import values_at as values
from ctkd.testing.runs import check_resumes, quick_settings, sandbox
from ctkd.testing.steps import (
    DTYPES,
    FULL,
    RAMP,
    SMALL,
    TINY,
    Heard,
    Taken,
    accepted_nets,
    check_gradient,
    check_repeats,
    check_state,
    take_step,
)
from ctkd.testing.subject import NotApplicable, Subject

POINTS = frozenset({"clean", "adversarial"})
KINDS = frozenset(typing.get_args(Kind))
CONTINUITY = 1e-3
"""How far the loss may move between a radius of 1e-6 and 1e-9, relative to its size."""


def exercise(subject: Subject) -> list[Tensor]:
    """Steps in every phase; the first net that it accepts."""
    method = subject.create()
    net = accepted_nets(subject, method)[0]
    return [number for schedule in (RAMP, FULL) for number in take_step(subject, method, net, schedule).numbers]


def _steps(
    subject: Subject, nets: tuple[str, ...], schedules: tuple[Schedule, ...] = (RAMP, FULL)
) -> Iterator[tuple[str, Schedule, Taken]]:
    """Steps on random and on trained nets, with the enclosures that ``step.loss`` is called on."""
    method = subject.create()
    for net in accepted_nets(subject, method, nets):
        for trained in (False, True):
            for schedule in schedules:
                heard = Heard()
                taken = take_step(subject, method, net, schedule, objective=heard, teachers=[_unused], trained=trained)
                yield f"{'trained' if trained else 'random'} net {net!r}, {schedule.phase} phase", schedule, taken


def _unused(x: Tensor) -> Any:
    raise AssertionError("this teacher is asked nothing")


def declares_what_it_is(subject: Subject) -> None:
    """``evaluates``, ``sound`` and the optional attributes have the types and values of ``BoundMethod``."""
    method = subject.create()
    evaluates = getattr(method, "evaluates", None)
    if not isinstance(evaluates, frozenset) or not evaluates or not evaluates <= KINDS:
        subject.reject(
            f"evaluates is {evaluates!r}",
            f"BoundMethod.evaluates is a frozenset of {sorted(KINDS)}, not empty",
            'name the kinds of enclosure that combine hands to step.loss, such as frozenset({"box"})',
        )
    for name, wanted in (("sound", True), ("own_loss", False), ("needs_radius", False)):
        value = getattr(method, name, None if wanted else False)
        if not isinstance(value, bool):
            subject.reject(f"{name} is {value!r}", f"BoundMethod.{name} is True or False", f"set {name}")
    if getattr(method, "point", "adversarial") not in POINTS:
        subject.reject(
            f"point is {method.point!r}",
            f"BoundMethod.point, where its point loss is taken, is one of {sorted(POINTS)}",
            "leave it out for a point that was attacked",
        )
    problems: list[str] = []
    if validate(PGDOptions, getattr(method, "attack", {}), "attack", problems) is None:
        subject.reject(
            "; ".join(problems),
            "BoundMethod.attack holds options of the default attack, pgd",
            "see `ctkd plugins show pgd`",
        )


def asks_for_what_there_is(subject: Subject) -> None:
    """``needs`` asks, in every phase, for known points and for boxes that can be built from what it asked for."""
    method = subject.create()
    for schedule in (TINY, SMALL, RAMP, FULL):
        for dtype in DTYPES:
            x, labels = batch(dtype)
            box = perturbation_box(x, schedule.eps)
            needs = method.needs(schedule)
            asked = set(needs.points) | set(needs.searched)
            if not asked <= POINTS:
                subject.reject(
                    f"needs(schedule) asks for the points {sorted(asked - POINTS)}",
                    f"Needs.points and Needs.searched hold any of {sorted(POINTS)}",
                    "other points can be boxes without width, or computed in combine from step.network",
                )
            points = {"clean": x, "adversarial": box.upper}
            context = BoxContext(x, labels, box, {name: points[name] for name in {"clean", *asked}}, schedule)
            for name, make in needs.boxes.items():
                try:
                    made = make(context)
                except KeyError as error:
                    subject.reject(
                        f"the function of box {name!r} read context.points[{error}], which was not asked for",
                        "a box is built from points that Needs.points or Needs.searched name",
                        f"add searched=frozenset({{{error}}}) to the Needs",
                    )
                _check_box(subject, made, name, x)


def _check_box(subject: Subject, made: Any, name: str, x: Tensor) -> None:
    contract = "a function in Needs.boxes returns a ctkd.api.Box like the batch, with lower <= upper"
    if not isinstance(made, Box):
        subject.reject(f"box {name!r} is a {type(made).__name__}", contract, "return Box(lower, upper)")
    for edge in (made.lower, made.upper):
        if edge.shape != x.shape or edge.dtype != x.dtype or not bool(edge.isfinite().all()):
            subject.reject(
                f"an edge of box {name!r} has shape {tuple(edge.shape)} and {edge.dtype}, or is not finite; the batch "
                f"has {tuple(x.shape)} and {x.dtype}",
                contract,
                "compute edges from context.box and context.points, in their dtype",
            )
    if bool((made.lower > made.upper).any()):
        subject.reject(
            f"box {name!r} has lower > upper", contract, "clamp both edges to context.box with context.box.clamp"
        )


def loss_is_finite_and_attached(subject: Subject) -> None:
    """The loss is a finite scalar or one value per sample, with a gradient, on every net, in float32 and float64."""
    method = subject.create()
    for net in accepted_nets(subject, method):
        for dtype in DTYPES:
            for schedule in (SMALL, RAMP, FULL):
                taken = take_step(subject, method, net, schedule, dtype=dtype)
                if taken.loss.total.dtype != dtype:
                    subject.reject(
                        f"on net {net!r} in {dtype} the loss is {taken.loss.total.dtype}",
                        "a loss has the dtype of the network",
                        "make constants by new_tensor, zeros_like and the like",
                    )


def gradient_reaches_every_parameter(subject: Subject) -> None:
    """The gradient is finite and reaches every parameter, with batch norm, residual blocks and max pooling."""
    method = subject.create()
    for net in accepted_nets(subject, method):
        check_gradient(subject, take_step(subject, method, net), f"net {net!r}")


def repeats_under_its_seed(subject: Subject) -> None:
    """Two equal steps give the same loss and gradient bit for bit, whatever the global random numbers."""
    source, example = "step.noise", "step.noise.uniform(points)"
    check_repeats(subject, lambda: exercise(subject), "the loss or its gradient", source, example)


def evaluates_what_it_says(subject: Subject) -> None:
    """``evaluates`` names exactly the kinds of enclosure that ``combine`` calls ``step.loss`` on."""
    method = subject.create()
    found = {each.kind for _, _, taken in _steps(subject, TRAINABLE) for each in taken.heard}
    if found != method.evaluates:
        subject.reject(
            f"evaluates is {sorted(method.evaluates)}, and combine called step.loss on {sorted(found) or 'nothing'}",
            "BoundMethod.evaluates names the kinds of enclosure on which combine calls step.loss: by them core refuses "
            "objectives that would do nothing",
            "correct evaluates; a loss that is taken without step.loss is one that no objective can act on",
        )


def enclosures_hold(subject: Subject) -> None:
    """What ``step.loss`` is given is what it claims: exact for a point, and bounds over all of a box."""
    method = subject.create()
    tightened = any(method.needs(schedule).tighten is not None for schedule in (RAMP, FULL))
    _, labels = batch()
    for where, _, taken in _steps(subject, tuple(NETS)):
        assert taken.network is not None
        network = taken.network.detach()
        for each in taken.heard:
            if each.loss is not None and not getattr(method, "own_loss", False):
                subject.reject(
                    f"{where}: step.loss is given an enclosure with a loss of its own, and own_loss is False",
                    "BoundMethod.own_loss is True where an enclosure carries a loss of the method's own",
                    "set own_loss = True: core then refuses objectives that would replace that loss",
                )
            if each.kind == "point":
                _check_point(subject, each, network, labels, where)
            elif each.kind == "box" and not tightened:
                _check_enclosed(subject, each, network, labels, where)


def _check_point(subject: Subject, each: Enclosure, network: Network, labels: Tensor, where: str) -> None:
    x = each.inputs.lower.detach()
    exact = margins_of(network(x), labels)
    wrong = not each.inputs.upper.equal(x) or (each.radius is not None and bool(each.radius.any()))
    if wrong or (each.margins is not None and not bool(torch.isclose(each.margins.detach(), exact).all())):
        subject.reject(
            f"{where}: step.loss is given an enclosure of kind 'point' that is not one input with its exact margins",
            "an enclosure of kind 'point' has lower equal to upper, radius 0 and the exact margins of that input",
            "change points by Enclosure.mix or Enclosure.estimated, which make the kind 'mixed'",
        )


def _check_enclosed(subject: Subject, each: Enclosure, network: Network, labels: Tensor, where: str) -> None:
    points = trial_points(network, each.inputs, labels)
    excess = [torch.zeros(())]
    if each.margins is not None:
        excess.append(above(each.margins.detach(), extreme_margins(network, points, labels)[0]).amax())
    if each.upper_margins is not None:
        excess.append(above(extreme_margins(network, points, labels)[1], each.upper_margins.detach()).amax())
    if each.loss is not None:
        excess.append(above(largest_loss(network, points, labels), each.loss.detach()).amax())
    if each.lower is not None:
        rows = torch.randn(len(labels), 3, CLASSES, generator=torch.Generator().manual_seed(0), dtype=points.dtype)
        (logits,) = values(network, points, network.output)
        least = (rows @ logits.unsqueeze(3)).squeeze(3).amin(0)
        excess.append(above(each.lower(rows).detach(), least).amax())
    if each.centre is not None and each.radius is not None and network.features_node is not None:
        (features,) = values(network, points, network.features_node)
        distance = (features.flatten(2) - each.centre.detach().flatten(1)).abs().amax(0)
        excess.append(above(distance, each.radius.detach().flatten(1)).amax())
    worst = float(torch.stack([part.to(torch.float64) for part in excess]).amax())
    if worst > 0:
        subject.reject(
            f"{where}: an enclosure of kind 'box' is left by {worst:.3g} at an input of its box",
            "an enclosure of kind 'box' holds for all of its inputs: margins and lower(rows) bound from below, its own "
            "loss from above, and the features stay within centre +- radius",
            "correct the bound; where it is meant as an estimate, say so by Enclosure.mix or Enclosure.estimated, "
            "which make the kind 'mixed'",
        )


def loss_is_a_bound_where_it_says_so(subject: Subject) -> None:
    """Where ``sound`` is True, the loss is never below the cross entropy at sampled and attacked points of the box."""
    if not subject.create().sound:
        raise NotApplicable("sound is False: its loss is an estimate")
    x, labels = batch()
    for where, schedule, taken in _steps(subject, tuple(NETS)):
        assert taken.network is not None
        assert taken.result is not None
        network = taken.network.detach()
        box = perturbation_box(x, schedule.eps)
        worst = largest_loss(network, trial_points(network, box, labels), labels)
        worst = worst if taken.result.dim() else worst.mean()
        excess = float(above(worst, taken.result.detach()).amax())
        if excess > 0:
            subject.reject(
                f"{where}: an input of the box has a cross entropy that is {excess:.3g} above the training loss",
                "where BoundMethod.sound is True, the training loss bounds the loss over the full box from above",
                "correct the bound, or set sound = False: then it is called an estimate, as in `ctkd plugins show`",
            )


def goes_to_a_finite_loss_with_the_radius(subject: Subject) -> None:
    """As the radius goes to 0, loss and gradient stay finite, and the loss goes to a limit."""
    method = subject.create()
    for net in accepted_nets(subject, method):
        for dtype in DTYPES:
            losses = []
            for schedule in (SMALL, TINY):
                taken = take_step(subject, method, net, schedule, dtype=dtype)
                check_gradient(subject, taken, f"net {net!r}, radius {schedule.eps:g}, {dtype}")
                losses.append(float(taken.loss.total.detach()))
            if dtype == torch.float64 and abs(losses[0] - losses[1]) > CONTINUITY * (1 + abs(losses[0])):
                subject.reject(
                    f"on net {net!r} the loss is {losses[0]:.6g} at radius 1e-6 and {losses[1]:.6g} at 1e-9",
                    "the ramp begins at radius 0, where core takes the clean loss: the method's goes to a limit there",
                    "look for divisions by the radius or the width of a box",
                )


def leaves_the_student_alone(subject: Subject) -> None:
    """A step leaves parameters, buffers, their gradients and the mode of the student as it found them."""
    method = subject.create()
    for net in accepted_nets(subject, method):
        for training in (True, False):
            module = build(net).train(training)
            before = {name: value.clone() for name, value in module.state_dict().items()}
            take_step(subject, method, net, module=module)
            changed = [name for name, value in module.state_dict().items() if not value.equal(before[name])]
            changed += [f"the gradient of {name}" for name, p in module.named_parameters() if p.grad is not None]
            changed += [f"requires_grad of {name}" for name, p in module.named_parameters() if not p.requires_grad]
            changed += [
                f"the mode of {name or 'the module'}"
                for name, part in module.named_modules()
                if part.training != training
            ]
            if changed:
                subject.reject(
                    f"a step on net {net!r} changed {', '.join(changed[:3])}",
                    "combine computes a loss; core makes the update, and the module's mode is its owner's",
                    "do not write to tensors of step.network in place, and call no backward()",
                )


def keeps_its_state_in_checkpoints(subject: Subject) -> None:
    """``state_dict`` is JSON, and a new object that loads it goes on with the same loss."""
    net = accepted_nets(subject, subject.create())[0]

    def run(method: Any, i: int) -> Tensor:
        schedule = Schedule(RAMP.eps, RAMP.target, RAMP.phase, RAMP.epoch, RAMP.step + i)
        return take_step(subject, method, net, schedule).loss.total.detach()

    check_state(subject, run)


def resumes_to_the_same_weights(subject: Subject) -> None:
    """A run that is killed twice and resumed ends with the weights of one that was left alone."""
    with sandbox() as folder:
        check_resumes(subject, {**quick_settings(), **subject.settings("bound")}, folder)


CHECKS = (
    *COMMON,
    declares_what_it_is,
    asks_for_what_there_is,
    loss_is_finite_and_attached,
    gradient_reaches_every_parameter,
    repeats_under_its_seed,
    evaluates_what_it_says,
    enclosures_hold,
    loss_is_a_bound_where_it_says_so,
    goes_to_a_finite_loss_with_the_radius,
    leaves_the_student_alone,
    keeps_its_state_in_checkpoints,
    resumes_to_the_same_weights,
    leaves_global_state_alone(exercise),
)
