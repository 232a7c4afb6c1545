# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How a sweep proposes values: Optuna's samplers, each made anew for every trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ctkd.errors import BadInput
from ctkd.sweep.space import Choices, Parameter

if TYPE_CHECKING:
    from optuna import Study


class Sampler(Protocol):
    """Made from the space; ``size`` is the number of trials after which there is nothing left, or infinity."""

    size: float

    def __init__(self, space: Mapping[str, Parameter]) -> None: ...

    def prepare(self, study: Study, seed: int, trial: int) -> None:
        """Let ``study.ask`` draw the trial of this number."""
        ...


class Tpe:
    """Tree-structured Parzen estimator, for one objective or several (Ozaki et al. 2022)."""

    size = math.inf

    def __init__(self, space: Mapping[str, Parameter]) -> None: ...

    def prepare(self, study: Study, seed: int, trial: int) -> None:
        from optuna.samplers import TPESampler

        study.sampler = TPESampler(seed=_mixed(seed, trial))


class Random:
    """Independent draws."""

    size = math.inf

    def __init__(self, space: Mapping[str, Parameter]) -> None: ...

    def prepare(self, study: Study, seed: int, trial: int) -> None:
        from optuna.samplers import RandomSampler

        study.sampler = RandomSampler(seed=_mixed(seed, trial))


class Grid:
    """Every combination once, in the order of the values, the last parameter fastest."""

    def __init__(self, space: Mapping[str, Parameter]) -> None:
        ranges = [key for key, parameter in space.items() if not isinstance(parameter, Choices)]
        if ranges:
            raise BadInput(f"--sampler grid takes lists of values, and {', '.join(ranges)} has a range; write a,b,c")
        self.values = {key: parameter.texts for key, parameter in space.items() if isinstance(parameter, Choices)}
        self.size: float = math.prod(len(texts) for texts in self.values.values())

    def prepare(self, study: Study, seed: int, trial: int) -> None:
        chosen = {}
        for key, texts in reversed(self.values.items()):
            trial, i = divmod(trial, len(texts))
            chosen[key] = texts[i]
        study.enqueue_trial(chosen, skip_if_exists=True)


SAMPLERS: dict[str, type[Sampler]] = {"tpe": Tpe, "random": Random, "grid": Grid}


def _mixed(seed: int, trial: int) -> int:
    """A seed for each trial; neighbouring ones would make neighbouring draws."""
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
