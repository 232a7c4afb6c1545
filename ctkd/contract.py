# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What plugins must return: loss, points, bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from ctkd.api import Enclosure, cross_entropy
from ctkd.distributed import partial
from ctkd.errors import RunFailed
from ctkd.propagate import margins_of

TOLERANCE = 1e-3
"""By how much a float32 bound may miss, times the size of what it bounds (at least 1)."""


def check_loss(loss: object, batch: int, who: str, *, per_sample: bool = False) -> None:
    """Raises: RunFailed if a loss has the wrong type or shape, or no gradient. No value is looked at."""
    accepted = f"({batch},), one value per sample" + ("" if per_sample else ", or ()")
    if not isinstance(loss, Tensor):
        raise RunFailed(f"{who} returned {type(loss).__name__}; it must return a tensor of shape {accepted}")
    if loss.shape != (batch,) and (per_sample or loss.shape != ()):
        raise RunFailed(f"{who} returned a tensor of shape {tuple(loss.shape)}; the shape must be {accepted}")
    # Of a part of a batch it may all go through sums over the whole.
    if torch.is_grad_enabled() and not partial() and not loss.requires_grad:
        raise RunFailed(
            f"{who} returned a loss that is detached from the student, so nothing would be trained; look for "
            "detach(), item(), no_grad() or a new tensor built from values"
        )


def check_points(found: object, x: Tensor, who: str, *, finite: bool = True) -> Tensor:
    """What an attack returned. Raises: RunFailed if that is no batch of inputs, or holds NaN (infinities are clamped).

    ``finite=False`` looks at no value, so that no device waits.
    """
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != x.dtype:
        what = (
            f"a tensor of shape {tuple(found.shape)} and type {found.dtype}"
            if isinstance(found, Tensor)
            else type(found).__name__
        )
        raise RunFailed(f"{who} returned {what}; it must return inputs like those it got: {tuple(x.shape)}, {x.dtype}")
    if finite and bool(found.isnan().any()):
        raise RunFailed(f"{who} returned NaN; it must return inputs inside the box")
    return found


@torch.no_grad()
def check_claims(claims: list[Enclosure], x: Tensor, logits: Tensor, labels: Tensor, who: str) -> None:
    """The images themselves lie in most boxes: what is claimed for a box must hold for them.

    Raises: RunFailed with the worst of the margins, or losses, that were claimed and found.
    """
    margins = margins_of(logits, labels)
    for claim in claims:
        inside = ((claim.inputs.lower <= x) & (x <= claim.inputs.upper)).flatten(1).all(1)
        if claim.loss is not None:
            what, sign, claimed, found = "an upper bound of the loss", -1, claim.loss, cross_entropy(margins)
        elif claim.margins is not None:
            what, sign, claimed, found = "a lower bound of the margins", 1, claim.margins, margins
        else:
            continue
        claimed, found = claimed[inside].flatten(), found[inside].flatten()
        excess = sign * (claimed - found) - TOLERANCE * torch.maximum(claimed.abs(), found.abs()).clamp(min=1)
        if bool((excess > 0).any()):
            worst = excess.argmax()
            raise RunFailed(
                f"{who} claims {what} over a box, and an image in the box breaks it: claimed "
                f"{float(claimed[worst]):.4g}, found {float(found[worst]):.4g}. The bound is wrong; an estimate "
                "belongs in an enclosure of kind 'mixed' (Enclosure.estimated), with sound = False"
            )
