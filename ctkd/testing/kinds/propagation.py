# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Propagation backends (``ctkd.api.PropagationBackend``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctkd.api import Needs
from ctkd.bounds.crown_ibp import CrownIBP, CrownIBPOptions
from ctkd.bounds.mtl_ibp import MTLIBP, MTLIBPOptions
from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput
from ctkd.propagate import Network, margin_specification, margins_of
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.nets import (
    NETS,
    SHAPE,
    TRAINABLE,
    above,
    batch,
    build,
    extreme_margins,
    trial_points,
    values_at,
)
from ctkd.testing.steps import DTYPES, check_gradient, check_repeats, take_step
from ctkd.testing.subject import NotApplicable, Subject

EPS = 0.05
CLOSE = 1e-8
"""Relative difference, in float64, between numbers that differ by the order of sums only."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A net, traced by the backend, with the statistics of one batch."""

    where: str
    module: nn.Module
    graph: Any
    network: Network
    x: Tensor
    labels: Tensor

    @property
    def box(self) -> Box:
        return perturbation_box(self.x, EPS)


def _traced(
    subject: Subject, names: tuple[str, ...] = tuple(NETS), dtype: torch.dtype = torch.float64
) -> Iterator[Traced]:
    """Random and trained nets that the backend traces.

    Raises: NotApplicable if it refuses all.
    """
    backend, reasons = subject.create(), []
    for name in names:
        for trained in (False, True):
            module = build(name, trained=trained, dtype=dtype)
            try:
                graph = backend.trace(module, SHAPE)
            except BadInput as problem:
                reasons.append(f"{name}: {problem}")
                continue
            x, labels = batch(dtype)
            network = graph.bind(backend.clean_pass(graph, x).statistics)
            yield Traced(f"{'trained' if trained else 'random'} net {name!r}", module, graph, network, x, labels)
    if len(reasons) == 2 * len(names):
        raise NotApplicable(f"it refuses every net of this kit: {'; '.join(reasons)}")


def exercise(subject: Subject) -> list[Tensor]:
    """Training steps with interval and with relaxed bounds."""
    backend = subject.create()
    methods = (MTLIBP(MTLIBPOptions()), CrownIBP(CrownIBPOptions()))
    return [number for method in methods for number in take_step(subject, method, backend=backend).numbers]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.isclose(a, b, rtol=CLOSE, atol=CLOSE).all())


def _interval_margins(subject: Subject, where: str, found: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(found, tuple) or len(found) != 2:
        subject.reject(
            f"{where}: interval_margins returned {type(found).__name__}",
            "PropagationBackend.interval_margins returns two tensors, lower and upper bounds",
            "return both: they lie equally far from the margins at the centre",
        )
    lower, upper = found
    return lower, upper


def clean_pass_is_the_module(subject: Subject) -> None:
    """``clean_pass`` gives the logits of the module in training mode and its features, and moves no statistics."""
    backend = subject.create()
    for net in _traced(subject):
        state = {name: value.clone() for name, value in net.module.state_dict().items()}
        found = backend.clean_pass(net.graph, net.x)
        if any(not value.equal(state[name]) for name, value in net.module.state_dict().items()):
            subject.reject(
                f"{net.where}: clean_pass changed parameters or running statistics",
                "PropagationBackend.clean_pass computes; the loop updates running statistics once a step",
                "do not run batch-norm modules in training mode: return their statistics in CleanPass.statistics",
            )
        if not _close(found.logits, net.module(net.x)) or not _close(found.logits, net.network(net.x)):
            subject.reject(
                f"{net.where}: the logits of clean_pass are not those of the module in training mode",
                "CleanPass holds logits and features of a batch in training mode, and the statistics it set",
                "use this batch's statistics (biased variance) in every batch norm",
            )
        tap = net.network.features_node
        if tap is not None and not _close(found.features, net.network.evaluate(net.x, tap)[0]):
            subject.reject(
                f"{net.where}: the features of clean_pass are not the input of the last Linear layer",
                "CleanPass.features is the input of the last affine layer",
                "return its value before that layer",
            )


def points_are_exact(subject: Subject) -> None:
    """Points that go through ``propagate``, with and without boxes, have the network's logits and features."""
    backend = subject.create()
    for net in _traced(subject):
        tap = net.network.features_node
        for box in (None, net.box):
            flow = backend.propagate(net.network, net.x, box, Needs())
            exact = net.network(net.x)
            features = None if tap is None else net.network.evaluate(net.x, tap)[0]
            right = flow.points == len(net.x) and _close(flow.value[: flow.points], exact)
            if right and features is not None:
                right = _close(flow.features[: flow.points], features)
            if not right:
                subject.reject(
                    f"{net.where}: points in a flow {'with' if box else 'without'} boxes have other logits or features",
                    "Flow: the first `points` rows of value and features are those of the points",
                    "keep points and centres apart: points come first",
                )


def bounds_hold(subject: Subject) -> None:
    """All bounds over a box hold at sampled and attacked points: of margins, functionals, features and neurons."""
    backend = subject.create()
    for net in _traced(subject):
        network, box = net.network.detach(), net.box
        points = trial_points(network, box, net.labels)
        flow = backend.propagate(network, None, box, Needs())
        least, most = extreme_margins(network, points, net.labels)
        low, high = _interval_margins(subject, net.where, backend.interval_margins(network, flow, net.labels))
        rows, others = margin_specification(net.labels, network.classes, net.x.dtype)
        bounds = {i: (low, high) for i, (low, high) in flow.pre_activation.items()}
        specified = least.gather(1, others)
        excess = {
            "lower interval_margins": above(low, least),
            "upper interval_margins": above(most, high),
            "interval_lower": above(backend.interval_lower(network, flow, rows, slice(None)), specified),
            "relaxed_lower": above(backend.relaxed_lower(network, bounds, box, rows), specified),
        }
        for i, (low, high) in bounds.items():
            (value,) = values_at(network, points, network.nodes[i].inputs[0])
            excess[f"pre_activation[{i}]"] = torch.maximum(above(low, value.amin(0)), above(value.amax(0), high))
        if network.features_node is not None:
            (value,) = values_at(network, points, network.features_node)
            distance = (value - flow.features[flow.points :]).abs().amax(0)
            excess["feature_radius"] = above(distance, flow.feature_radius)
        for what, by in excess.items():
            if float(by.amax()) > 0:
                subject.reject(
                    f"{net.where}: {what} is left by {float(by.amax()):.3g} at a point of the box",
                    "bounds of a box hold for each of its points, up to rounding",
                    "check the rule of each operator by itself; on the nets 'linear' and 'narrow' intervals are exact",
                )


def bounds_have_their_shapes(subject: Subject) -> None:
    """Shapes, dtypes and rows are those of ``PropagationBackend``; boxes are chosen by a slice."""
    backend = subject.create()
    for dtype in DTYPES:
        for net in _traced(subject, dtype=dtype):
            size, classes = len(net.x), net.network.classes
            twice = Box(torch.cat([net.box.lower] * 2), torch.cat([net.box.upper] * 2))
            flow = backend.propagate(net.network, net.x, twice, Needs())
            both = backend.interval_margins(net.network, flow, net.labels.repeat(2))
            margins, upper = _interval_margins(subject, net.where, both)
            rows, others = margin_specification(net.labels, classes, dtype)
            second = slice(size, 2 * size)
            lower = backend.interval_lower(net.network, flow, rows, second)
            bounds = {i: (low[second], high[second]) for i, (low, high) in flow.pre_activation.items()}
            relaxed = backend.relaxed_lower(net.network, bounds, net.box, rows)
            for what, found, wanted in (
                ("interval_margins", margins, (2 * size, classes)),
                ("interval_margins", upper, (2 * size, classes)),
                ("interval_lower", lower, (size, classes - 1)),
                ("relaxed_lower", relaxed, (size, classes - 1)),
            ):
                if tuple(found.shape) != wanted or found.dtype != dtype:
                    subject.reject(
                        f"{net.where}: {what} returned {tuple(found.shape)}, {found.dtype}",
                        f"PropagationBackend.{what} returns one row for each box, here {wanted} in {dtype}",
                        "compute in the dtype of the network",
                    )
            if any(bool(ends.gather(1, net.labels.repeat(2)[:, None]).any()) for ends in (margins, upper)):
                subject.reject(
                    f"{net.where}: interval_margins is not 0 at the label",
                    "margins are 0 at the label, where they supply the 1 of the cross entropy",
                    "scatter 0 into that column",
                )
            gap = 1e-3 if dtype == torch.float32 else CLOSE
            if not bool(torch.isclose(lower, margins[second].gather(1, others), rtol=gap, atol=gap).all()):
                subject.reject(
                    f"{net.where}: interval_lower of the margins' rows is not interval_margins of those boxes",
                    "both are the interval bounds of the same functionals of the boxes in the slice",
                    "merge the rows into the last affine layer in both; take the boxes of the slice",
                )
            if set(flow.pre_activation) != set(net.network.nonlinear):
                subject.reject(
                    f"{net.where}: pre_activation has the nodes {sorted(flow.pre_activation)}",
                    f"it has bounds at every nonlinear node, here {list(net.network.nonlinear)}",
                    "keep bounds of the input of each activation and max pooling",
                )


def is_exact_without_a_radius(subject: Subject) -> None:
    """For boxes of one point all bounds are the exact values."""
    backend = subject.create()
    for net in _traced(subject):
        box = Box(net.x, net.x)
        flow = backend.propagate(net.network, None, box, Needs())
        exact = margins_of(net.network(net.x), net.labels)
        rows, others = margin_specification(net.labels, net.network.classes, net.x.dtype)
        relaxed = backend.relaxed_lower(net.network, dict(flow.pre_activation), box, rows)
        both = backend.interval_margins(net.network, flow, net.labels)
        low, high = _interval_margins(subject, net.where, both)
        if not _close(low, exact) or not _close(high, exact) or not _close(relaxed, exact.gather(1, others)):
            subject.reject(
                f"{net.where}: for boxes with lower = upper bounds are not the exact margins",
                "bounds of a set of one point are exact up to rounding: the ramp begins there",
                "look for divisions by the width of an interval, and for added constants",
            )


def hears_tighter_bounds(subject: Subject) -> None:
    """``Needs.tighten`` is asked at every nonlinear node, and what it returns is propagated."""
    backend = subject.create()
    for net in _traced(subject, TRAINABLE):
        asked: list[tuple[int, ...]] = []

        def halve(op: Any, lower: Tensor, upper: Tensor, asked: list[tuple[int, ...]] = asked) -> tuple[Tensor, Tensor]:
            asked.append(tuple(lower.shape))
            quarter = (upper - lower) / 4
            return lower + quarter, upper - quarter

        flow = backend.propagate(net.network, net.x, net.box, Needs(tighten=halve))
        usual = backend.propagate(net.network, net.x, net.box, Needs())
        nonlinear = net.network.nonlinear
        wanted = [(len(net.x), *net.network.nodes[net.network.nodes[i].inputs[0]].shape) for i in nonlinear]
        half = all(
            bool(((high - low) <= (usual.pre_activation[i][1] - usual.pre_activation[i][0]) / 2 + CLOSE).all())
            for i, (low, high) in flow.pre_activation.items()
        )
        if sorted(asked) != sorted(wanted) or not half:
            subject.reject(
                f"{net.where}: tighten was called with boxes of shapes {asked}, and what it returned was "
                f"{'used' if half else 'not used'}",
                f"Needs.tighten is called for each nonlinear operator, here with {wanted}, and what it returns is "
                "propagated in its place; points are left alone",
                "call it on lower and upper of the boxes alone, before the operator",
            )


def gradient_reaches_every_parameter(subject: Subject) -> None:
    """Training steps with intervals and with relaxed bounds have a finite gradient at every parameter."""
    backend = subject.create()
    for method in (MTLIBP(MTLIBPOptions()), CrownIBP(CrownIBPOptions())):
        for name in TRAINABLE:
            for dtype in DTYPES:
                try:
                    taken = take_step(subject, method, name, backend=backend, dtype=dtype)
                except BadInput:  # a stated refusal
                    continue
                check_gradient(subject, taken, f"net {name!r}, {type(method).__name__}, {dtype}")


def repeats(subject: Subject) -> None:
    """Two equal steps give the same loss and gradient bit for bit, whatever the global random numbers."""
    check_repeats(subject, lambda: exercise(subject), "the loss or its gradient", "nothing: bounds are not random")


def leaves_the_module_alone(subject: Subject) -> None:
    """Tracing and propagating leave parameters, buffers, gradients and mode of the module as they were."""
    backend = subject.create()
    for name in TRAINABLE:
        for training in (True, False):
            module = build(name).train(training)
            before = {key: value.clone() for key, value in module.state_dict().items()}
            try:
                take_step(subject, CrownIBP(CrownIBPOptions()), module=module, backend=backend)
            except BadInput:  # a stated refusal
                continue
            changed = [key for key, value in module.state_dict().items() if not value.equal(before[key])]
            changed += [f"the gradient of {key}" for key, p in module.named_parameters() if p.grad is not None]
            changed += [
                f"the mode of {key or 'the module'}"
                for key, part in module.named_modules()
                if part.training != training
            ]
            if changed:
                subject.reject(
                    f"a step on net {name!r} changed {', '.join(changed[:3])}",
                    "a backend reads the module; core updates it, and its mode is its owner's",
                    "trace a copy, share its parameters, and restore the mode of what you run",
                )


CHECKS = (
    *COMMON,
    clean_pass_is_the_module,
    points_are_exact,
    bounds_hold,
    bounds_have_their_shapes,
    is_exact_without_a_radius,
    hears_tighter_bounds,
    gradient_reaches_every_parameter,
    repeats,
    leaves_the_module_alone,
    leaves_global_state_alone(exercise),
)
