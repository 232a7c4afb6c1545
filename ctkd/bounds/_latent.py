# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What TAPS and STAPS share: the cut, the attacks behind it, and the gradient link to the box at it.

Mao et al. 2023, arXiv 2305.04574, Section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctkd.api import Step, batch_mean, cross_entropy
from ctkd.errors import BadInput
from ctkd.propagate import Network, at_classes, margin_specification, propagate
from ctkd.propagate.ops import Activation
from ctkd.randomness import Noise

if TYPE_CHECKING:
    from ctkd.bounds.taps import TAPSOptions

Margins = Callable[[Tensor], Tensor]
"""(batch, rivals, *shape at the cut) latent points to each one's margin over its rival, (batch, rivals)."""

DECAYS = ((81, (0.3, 0.6, 0.8)), (51, (0.4, 0.7)), (10, (0.7,)))
"""From how many steps on an attack's step size shrinks, and after which parts of them, as in CTBench."""
LINK = 0.5
"""The part of the box next to each edge from which points send gradient to it (c of the source)."""


def cut_node(network: Network, split: int) -> int:
    """The activation that ends the first block: ``split`` activations come behind it.

    Raises: BadInput where there is none, or where a path leads around it.
    """
    last = len(network.activations) - 1
    places = {last - i: node for i, node in enumerate(network.activations) if not _bypassed(network, node)}
    if split not in places:
        accepted = ", ".join(map(str, sorted(places))) or "none"
        raise BadInput(
            f"bound.split={split} does not cut this network, which has {last + 1} activations, into two blocks; "
            f"accepted here: {accepted}"
        )
    return places[split]


def _bypassed(network: Network, cut: int) -> bool:
    return any(source < cut for node in network.nodes[cut + 1 :] for source in node.inputs)


def split_loss(step: Step, name: str, options: TAPSOptions) -> Tensor:
    """The loss of the box ``name``, times that of the attacks behind the cut once the radius has stopped growing."""
    box, cut = step[name], cut_node(step.network, options.split)
    if step.schedule.phase == "ramp" or (options.split == 0 and not options.product):
        return step.loss(box)
    assert box.margins is not None
    # Behind the last activation a single affine map is left: intervals know its extremes without an attack.
    margins = attacked_margins(step, name, cut, options) if options.split else box.margins
    loss = step.record("taps/latent", cross_entropy(margins))
    if options.product:
        # The published product is one of batch means: core's mean over samples makes this that.
        loss = _scale_gradient(loss, options.gradient_scale) * batch_mean(step.record("taps/box", box.robust_loss()))
    return step.loss(box.estimated(loss))


def _scale_gradient(x: Tensor, scale: float) -> Tensor:
    return x.detach() + scale * (x - x.detach())


def attacked_margins(step: Step, name: str, cut: int, options: TAPSOptions) -> Tensor:
    """Margins over each rival class at a latent point that was attacked for it, (batch, classes), 0 at the label.

    Estimates from above of the smallest margins over the box at the cut. The attacks see weights and box as constants;
    the gradient flows through the second block's weights, and by ``Link`` through the box into the first block.
    """
    network, labels = step.network, step.labels
    op = network.nodes[cut].op
    assert isinstance(op, Activation)  # ``cut_node`` chose one
    lower, upper = (edge.unsqueeze(1) for edge in op.interval(*step.bounds(name)[cut]))
    _, rivals = margin_specification(labels, network.classes, lower.dtype)

    def margins_by(network: Network) -> Margins:
        def margins(latent: Tensor) -> Tensor:
            logits = propagate(network, latent.flatten(0, 1), None, start=cut).value
            logits = logits.reshape(*latent.shape[:2], network.classes)
            own = labels[:, None, None].expand(-1, rivals.shape[1], 1)
            return (logits.gather(2, own) - logits.gather(2, rivals.unsqueeze(2))).squeeze(2)

        return margins

    points = attack(
        margins_by(network.detach()),
        lower.detach(),
        upper.detach(),
        rivals.shape[1],
        steps=options.steps,
        step_size=options.step_size or max(0.2, 2 / options.steps),
        restarts=options.restarts,
        noise=step.noise,
    )
    linked: Tensor = Link.apply(points, lower.expand_as(points), upper.expand_as(points))  # type: ignore[no-untyped-call]
    return at_classes(margins_by(network)(linked), rivals)


def attack(
    margins: Margins,
    lower: Tensor,
    upper: Tensor,
    rivals: int,
    *,
    steps: int,
    step_size: float,
    restarts: int,
    noise: Noise,
) -> Tensor:
    """For each sample and rival the point of least margin among all steps and restarts, (batch, rivals, *shape).

    Args:
        lower, upper: (batch, 1, *shape), the boxes; all rivals of all samples are attacked at once.

    Steps follow the gradient's sign from a uniform start; ``step_size`` is relative to the box's width, elementwise,
    and shrinks to a fifth at each of ``decays``.
    """
    parts = next((parts for least, parts in DECAYS if steps >= least), ())
    decays = [int(part * steps) for part in parts]
    shape, width = (lower.shape[0], rivals, *lower.shape[2:]), upper - lower
    best, least = lower.expand(shape), lower.new_full(shape[:2], torch.inf)

    def keep(point: Tensor, value: Tensor) -> None:
        nonlocal best, least
        better = value < least
        best = torch.where(better.reshape(*shape[:2], *[1] * (len(shape) - 2)), point, best)
        least = torch.where(better, value, least)

    for _ in range(restarts):
        point = (lower + noise.uniform(lower.expand(shape)) * width).clamp(lower, upper)
        for i in range(steps):
            with torch.enable_grad():
                point.requires_grad_()
                value = margins(point)
                (gradient,) = torch.autograd.grad(value.sum(), point)
            point = point.detach()
            keep(point, value.detach())
            size = step_size * 0.2 ** sum(i >= moment for moment in decays)
            point = (point - gradient.sign() * size * width).clamp(lower, upper)
        with torch.no_grad():
            keep(point, margins(point))
    return best


class Link(torch.autograd.Function):
    """Latent points as functions of their box's edges, all (batch, rivals, *shape); values are the points'.

    With slack = c (upper - lower): d point / d upper = relu(point - (upper - slack)) / slack, and
    d point / d lower = relu((lower + slack) - point) / slack. In a box without width both are 1/2, so that a point
    that is the whole box moves with it. Points themselves get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        ctx.save_for_backward(points, lower, upper)
        return points.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        points, lower, upper = ctx.saved_tensors
        slack = LINK * (upper - lower)
        # Of a narrow box, upper - slack would be rounded more than the box is wide.
        to_upper, to_lower = (
            torch.where(slack > 0, 1 - distance / slack, 0.5).clamp(0, 1)
            for distance in (upper - points, points - lower)
        )
        return None, gradients[0] * to_lower, gradients[0] * to_upper
