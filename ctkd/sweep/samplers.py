# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""How a sweep proposes values: Optuna's samplers, made anew for every trial; no trial twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ctkd.errors import BadInput
from ctkd.sweep.space import Choices, Parameter, cells_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

Space = Mapping[str, Parameter]
ATTEMPTS = 20
"""Of a sampler, which may be set on what it knows; then any cell that is left is drawn."""


class Sampler(Protocol):
    """Made from the space. ``trials``: how many there are unless the user says so; None is every cell."""

    trials: int | None

    def __init__(self, space: Space) -> None: ...

    def propose(self, study: Study, seed: int, trial: int) -> dict[str, Any]:
        """What Optuna knows the trial of this number by; not what an earlier trial of the study had."""
        ...


class Tpe:
    """Tree-structured Parzen estimator, for one objective or several (Ozaki et al. 2022)."""

    trials: int | None = 20

    def __init__(self, space: Space) -> None:
        self.space = space

    def propose(self, study: Study, seed: int, trial: int) -> dict[str, Any]:
        from optuna.samplers import TPESampler

        return _unlike(study, self.space, TPESampler, _mixed(seed, trial))


class Random:
    """Independent draws."""

    trials: int | None = 20

    def __init__(self, space: Space) -> None:
        self.space = space

    def propose(self, study: Study, seed: int, trial: int) -> dict[str, Any]:
        from optuna.samplers import RandomSampler

        return _unlike(study, self.space, RandomSampler, _mixed(seed, trial))


class Grid:
    """Every combination once, in the order of the values, the last parameter fastest."""

    trials: int | None = None

    def __init__(self, space: Space) -> None:
        ranges = [key for key, parameter in space.items() if not isinstance(parameter, Choices)]
        if ranges:
            raise BadInput(f"--sampler grid takes lists of values, and {', '.join(ranges)} has a range; write a,b,c")
        self.values = {key: parameter.texts for key, parameter in space.items() if isinstance(parameter, Choices)}

    def propose(self, study: Study, seed: int, trial: int) -> dict[str, Any]:
        chosen = {}
        for key, texts in reversed(self.values.items()):
            trial, i = divmod(trial, len(texts))
            chosen[key] = texts[i]
        return chosen


def _unlike(study: Study, space: Space, sampler: Callable[..., BaseSampler], seed: int) -> dict[str, Any]:
    """What a sampler draws, and draws again where there was such a trial.

    Raises:
        ValueError: every cell was tried.
    """
    import optuna

    # Those that a kill left half drawn do not count.
    known = [trial for trial in study.get_trials() if trial.state.is_finished() and trial.params.keys() == space.keys()]
    tried = [trial.params for trial in known]
    rehearsal = optuna.create_study(directions=study.directions, sampler=sampler(seed=seed))  # nothing is stored
    rehearsal.add_trials(known)
    kinds = {key: parameter.distribution() for key, parameter in space.items()}
    for _ in range(ATTEMPTS):
        trial = rehearsal.ask(kinds)
        if trial.params not in tried:
            return trial.params
        rehearsal.tell(trial, state=optuna.trial.TrialState.FAIL)
    if len({tuple(sorted(each.items())) for each in tried}) >= cells_of(space):
        raise ValueError("every cell of the space was tried")
    generator = np.random.default_rng(seed)
    while True:
        drawn = {key: parameter.draw(generator) for key, parameter in space.items()}
        if drawn not in tried:
            return drawn


SAMPLERS: dict[str, type[Sampler]] = {"tpe": Tpe, "random": Random, "grid": Grid}


def _mixed(seed: int, trial: int) -> int:
    """A seed for each trial; neighbouring ones would make neighbouring draws."""
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
