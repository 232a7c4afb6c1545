# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The folder of a sweep, and the search in it. Optuna proposes; each trial is one ordinary run per seed."""

from __future__ import annotations

import datetime
import importlib.util
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from ctkd.config import RunConfig, resolve
from ctkd.errors import BadInput, CtkdError, RunFailed
from ctkd.progress import Reporter
from ctkd.runfolder import MARKER, RunFolder
from ctkd.storage import read_json, write_json, write_text
from ctkd.sweep.samplers import SAMPLERS
from ctkd.sweep.space import cells_of, space_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

NEEDED = ("optuna", "matplotlib")
DEFINITION, STUDY = "sweep.json", "study.sqlite"
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "natural_accuracy": "maximize",
    "certified_accuracy": "maximize",
    "adversarial_accuracy": "maximize",
    "seconds": "minimize",
}
"""Figures of a run's summary that can be searched for, and their good direction."""
PROBLEMS, RUNS = "problem-{}", "runs-{}"
"""Attributes of the study, by the trial's number: why it failed; figures by seed."""

Train = Callable[[Mapping[str, Any], Path, Path], Mapping[str, Any]]
"""Settings, base configuration and run folder -> the run's summary; goes on with a run that is there."""


@dataclass(frozen=True)
class Definition:
    """What a sweep is, its number of trials apart."""

    over: tuple[str, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    sampler: str
    sampler_seed: int

    def check(self) -> None:
        """Raises: BadInput for whatever cannot be meant."""
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        problems = [f"--objective {name}: accepted: {', '.join(OBJECTIVES)}" for name in unknown]
        for what, values in (("--objective", self.objectives), ("--seeds", self.seeds)):
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            problems += [f"{what} has {value} twice" for value in twice]
        problems += [f"--seeds: {seed} is below 0" for seed in self.seeds if seed < 0]
        if not self.objectives:
            problems.append(f"--objective: name at least one: {', '.join(OBJECTIVES)}")
        if self.sampler not in SAMPLERS:
            problems.append(f"--sampler {self.sampler}: accepted: {', '.join(SAMPLERS)}")
        if problems:
            raise BadInput(*problems)


@dataclass(frozen=True)
class Content:
    """What ``sweep.json`` holds."""

    trials: int | None
    definition: Definition
    settings: dict[str, Any]
    format: Literal[1] = 1


@dataclass(frozen=True)
class Outcome:
    """One finished trial.

    Attributes:
        values: the parameters.
        mean, spread: of each objective, over the seeds; the spread is the sample standard deviation, None for one seed.
        runs: for each seed its objectives and its folder, relative to the sweep's.
        front: whether no other trial is as good in every objective and better in one, by the means.
    """

    number: int
    values: Mapping[str, Any]
    mean: Mapping[str, float]
    spread: Mapping[str, float | None]
    runs: Sequence[Mapping[str, Any]]
    front: bool = False


class Sweep:
    """A sweep's folder, opened: ``sweep.json``, ``base.toml``, Optuna's ``study.sqlite``, ``trials/NUMBER/seed-S``.

    Attributes:
        settings, base: the configuration that trials have in common, as ``ctkd.config.resolve`` takes it. It is not
            resolved, since defaults may depend on what is varied.
        trials: how many there are to be; None is one for each cell.
        cells: how many different trials there can be.
    """

    def __init__(self, path: Path, trials: int | None = None) -> None:
        found = read_json(path / DEFINITION)
        try:
            content = TypeAdapter(Content).validate_python(found)
        except ValidationError:
            raise BadInput(f"{path / DEFINITION} is damaged, or of another version of ctkd") from None
        self.definition, self.settings = content.definition, content.settings
        self.trials = trials or content.trials
        self.path, self.base = path, path / "base.toml"
        self.definition.check()
        self.space = space_of(self.definition.over, self.settings, self.base)
        self.sampler = SAMPLERS[self.definition.sampler](self.space)
        self.cells = cells_of(self.space)
        if trials:
            write_json(path / DEFINITION, {**found, "trials": trials})

    @staticmethod
    def create(
        path: Path | None, definition: Definition, settings: Mapping[str, Any], base: str, trials: int | None
    ) -> Path:
        """A new folder. Raises: BadInput if it cannot be made."""
        path = path or Path("sweeps") / datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        if (path / DEFINITION).exists():
            raise BadInput(f"{path} already holds a sweep; go on with it by `ctkd sweep --resume {path}`")
        content = asdict(Content(trials, definition, dict(settings)))
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise BadInput(f"{path} exists and is not empty; name a new folder with --out")
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / "base.toml", base)
            write_json(path / DEFINITION, content)
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}") from None
        return path

    def first(self) -> RunConfig:
        """A trial's whole configuration, at the first values."""
        return resolve({**self.settings, **{key: p.ends()[0] for key, p in self.space.items()}}, self.base)

    def run(self, train: Train, reporter: Reporter, after: Callable[[], object]) -> None:
        """Go on until all trials are there, failed ones included. Every finished run and trial is stored.

        Args:
            after: called after each trial.
        """
        with RunFolder(self.path).lock():
            study = self._study()
            while (trial := self._next(study)) is not None:
                self._work(study, trial, train, reporter)
                after()

    def outcomes(self) -> tuple[list[Outcome], list[tuple[int, str]]]:
        """Finished trials in their order, and numbers and reasons of those that failed."""
        from optuna.trial import TrialState

        study = self._study()
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        best = {trial.number for trial in study.best_trials} if done else set()
        known = study.user_attrs
        finished = [self._outcome(trial, trial.number in best, known[RUNS.format(trial.number)]) for trial in done]
        failed = study.get_trials(deepcopy=False, states=[TrialState.FAIL])
        problems = [(trial.number, known.get(PROBLEMS.format(trial.number))) for trial in failed]
        return finished, [(number, problem) for number, problem in problems if problem is not None]

    def _study(self) -> Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with usable(self.path, BadInput):
            study = optuna.create_study(
                storage=f"sqlite:///{self.path / STUDY}",
                study_name="ctkd",
                directions=[OBJECTIVES[name] for name in self.definition.objectives],
                load_if_exists=True,
            )
            done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        if len(study.directions) != len(self.definition.objectives) or any(
            t.params.keys() != set(self.space) for t in done
        ):
            raise BadInput(
                f"{self.path / STUDY} holds trials of another sweep than {self.path / DEFINITION} describes; "
                "begin a new one"
            )
        return study

    def _next(self, study: Study) -> FrozenTrial | None:
        """The trial that a stop left unfinished, or a new one; None if there are enough."""
        from optuna.trial import TrialState

        known = study.get_trials(deepcopy=False)
        for trial in known:
            if trial.state != TrialState.RUNNING:
                continue
            if trial.params.keys() == self.space.keys():
                return trial
            study.tell(trial.number, state=TrialState.FAIL)  # stopped while it was drawn: it does not count
        attributes = study.user_attrs
        failed = sum(PROBLEMS.format(trial.number) in attributes for trial in known)
        done = sum(trial.state == TrialState.COMPLETE for trial in known)
        if done + failed >= min(self.cells, self.trials or self.cells):
            return None
        if not any(trial.state == TrialState.WAITING for trial in known):  # else stopped before it was asked for
            # Drawn by a generator of its own, so that an interrupted sweep proposes what it would have proposed.
            study.enqueue_trial(self.sampler.propose(study, self.definition.sampler_seed, done + failed))
        number = study.ask({key: parameter.distribution() for key, parameter in self.space.items()}).number
        return study.get_trials(deepcopy=False)[number]

    def _work(self, study: Study, trial: FrozenTrial, train: Train, reporter: Reporter) -> None:
        from optuna.trial import TrialState

        values = self._values(trial)
        shown = ", ".join(f"{key}={_short(value)}" for key, value in values.items())
        runs = []
        for seed in self.definition.seeds:
            reporter.say(f"trial {trial.number}, seed {seed}: {shown}")
            place = self.path / "trials" / f"{trial.number:04d}" / f"seed-{seed}"
            try:
                summary = train({**self.settings, **values, "train.seed": seed}, self.base, place)
            except (BadInput, RunFailed) as error:
                reporter.warn(f"trial {trial.number} failed: {' '.join(str(error).split())}")
                study.set_user_attr(PROBLEMS.format(trial.number), str(error))
                study.tell(trial.number, state=TrialState.FAIL)
                return
            figures = {name: summary[name] for name in self.definition.objectives}
            runs.append({"seed": seed, "run": str(place.relative_to(self.path)), **figures})
        study.set_user_attr(RUNS.format(trial.number), runs)
        study.tell(trial.number, [statistics.fmean(run[name] for run in runs) for name in self.definition.objectives])

    def _values(self, trial: FrozenTrial) -> dict[str, Any]:
        return {key: parameter.value(trial.params[key]) for key, parameter in self.space.items()}

    def _outcome(self, trial: FrozenTrial, front: bool, runs: Sequence[Mapping[str, Any]]) -> Outcome:
        names = self.definition.objectives
        spread = {name: statistics.stdev(run[name] for run in runs) if len(runs) > 1 else None for name in names}
        mean = dict(zip(names, trial.values or [], strict=True))
        return Outcome(trial.number, self._values(trial), mean, spread, runs, front)


@contextmanager
def usable(path: Path, error: type[CtkdError]) -> Iterator[None]:
    """Raises: the error where Optuna cannot use its file in a sweep's folder."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as problem:
        what = str(getattr(problem, "orig", None) or problem).splitlines()[0]
        raise error(f"{path / STUDY} cannot be used: {what}; what is stored is left as it is") from problem


def check_installed() -> None:
    """Raises: BadInput if the extra is not there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"a sweep needs {' and '.join(missing)}: pip install 'ctkd[sweep]'")


def open_sweep(path: Path) -> Path:
    """Raises: BadInput if the folder is no sweep."""
    check_installed()
    if (path / DEFINITION).is_file():
        return path
    if (path / MARKER).is_file():
        raise BadInput(f"{path} is a run, not a sweep; go on with it by `ctkd train --resume {path}`")
    what = "is not the folder of a sweep (it has no sweep.json)" if path.is_dir() else "does not exist"
    raise BadInput(f"{path} {what}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
