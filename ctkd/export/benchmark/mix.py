# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How many instances of each difficulty, and how long each may take. Difficulty is ctkd's own outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ctkd.errors import BadInput

OUTCOMES = ("cheap", "tight", "undecided", "broken")
"""Certified by a cheap stage; certified by others only; neither; broken by the attack."""
WEIGHTS = {"cheap": 30, "tight": 120, "undecided": 550, "broken": 60}
"""How timeouts relate to each other, roughly as in the benchmark of certified training that was accepted in 2026."""
BUDGET = 21_600
"""Seconds that the timeouts of a benchmark may add up to."""
SELECTIONS = 1000
"""So many different choices of images there have to be, at least: another seed has to pick other images."""


@dataclass(frozen=True)
class Pool:
    """How many images of each outcome there are to draw from."""

    available: Mapping[str, int]
    hint: str = ""
    """How to get more."""

    def mix(self, samples: int) -> dict[str, int]:
        """As even as it can be, with at most half of each outcome's images, so that seeds differ.

        Raises: BadInput if there are too few images.
        """
        most = {outcome: self.available[outcome] // 2 for outcome in OUTCOMES}
        if samples > sum(most.values()):
            raise BadInput(
                f"samples={samples}: a mix of at most half of the images of each outcome has at most "
                f"{sum(most.values())}: {written(most)}; ask for fewer, or for a mix of your own{self.hint}"
            )
        mix = dict.fromkeys(OUTCOMES, 0)
        for _ in range(samples):
            fewest = min((o for o in OUTCOMES if mix[o] < most[o]), key=lambda o: mix[o])
            mix[fewest] += 1
        return self.checked(mix)

    def checked(self, mix: dict[str, int]) -> dict[str, int]:
        """The mix itself.

        Raises: BadInput if an outcome has too few images, or if different seeds would choose the same images.
        """
        short = [o for o in OUTCOMES if mix[o] > self.available[o]]
        if short:
            raise BadInput(
                f"mix {written(mix)}: too few images that are {', '.join(short)}; possible are at most "
                f"{written(self.available)}{self.hint}"
            )
        selections = math.prod(math.comb(self.available[o], mix[o]) for o in OUTCOMES)
        if selections < SELECTIONS:
            raise BadInput(
                f"mix {written(mix)} of {written(self.available)} leaves {selections} different choices of images; "
                f"another seed must pick other images, so at least {SELECTIONS} are needed{self.hint}"
            )
        return mix


def written(mix: Mapping[str, int]) -> str:
    """As ``parse_mix`` reads it."""
    return ",".join(f"{outcome}={mix[outcome]}" for outcome in OUTCOMES)


def parse_mix(text: str) -> dict[str, int]:
    """``"cheap=5,undecided=10"``; what is not named is 0. Raises: BadInput."""
    mix = dict.fromkeys(OUTCOMES, 0)
    for part in text.split(","):
        outcome, _, count = (piece.strip() for piece in part.partition("="))
        if outcome not in OUTCOMES or not (count.isascii() and count.isdigit()):
            raise BadInput(
                f"mix {text!r}: {part.strip()!r} is not a count of images; write such as cheap=5,tight=10,undecided=10,"
                f"broken=5 with outcomes out of {', '.join(OUTCOMES)}"
            )
        mix[outcome] += int(count)
    if not any(mix.values()):
        raise BadInput(f"mix {text!r} has no images")
    return mix


def timeouts(mix: Mapping[str, int], budget: float) -> dict[str, int]:
    """Whole seconds for each outcome that the mix has; their sum over all instances is as near the budget as it can be.

    Raises: BadInput if the budget is beyond the competition's, or too small for one second each.
    """
    used = [outcome for outcome in OUTCOMES if mix[outcome]]
    weight = sum(mix[outcome] * WEIGHTS[outcome] for outcome in used)
    if not 0 < budget <= BUDGET:
        raise BadInput(f"budget={budget:g}: the timeouts of a benchmark may add up to {BUDGET} seconds at most")
    seconds = {outcome: math.floor(budget * WEIGHTS[outcome] / weight) for outcome in used}
    if min(seconds.values()) < 1:
        least = math.ceil(weight / min(WEIGHTS[outcome] for outcome in used))
        raise BadInput(
            f"budget={budget:g} is too small for {sum(mix.values())} instances ({written(mix)}): "
            f"at least {least} seconds are needed"
        )
    rest = math.floor(budget) - sum(mix[outcome] * seconds[outcome] for outcome in used)
    for outcome in sorted(used, key=lambda o: -WEIGHTS[o]):
        more = rest // mix[outcome]
        seconds[outcome] += more
        rest -= more * mix[outcome]
    return seconds
