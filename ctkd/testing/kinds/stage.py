# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certification stages (``ctkd.api.CertificationStage``). A stage that is not sound makes wrong certificates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Found
from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput
from ctkd.propagate import Network, margins_of
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.nets import NETS, above, batch, least_margins, network, trial_points
from ctkd.testing.steps import check_repeats
from ctkd.testing.subject import NotApplicable, Subject

RADII = (0.01, 0.1)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Rounding that is forgiven, relative to the margins."""
CONTRACT = "CertificationStage.margins returns (batch, classes) lower bounds of the margins, 0 at the label"


@torch.no_grad()  # as in the cascade
def _margins(stage: Any, net: Network, box: Box, labels: Tensor) -> Any:
    return stage.margins(net, box, labels)


def _networks(
    stage: Any, dtype: torch.dtype = torch.float64, names: Sequence[str] = tuple(NETS)
) -> Iterator[tuple[str, Network]]:
    """Random and trained networks that the stage accepts.

    Raises: NotApplicable if it refuses all.
    """
    reasons = []
    for name in names:
        for trained in (False, True):
            net = network(name, trained=trained, dtype=dtype)
            x, labels = batch(dtype, size=1)
            try:
                _margins(stage, net, perturbation_box(x, RADII[0]), labels)
            except BadInput as problem:
                reasons.append(f"{name}: {problem}")
                continue
            yield f"{'trained' if trained else 'random'} network {name!r}", net
    if len(reasons) == 2 * len(names):
        raise NotApplicable(f"it refuses every network of this kit: {'; '.join(reasons)}")


def exercise(subject: Subject) -> list[Tensor]:
    """Bounds on a small network, with a residual block if the stage accepts that."""
    stage = subject.create()
    x, labels = batch()
    _, net = next(_networks(stage, names=("residual", *NETS)))
    return [_margins(stage, net, perturbation_box(x, RADII[1]), labels)]


def returns_margins(subject: Subject) -> None:
    """Margins are (batch, classes), in the dtype of the network, 0 at the label and never NaN; any batch size."""
    stage = subject.create()
    for dtype in TOLERANCES:
        for where, net in _networks(stage, dtype):
            for size in (3, 1):
                x, labels = batch(dtype, size=size)
                found = _margins(stage, net, perturbation_box(x, RADII[1]), labels)
                wanted = (size, net.classes)
                if not isinstance(found, Tensor) or tuple(found.shape) != wanted or found.dtype != dtype:
                    what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
                    subject.reject(
                        f"{where}: margins returned {what} for {size} boxes in {dtype}",
                        f"{CONTRACT}, here {wanted} in the dtype of network and box",
                        "compute in the network's dtype; float64 is what certificates are made in",
                    )
                if bool(found.isnan().any()):
                    subject.reject(
                        f"{where}: margins returned NaN",
                        f"{CONTRACT}; -inf where nothing is known",
                        "look for 0 * inf and inf - inf",
                    )
                if bool(found.gather(1, labels[:, None]).any()):
                    subject.reject(
                        f"{where}: the entry at the label is not 0",
                        CONTRACT,
                        "ctkd.propagate.at_classes puts bounds of margin_specification's rows into place",
                    )


def margins_are_lower_bounds(subject: Subject) -> None:
    """No sampled or attacked point of the box has a smaller margin; on random and trained networks of every form."""
    stage = subject.create()
    x, labels = batch()
    for where, net in _networks(stage):
        for eps in RADII:
            box = perturbation_box(x, eps)
            _check_sound(subject, stage, net, box, labels, f"{where}, radius {eps:g}")


def margins_are_lower_bounds_in_float32(subject: Subject) -> None:
    """The same in float32, up to its rounding."""
    stage = subject.create()
    x, labels = batch(torch.float32)
    for where, net in _networks(stage, torch.float32):
        _check_sound(subject, stage, net, perturbation_box(x, RADII[1]), labels, f"{where}, float32")


def _check_sound(subject: Subject, stage: Any, net: Network, box: Box, labels: Tensor, where: str) -> None:
    found = _margins(stage, net, box, labels)
    least = least_margins(net, trial_points(net, box, labels), labels)
    excess = float(above(found, least, TOLERANCES[found.dtype]).amax())
    if excess > 0:
        subject.reject(
            f"{where}: a point of the box has a margin that is {excess:.3g} below the bound",
            f"{CONTRACT}: no point of the box may have a smaller one. This would be a wrong certificate",
            "look for a sign, for bounds of one layer used at another, for a box taken as x +- eps, and for a bound "
            "that is optimised beyond where it is valid",
        )


def is_right_without_a_radius(subject: Subject) -> None:
    """For a box of one point the bounds are at most the margins of that point, and not NaN."""
    stage = subject.create()
    x, labels = batch()
    for where, net in _networks(stage):
        found = _margins(stage, net, Box(x, x), labels)
        with torch.no_grad():
            exact = margins_of(net(x), labels)
        if bool(found.isnan().any()) or bool(above(found, exact).any()):
            subject.reject(
                f"{where}: for boxes with lower = upper the bounds are NaN or above the exact margins",
                CONTRACT,
                "look for divisions by the width of a box or of an interval",
            )


def repeats(subject: Subject) -> None:
    """Two equal calls give the same bounds bit for bit, whatever the global random numbers."""
    check_repeats(subject, lambda: exercise(subject), "what margins returns", "a torch.Generator with a fixed seed")


def leaves_the_network_alone(subject: Subject) -> None:
    """The network's tensors and the box are as they were, without gradients."""
    stage = subject.create()
    x, labels = batch()
    for where, net in _networks(stage):
        box = perturbation_box(x, RADII[1])
        before = net.sha256(), box.lower.clone(), box.upper.clone()
        _margins(stage, net, box, labels)
        tensors = [tensor for node in net.nodes if node.op for _, tensor in node.op.tensors()]
        marked = any(tensor.requires_grad or tensor.grad is not None for tensor in tensors)
        if marked or net.sha256() != before[0] or not (box.lower.equal(before[1]) and box.upper.equal(before[2])):
            subject.reject(
                f"{where}: margins changed the network or the box",
                "the certified network is one: nothing may write to it, or leave gradients at it",
                "work on network.detach() and on clones",
            )


def searches_as_it_says(subject: Subject) -> None:
    """A stage that searches returns sound margins, inputs like those it got, and also does so when told to stop."""
    stage = subject.create()
    if not hasattr(stage, "search"):
        raise NotApplicable("it does not search")
    contract = "CertificationStage.search returns ctkd.api.Found with margins, points, proofs for each box, or none"
    x, labels = batch(size=2)
    for where, net in _networks(stage):
        box = perturbation_box(x, RADII[1])
        least = least_margins(net, trial_points(net, box, labels), labels)
        for stop in (False, True):
            with torch.no_grad():
                found = stage.search(net, box, labels, lambda stop=stop: stop)
            told = f"{where}, stop() {stop}"
            if not isinstance(found, Found) or found.margins.shape != least.shape:
                subject.reject(f"{told}: search returned {found!r:.80}", contract, "wrap the margins: Found(margins)")
            if float(above(found.margins, least, TOLERANCES[least.dtype]).amax()) > 0:
                subject.reject(
                    f"{told}: a point of the box has a margin below the bound",
                    f"{contract}. This would be a wrong certificate",
                    "what is not finished has the bound -inf, or the best sound one so far",
                )
            points = found.points
            if points is not None and (points.shape != x.shape or not bool(points.isfinite().all())):
                subject.reject(
                    f"{told}: its points have shape {tuple(points.shape)}, or are not finite",
                    contract,
                    "return the best input met for each box, or the box's centre",
                )
            if len(found.proofs) not in (0, len(x)):
                subject.reject(f"{told}: {len(found.proofs)} proofs for {len(x)} boxes", contract, "None where none is")


CHECKS = (
    *COMMON,
    returns_margins,
    margins_are_lower_bounds,
    margins_are_lower_bounds_in_float32,
    is_right_without_a_radius,
    repeats,
    leaves_the_network_alone,
    searches_as_it_says,
    leaves_global_state_alone(exercise),
)
