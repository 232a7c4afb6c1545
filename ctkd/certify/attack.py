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
from ctkd.api import Attack
from ctkd.attribution import is_own
from ctkd.boxes import Box
from ctkd.certify.options import CertifyOptions
from ctkd.plugins import create_from, options_from, registry
from ctkd.propagate import margins_of
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
