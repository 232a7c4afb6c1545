# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A sweep from its options to its results: what ``ctkd.run.sweep`` and ``ctkd.run.resume_sweep`` are made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from ctkd.config import check_imports, resolve
from ctkd.distributed import launched
from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.preflight import check_devices
from ctkd.progress import Reporter
from ctkd.runfolder import RunFolder
from ctkd.session import load_data
from ctkd.storage import write_json
from ctkd.sweep.plot import plot
from ctkd.sweep.samplers import SAMPLERS
from ctkd.sweep.space import cells_of, space_of
from ctkd.sweep.study import Definition, Sweep, Train, check_installed, open_sweep, usable

MEASURED = {"certify.split": "validation", "train.final": False}
"""In every run of a sweep."""


class Running(Protocol):
    """``ctkd.run.train`` or ``ctkd.run.resume``."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[RunFolder, dict[str, Any]]: ...


def begin(
    definition: Definition,
    *,
    settings: Mapping[str, Any],
    config: Path | None,
    trials: int | None,
    out: Path | None,
    allow_import: bool,
) -> Path:
    """Make the folder. Raises: BadInput for anything that is wrong, before there is one."""
    check_installed()
    _check(trials)
    problems = [
        f"{key}={settings[key]}: a sweep chooses on validation images; leave it out"
        for key, value in MEASURED.items()
        if settings.get(key, value) != value
    ]
    if problems:
        raise BadInput(*problems)
    if definition.seeds and "train.seed" in settings:
        raise BadInput("--seeds names the seeds of all trials; leave out --seed and train.seed")
    definition.check()
    common: dict[str, Any] = {**settings, **MEASURED}
    if "data.dir" in common:
        common["data.dir"] = str(Path(common["data.dir"]).absolute())
    space = space_of(definition.over, common, config)
    sampler = SAMPLERS[definition.sampler](space)
    first = resolve({**common, **{key: parameter.ends()[0] for key, parameter in space.items()}}, config)
    check_imports(first, allow_import)
    # What all trials have in common, and would fail by one after the other.
    check_devices(first)
    load_data(first)
    if not definition.seeds:
        definition = replace(definition, seeds=(first.train.seed,))
    common.pop("train.seed", None)
    if trials is None and sampler.trials is not None and sampler.trials < cells_of(space):
        trials = sampler.trials
    return Sweep.create(out, definition, common, config.read_text() if config else "", trials)


def go_on(path: Path, train: Train, *, trials: int | None, allow_import: bool, reporter: Reporter) -> dict[str, Any]:
    """Run what is left of a sweep and write ``results.json`` and ``front.png``, after each trial.

    Raises: RunFailed if no trial succeeded.
    """
    check_installed()
    _check(trials)
    sweep = Sweep(open_sweep(path), trials)
    # The folder may be a stranger's.
    check_imports(replace(sweep.first(), sources={"model.factory": str(path)}), allow_import)
    if sweep.trials is not None and sweep.trials > sweep.cells:
        reporter.warn(f"--trials {sweep.trials}: only {sweep.cells:.0f} different ones exist, and each is run once")
    with usable(sweep.path, RunFailed), _resumable(sweep.path):
        sweep.run(train, reporter, lambda: _write(sweep))
        results = _write(sweep)
    if not results["trials"]:
        failed = results["failed"]
        reason = failed[0]["problem"].splitlines()[0] if failed else "there is none"
        raise RunFailed(f"no trial of {sweep.path} succeeded; the first one: {reason}")
    return results


@contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """A run that is interrupted says how to go on with that run; the user wants to go on with the sweep."""
    try:
        yield
    except Interrupted as error:
        what = str(error).partition(" Go on with:")[0]
        raise Interrupted(f"{what} Go on with: ctkd sweep --resume {path}", error.signal_number) from None


def one_run(train: Running, resume: Running, reporter: Reporter) -> Train:
    """How a sweep runs a training: a new one, or on with one that was stopped."""

    def run(settings: Mapping[str, Any], base: Path, place: Path) -> Mapping[str, Any]:
        # Which code may be imported was asked when the sweep began.
        if (place / "config.toml").exists():
            return resume(place, allow_import=True, reporter=reporter)[1]
        if place.exists():  # stopped before it was a run
            shutil.rmtree(place)
        return train(settings=settings, config=base, out=place, allow_import=True, reporter=reporter)[1]

    return run


def _check(trials: int | None) -> None:
    if launched()[1] > 1:
        raise BadInput("a sweep runs in one process; leave out torchrun")
    if trials is not None and trials < 1:
        raise BadInput(f"--trials {trials}: must be 1 or more")


def _write(sweep: Sweep) -> dict[str, Any]:
    finished, failed = sweep.outcomes()
    names = sweep.definition.objectives
    results = {
        "objectives": list(names),
        "seeds": list(sweep.definition.seeds),
        "split": "validation",
        "trials": [asdict(outcome) for outcome in finished],
        "failed": [{"number": number, "problem": problem} for number, problem in failed],
    }
    write_json(sweep.path / "results.json", results)
    if finished:
        plot(finished, names, sweep.path / "front.png")
    return results
