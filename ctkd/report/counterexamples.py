# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The weakest samples with their counterexamples.

Results keep margins, not attacked points. The attack is therefore run again, from the sample's own noise, which gives
the recorded point again up to the last bits of float32; the margin shown is that of the point shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.accuracy import smallest_margin
from ctkd.api import Split
from ctkd.certify.attack import attack_again
from ctkd.certify.radii import Radii
from ctkd.machine import full_precision
from ctkd.propagate import Network, margins_of
from ctkd.report.results import Result

CLOSE = 1e-3
"""A margin that differs from the recorded one by more than this was not reproduced."""


@dataclass(frozen=True)
class Counterexample:
    """One sample, attacked at ``eps``.

    Attributes:
        predicted: the class with the greatest logit at the attacked point, the label apart.
        natural_margin, margin: smallest margin at the image and at the attacked point, both computed here.
        recorded: the margin that the results have; None where they have none at this radius.
        certified: the sample's certified radius, None where it is not known or there is none.
        image, adversarial, difference: PNG as data URIs; the difference goes from -eps to eps.
    """

    sample: int
    label: int
    predicted: int
    eps: float
    natural_margin: float
    margin: float
    recorded: float | None
    certified: float | None
    image: str
    adversarial: str
    difference: str

    @property
    def note(self) -> str:
        """Where the attack did not find here what the results say: what they say."""
        if self.margin <= 0 and (self.recorded is None or abs(self.margin - self.recorded) <= CLOSE):
            return ""
        recorded = "" if self.recorded is None else f" The recorded margin is {self.recorded:.3g}."
        return ("The attack did not break it again." if self.margin > 0 else "") + recorded


def drawable(split: Split) -> bool:
    """Whether a sample is a grey or coloured image."""
    shape = split.images.shape[1:]
    return len(shape) == 3 and shape[0] in (1, 3)


def weakest(result: Result, radii: Radii | None, count: int) -> list[tuple[int, float]]:
    """Samples and radii to attack: correctly classified, broken by the attack, the weakest first.

    By the smallest radius that breaks them where radii were searched, else by the attack's margin at one radius.
    """
    if radii is not None:
        found = [(b.broken, i) for i, b in radii.brackets.items() if b.broken is not None and b.by == "attack"]
        return [(i, eps) for eps, i in sorted(found)[:count]]
    rows = [row for row in result.rows if row.status == "broken" and row.stage == "attack"]
    return [(row.sample, result.eps) for row in sorted(rows, key=lambda row: row.attack_margin)[:count]]


def counterexamples(
    network: Network, split: Split, result: Result, radii: Radii | None, chosen: Sequence[tuple[int, float]]
) -> list[Counterexample]:
    """Attack the samples again, by the attack of ``result``, each at its radius. Raises: as ``attack_again``."""
    details = {"further_attacks": [], **result.details}
    recorded = {row.sample: row.attack_margin for row in result.rows}
    found: dict[int, Counterexample] = {}
    for eps in sorted({eps for _, eps in chosen}):
        samples = [sample for sample, at in chosen if at == eps]
        x, labels = split.images[samples], split.labels[samples]
        with full_precision():
            attacked = attack_again(network, split, eps, samples, details)
            with torch.no_grad():
                natural, logits = margins_of(network(x), labels), network(attacked)
        margins = smallest_margin(margins_of(logits, labels), labels)
        others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        for k, sample in enumerate(samples):
            found[sample] = Counterexample(
                sample,
                int(labels[k]),
                int(others[k]),
                eps,
                float(smallest_margin(natural, labels)[k]),
                float(margins[k]),
                recorded.get(sample) if eps == result.eps else None,
                radii.brackets[sample].certified if radii is not None else None,
                png(x[k]),
                png(attacked[k]),
                difference_png(attacked[k] - x[k], eps),
            )
    return [found[sample] for sample, _ in chosen]


def png(image: Tensor) -> str:
    """A (1 or 3, height, width) image in [0, 1] as a PNG, in a data URI."""
    from matplotlib.image import imsave

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    buffer = io.BytesIO()
    imsave(buffer, pixels.expand(-1, -1, 3).numpy(), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def difference_png(difference: Tensor, eps: float) -> str:
    """A difference within eps: purple where pixels were lowered, orange where raised; of colours around grey."""
    from matplotlib import colormaps

    scaled = 0.5 + difference / (2 * eps) if eps > 0 else torch.full_like(difference, 0.5)
    if len(difference) == 1:
        # The ends of the map are nearly black.
        shades = 0.5 + (scaled[0].clamp(0, 1) - 0.5) * 0.76
        coloured = torch.as_tensor(colormaps["PuOr_r"](shades.numpy()))[..., :3]
        scaled = coloured.permute(2, 0, 1)
    return png(scaled)
