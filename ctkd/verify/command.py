# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What ``ctkd verify`` does, as a function."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.errors import BadInput
from ctkd.interrupt import StopRequest, stop_request
from ctkd.progress import Reporter, Silent
from ctkd.runfolder import MARKER
from ctkd.verify.asking import Tool
from ctkd.verify.driver import Driver
from ctkd.verify.instances import TABLE, Instance, Shard, one_instance, read_table
from ctkd.verify.store import Answers
from ctkd.verify.summary import accuracy, all_answers, found_answers, summarise, write_results

if TYPE_CHECKING:
    from ctkd.verify.samples import RunInstances

MODEL = "model.json"
"""Marks the results of an ONNX model, which are read like a run's; see ``ctkd.foreign``."""
OF_SAMPLES = "--eps, --all, --samples, --start, --dataset and --data-dir"
STORE = "verification.sqlite"
"""Results file of a folder or a single instance; those of a run are in the run's own."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What a path stands for."""

    instances: list[Instance]
    results: Path
    category: str
    run: RunInstances | None = None


def verify(
    path: Path,
    verifiers: Sequence[str],
    *,
    specification: Path | None = None,
    dataset: str | None = None,
    eps: float | str | None = None,
    everything: bool = False,
    timeout: float | None = None,
    jobs: int = 1,
    shard: str = "1/1",
    retry: bool = False,
    forget: Sequence[str] = (),
    out: Path | None = None,
    results: Path | None = None,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Ask verifiers about a run's samples, a model's on a data set, a folder of instances or one instance.

    That is what ``ctkd verify`` does.

    Answers are stored one by one, and what is stored is not asked again. A ``falsified`` counts only with a witness
    that onnxruntime confirms strictly inside the box.

    Args:
        path: a run folder, or one that ``ctkd certify MODEL.onnx`` made; a folder with instances.csv (or such a file),
            or an ONNX file.
        verifiers: names of verifier plugins; with labels, as in ``"vnncomp-tool:first"``, one of them several times.
        specification: the VNN-LIB file that goes with an ONNX file.
        dataset: in place of ``specification``: name of a data set, an .npz file or a folder of images; with ``eps``
            alone it is ``digits``. The samples are asked about as a run's, and the answers stand beside the results of
            ``ctkd certify`` about that model and data set.
        eps: radius in pixel units; None is the run's, and a model has none.
        everything: of a run or data set: all correctly classified samples, not only those that ctkd left open.
        timeout: seconds for each question; None is what instances.csv says, else 60.
        jobs: questions at a time.
        shard: ``"2/5"``: the second of five parts of the instances.
        retry: ask again where the stored answer is an error.
        forget: names of verifiers whose stored answers are deleted first.
        out: the results file; None is the run's or the model's, or verification.sqlite beside the instances.
        results: a folder that gets ``TOOL/results.csv`` in the form of the competition.
        data_dir: where the data set's files lie; None is where a run found them.
        settings: ``"NAME.option"`` or ``"NAME:LABEL.option"`` -> value for verifiers, and ``"certify.samples"``,
            ``"certify.start"`` and ``"certify.split"`` of a run or data set.
        reporter: receives progress; None is silent.

    Returns:
        Counts and times for each tool, how many instances are settled, and ``unusable``: instances that could not be
        asked about, with the reason. For a run or data set also the robust accuracy of all that is known.

    Raises:
        BadInput: a mistake in the arguments, a file that is missing, or a tool that is not installed.
        Contradiction: two answers cannot both be true; files and rows are kept.
        Interrupted, RunFailed: see ``ctkd.errors``; all answers so far are stored.
    """
    voice = reporter or Silent()
    part = Shard.parse(shard)
    own, of_run = _divided(settings or {}, verifiers)
    if jobs < 1:
        raise BadInput(f"jobs={jobs}: must be an integer from 1 on")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise BadInput(f"timeout={timeout:g}: must be a finite number of seconds above 0")
    tools = [Tool.load(name, own[name]) for name in dict.fromkeys(verifiers)]
    with stop_request() as stop, tempfile.TemporaryDirectory(prefix="ctkd-run-") as folder:
        run = (path / MARKER).is_file() or (path / MODEL).is_file()
        of_samples = any([dataset is not None, eps is not None, everything, data_dir is not None, bool(of_run)])
        if run or (of_samples and _is_model(path) and specification is None):
            _refuse(specification is not None, path, "is a run, which needs no specification")
            _refuse(run and dataset is not None, path, "is a run, which has a data set of its own; leave out --dataset")
            make = out is None
            asked = _run(path, Path(folder), eps, dataset, make, everything, timeout, data_dir, of_run, voice, stop)
        else:
            _refuse(of_samples and path.exists(), path, f"is no run: {OF_SAMPLES} are for runs, or an ONNX file alone")
            asked = _files(path, specification, timeout)
        with _answers(out or asked.results) as answers:
            for name in forget:
                voice.say(f"{name}: {answers.forget(name)} answers forgotten")
            with Driver(tools, answers, jobs, retry, answers.path.resolve().parent, voice, stop) as driver:
                new = driver.run(part.of(asked.instances))
            found, known = found_answers(answers, driver.numbers, driver.ids), all_answers(answers, driver.numbers)
    if results is not None:
        write_results(results, asked.category, found, driver.numbers, tools)
    summary = {"path": str(path), "results": str(answers.path), "asked": new, **summarise(found, tools)}
    if asked.run is not None:
        summary |= {"eps": asked.run.eps, "split": asked.run.split}
        if part.count == 1:
            summary |= accuracy(known, driver.samples, asked.run.known, asked.run.samples)
    return {**summary, "unusable": driver.unusable}


def _divided(settings: Mapping[str, Any], verifiers: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Options by verifier, and settings of a run."""
    if not verifiers:
        raise BadInput("no verifier is named; `ctkd plugins` lists them")
    own: dict[str, dict[str, Any]] = {name: {} for name in verifiers}
    of_run, problems = {}, []
    for path, value in settings.items():
        name, _, option = path.partition(".")
        if name in own:
            own[name][option] = value
        elif path in ("certify.samples", "certify.start", "certify.split"):
            of_run[path] = value
        else:
            problems.append(f"{path}: accepted are options of {', '.join(own)} and certify.split, samples, start")
    if problems:
        raise BadInput(*problems)
    return own, of_run


def _is_model(path: Path) -> bool:
    return path.is_file() and ".onnx" in path.suffixes


def _refuse(wrong: bool, path: Path, reason: str) -> None:
    if wrong:
        raise BadInput(f"{path} {reason}")


def _run(
    path: Path,
    folder: Path,
    eps: float | str | None,
    dataset: str | None,
    make: bool,
    everything: bool,
    timeout: float | None,
    data_dir: Path | None,
    settings: Mapping[str, Any],
    reporter: Reporter,
    stop: StopRequest,
) -> Asked:
    from ctkd.verify.samples import run_instances

    found = run_instances(
        path,
        folder,
        eps=eps,
        dataset=dataset,
        make=make,
        everything=everything,
        timeout=timeout,
        data_dir=data_dir,
        settings=settings,
        reporter=reporter,
        stop=stop,
    )
    return Asked(found.instances, found.results, path.resolve().name.removesuffix(".onnx"), found)


def _files(path: Path, specification: Path | None, timeout: float | None) -> Asked:
    if specification is not None:
        _refuse(path.is_dir(), path, "is a folder; --spec goes with an ONNX file")
        found = one_instance(path, specification, timeout)
        return Asked(found, specification.resolve().parent / STORE, path.resolve().parent.name)
    if not path.exists():
        raise BadInput(
            f"{path} does not exist; name a run, a folder with {TABLE}, or an ONNX file with --spec or --dataset"
        )
    hint = "needs a specification: give it by --spec FILE.vnnlib, or ask about samples by --dataset NAME --eps EPS"
    _refuse(_is_model(path), path, hint)
    folder = path if path.is_dir() else path.parent
    return Asked(read_table(path, timeout), folder / STORE, folder.resolve().name)


@contextmanager
def _answers(path: Path) -> Iterator[Answers]:
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent} is no folder; --out names a results file in one that exists")
    with Answers(path) as answers:
        yield answers
