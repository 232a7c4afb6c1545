# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The attack behind reported adversarial accuracies: PGD on the margin, and further ones that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctkd.accuracy import found_inside, smallest_margin
from ctkd.api import Attack, Split
from ctkd.attribution import is_own
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.options import CertifyOptions
from ctkd.plugins import create_from, options_from, registry
from ctkd.propagate import Network, margins_of
from ctkd.randomness import Noise


def pgd_table(options: CertifyOptions) -> dict[str, Any]:
    """PGD as a table with ``name`` and options."""
    return {
        "name": "pgd",
        "objective": "margin",
        "steps": options.attack_steps,
        "restarts": options.attack_restarts,
        "step_size": options.attack_step_size,
    }


def attack_facts(options: CertifyOptions) -> dict[str, Any]:
    """What a report says of the attack."""
    return {**pgd_table(options), "further": [resolved("attack", table) for table in options.further_attacks]}


def resolved(kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A plugin's table with all its options, and the distribution it comes from where that is not ctkd."""
    entry = registry().find(kind, table["name"])
    options = options_from(kind, table, kind, [])
    origin = {} if is_own(entry) else {"origin": entry.origin}
    return {"name": entry.name, **(options.model_dump(mode="json") if options else {}), **origin}


def evaluation_attack(options: CertifyOptions) -> Attack:
    """The attack that the options describe."""
    pgd: Attack = create_from("attack", pgd_table(options))
    if not options.further_attacks:
        return pgd
    return InTurn([pgd, *(create_from("attack", table) for table in options.further_attacks)])


@dataclass(frozen=True)
class InTurn:
    """Several attacks, each on the samples that those before it did not break."""

    attacks: Sequence[Attack]

    def perturb(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        box: Box,
        noise: Noise,
        reference: Tensor | None = None,
    ) -> Tensor:
        """The point of the smallest margin that any attack found."""

        def margin(points: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                return smallest_margin(margins_of(logits(points), labels[rows]), labels[rows])

        best = x.clone()
        left = torch.arange(len(x), device=x.device)
        lowest = margin(x, left)
        for attack in self.attacks:
            left = (lowest > 0).nonzero().flatten()
            if len(left) == 0:
                break
            own = None
            if getattr(attack, "reference", None) == "student":
                with torch.no_grad():
                    own = logits(x[left])
            found = found_inside(attack, logits, x[left], labels[left], box[left], noise[left], own)
            reached = margin(found, left)
            better = reached < lowest[left]
            best[left[better]] = found[better]
            lowest[left[better]] = reached[better]
        return best


def attack_again(
    network: Network, split: Split, eps: float, samples: Sequence[int], details: Mapping[str, Any]
) -> Tensor:
    """(samples, *input_shape): the attack's points, found again from each sample's own noise.

    Results keep only margins. These are the recorded points up to the last bits of float32, inside the samples' boxes;
    where results come from another device than the CPU, last bits may have decided more.

    Args:
        details: of the settings under which the results were recorded; see ``Store.matching``.

    Raises: BadInput if an attack among them is not installed.
    """
    options = CertifyOptions(**details["attack"], further_attacks=tuple(map(_table, details["further_attacks"])))
    rows = torch.tensor(samples)
    x, labels = split.images[rows], split.labels[rows]
    noise = Noise(options.seed, "certification-attack", samples=rows)
    return found_inside(evaluation_attack(options), network, x, labels, perturbation_box(x, eps), noise)


def search_again(
    network: Network, split: Split, eps: float, samples: Sequence[int], details: Mapping[str, Any], stage: str
) -> Tensor:
    """As ``attack_again``, for samples that a certification stage broke: its points, or the image where it finds none.

    A stage may find another point than it did, or none where its time runs out.

    Raises: BadInput if the stage is not installed.
    """
    search = create_from("stage", next(_table(table) for table in details["stages"] if table["name"] == stage)).search
    wide = network.to(torch.float64)
    points = split.images[torch.tensor(samples)].clone()
    for k, sample in enumerate(samples):
        box = perturbation_box(points[k : k + 1], eps)
        found = search(wide, box.to(torch.float64), split.labels[[sample]], lambda: False).points
        if found is not None:
            points[k : k + 1] = box.clamp(found.to(points.dtype))
    return points


def _table(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A plugin's name and options, without where it came from."""
    return {key: value for key, value in recorded.items() if key != "origin"}
