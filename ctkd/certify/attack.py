# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The attack behind reported adversarial accuracies: PGD on the margin, and further ones that the user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctkd.accuracy import smallest_margin
from ctkd.api import Attack
from ctkd.boxes import Box
from ctkd.certify.options import CertifyOptions
from ctkd.plugins import create_from
from ctkd.propagate import margins_of


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
    return {**pgd_table(options), "further": [dict(table) for table in options.further_attacks]}


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
        generator: torch.Generator,
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
            given: dict[str, Any] = {}
            if getattr(attack, "reference", None) == "student":
                with torch.no_grad():
                    given["reference"] = logits(x[left])
            part = box[left]
            found = part.clamp(attack.perturb(logits, x[left], labels[left], part, generator, **given).detach())
            reached = margin(found, left)
            better = reached < lowest[left]
            best[left[better]] = found[better]
            lowest[left[better]] = reached[better]
        return best
