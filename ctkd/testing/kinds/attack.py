# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Attacks (``ctkd.api.Attack``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctkd.api import Box
from ctkd.boxes import perturbation_box
from ctkd.divergence import divergence_from
from ctkd.propagate import margins_of
from ctkd.randomness import Noise
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.nets import batch, build
from ctkd.testing.runs import check_resumes, quick_settings, sandbox, teachers_in
from ctkd.testing.steps import DTYPES, FULL, check_gradient, check_repeats, check_state, take_step
from ctkd.testing.subject import NotApplicable, Subject

EPS = 0.1
NETS = ("linear", "plain", "residual")
ROUNDING = 1e-6
"""How far a point may lie outside the box: core clamps it anyway, so only rounding is forgiven."""
REFERENCES = (None, "student", "teacher")


def _attack(
    attack: Any,
    module: nn.Module,
    x: Tensor,
    labels: Tensor,
    box: Box,
    seed: int = 0,
) -> Any:
    """One call as core makes it."""
    given: dict[str, Any] = {}
    if getattr(attack, "calls_teacher", False):
        given["teacher"] = build("plain", seed=7, dtype=x.dtype)
    who = getattr(attack, "reference", None)
    if who is not None:
        with torch.no_grad():
            given["reference"] = (module if who == "student" else build("plain", seed=7, dtype=x.dtype))(x)
    noise = Noise(seed, "conformance-attack", samples=torch.arange(len(x)))
    return attack.perturb(module, x, labels, box, noise, **given)


def _usual(attack: Any, net: str = "plain", dtype: torch.dtype = torch.float64, eps: float = EPS, seed: int = 0) -> Any:
    x, labels = batch(dtype)
    return _attack(attack, build(net, trained=True, dtype=dtype).eval(), x, labels, perturbation_box(x, eps), seed)


def exercise(subject: Subject) -> list[Tensor]:
    """One call on each net."""
    attack = subject.create()
    return [_usual(attack, net) for net in NETS]


def declares_what_it_is(subject: Subject) -> None:
    """``reference``, where it is there, is one that core knows."""
    reference = getattr(subject.create(), "reference", None)
    if reference not in REFERENCES:
        subject.reject(
            f"reference is {reference!r}",
            "Attack.reference names whose prediction at the clean input is passed: 'student', 'teacher' or None",
            "leave it out for an attack that moves away from the label",
        )


def returns_points_of_the_box(subject: Subject) -> None:
    """Points have shape and dtype of the batch, carry no gradient and lie in the box before core clamps them."""
    attack = subject.create()
    contract = "Attack.perturb returns (batch, *input_shape) inside the box, in the dtype of x"
    for net in NETS:
        for dtype in DTYPES:
            x, _ = batch(dtype)
            found, box = _usual(attack, net, dtype), perturbation_box(x, EPS)
            if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != dtype:
                what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
                subject.reject(
                    f"perturb returned {what} for a batch of {tuple(x.shape)}, {dtype}",
                    contract,
                    "return points like x",
                )
            if found.requires_grad:
                subject.reject(
                    "the points that perturb returned require a gradient",
                    "the step takes points as constants",
                    "return point.detach()",
                )
            if not bool(found.isfinite().all()):
                subject.reject(
                    f"net {net!r}, {dtype}: perturb returned points that are not finite",
                    contract,
                    "look for divisions by the norm of a gradient that may be 0",
                )
            outside = float(torch.maximum(box.lower - found, found - box.upper).amax())
            if outside > ROUNDING:
                subject.reject(
                    f"net {net!r}, {dtype}: perturb returned points that lie {outside:.3g} outside the box",
                    f"{contract}. Core clamps them, but then the attack judged other points than those that count",
                    "end each step by box.clamp(point); the box is clipped to [0, 1], so x +- eps is not enough",
                )


def finds_smaller_margins(subject: Subject) -> None:
    """On a linear and a small net the points it finds are on average no better for the student than clean inputs."""
    attack = subject.create()
    if getattr(attack, "calls_teacher", False):
        raise NotApplicable("calls_teacher is True: what it searches for is its own affair")
    reference = getattr(attack, "reference", None)
    for net in ("linear", "plain"):
        module = build(net, trained=True).eval()
        x, labels = batch()
        found = perturbation_box(x, EPS).clamp(_usual(attack, net))
        with torch.no_grad():
            before, after = module(x), module(found)
            if reference is None:
                clean, attacked = (
                    float(margins_of(logits, labels).scatter(1, labels[:, None], torch.inf).amin(1).mean())
                    for logits in (before, after)
                )
            else:
                origin = before if reference == "student" else build("plain", seed=7)(x)
                clean, attacked = (-float(divergence_from(origin, logits).mean()) for logits in (before, after))
        if attacked > clean + 1e-9:
            what = "smallest margin" if reference is None else f"closeness to the {reference}'s prediction"
            subject.reject(
                f"on net {net!r} the mean {what} is {attacked:.3g} at the points it found, and {clean:.3g} without it",
                "an attack searches the box for inputs with small margins (with a reference: for predictions far from "
                "it)",
                "check the sign of the step, and return the best point that was seen",
            )


def draws_from_its_noise_alone(subject: Subject) -> None:
    """Equal noise gives equal points bit for bit, whatever the global random numbers."""
    check_repeats(subject, lambda: exercise(subject), "what perturb returns", "noise", "noise.uniform(x)")


def leaves_network_and_inputs_alone(subject: Subject) -> None:
    """Parameters get no gradient, modules keep their mode and statistics, and no input is written to."""
    attack = subject.create()
    for training in (False, True):
        # Without batch norm: in training mode a forward pass would move its statistics, whoever makes it.
        module = build("plain", trained=True).train(training)
        state = {name: value.clone() for name, value in module.state_dict().items()}
        x, labels = batch()
        box = perturbation_box(x, EPS)
        given = {"x": x, "labels": labels, "box.lower": box.lower, "box.upper": box.upper}
        before = {name: value.clone() for name, value in given.items()}
        _attack(attack, module, x, labels, box)
        changed = [name for name, value in given.items() if not value.equal(before[name]) or value.requires_grad]
        changed += [f"parameter {name}" for name, value in module.state_dict().items() if not value.equal(state[name])]
        changed += [f".grad of parameter {name}" for name, p in module.named_parameters() if p.grad is not None]
        changed += [
            f"requires_grad of parameter {name}" for name, p in module.named_parameters() if not p.requires_grad
        ]
        changed += ["the mode of the network"] if module.training != training else []
        if changed:
            subject.reject(
                f"perturb changed {', '.join(changed[:3])}",
                "an attack returns points and changes nothing: it is given a function, whose owner may be in training",
                "use torch.autograd.grad(value.sum(), point) in place of backward(), on point.detach() or a clone",
            )


def stays_put_in_a_box_without_width(subject: Subject) -> None:
    """At radius 0 it returns the input."""
    attack = subject.create()
    for dtype in DTYPES:
        x, labels = batch(dtype)
        found = _attack(attack, build("plain", trained=True, dtype=dtype), x, labels, Box(x, x))
        if not bool(torch.isclose(found, x, rtol=0, atol=ROUNDING).all()):
            subject.reject(
                f"in a box with lower = upper = x, {dtype}, perturb returned other points than x",
                "Attack.perturb returns points inside the box",
                "step relative to box.upper - box.lower, and divide by nothing that may be 0",
            )


def takes_any_batch(subject: Subject) -> None:
    """A batch of one works, and so does a network that is wrong already."""
    attack = subject.create()
    x, labels = batch(size=1)
    for wrong in (labels, (labels + 1) % 4):
        found = _attack(attack, build("plain", trained=True).eval(), x, wrong, perturbation_box(x, EPS))
        if found.shape != x.shape:
            subject.reject(
                f"for one image perturb returned a tensor of shape {tuple(found.shape)}",
                "Attack.perturb returns (batch, *input_shape), for every size of batch",
                "do not squeeze the batch dimension",
            )


def serves_a_training_step(subject: Subject) -> None:
    """Adversarial training with it has a finite gradient at every parameter, in float32 and float64."""
    from ctkd.bounds.adversarial import Adversarial
    from ctkd.options import Options
    from ctkd.teaching import Teacher
    from ctkd.testing.nets import network

    attack = subject.create()
    for dtype in DTYPES:
        teachers = [Teacher((network("batch norm", seed=7, dtype=dtype),)).outputs]
        taken = take_step(subject, Adversarial(Options()), attack=attack, teachers=teachers, dtype=dtype)
        check_gradient(subject, taken, f"adversarial training in {dtype}, radius {FULL.eps:g}")


def keeps_its_state_in_checkpoints(subject: Subject) -> None:
    """``state_dict`` is JSON, and a new object that loads it goes on with the same points."""
    check_state(subject, lambda attack, i: _usual(attack, seed=i))


def resumes_to_the_same_weights(subject: Subject) -> None:
    """A run that is killed twice and resumed ends with the weights of one that was left alone."""
    with sandbox() as folder:
        settings = {key: value for key, value in quick_settings().items() if not key.startswith("attack.")}
        attack = subject.create()
        if getattr(attack, "reference", None) == "teacher" or getattr(attack, "calls_teacher", False):
            settings |= teachers_in(folder, 1)
        check_resumes(subject, {**settings, "bound.name": "adversarial", **subject.settings("attack")}, folder)


CHECKS = (
    *COMMON,
    declares_what_it_is,
    returns_points_of_the_box,
    finds_smaller_margins,
    draws_from_its_noise_alone,
    leaves_network_and_inputs_alone,
    stays_put_in_a_box_without_width,
    takes_any_batch,
    serves_a_training_step,
    keeps_its_state_in_checkpoints,
    resumes_to_the_same_weights,
    leaves_global_state_alone(exercise),
)
