# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The public functions: each command of the command line is a thin layer over one of these."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctkd.accuracy import natural_accuracy
from ctkd.attribution import attributed, is_own
from ctkd.certify.attack import attack_facts
from ctkd.cite import entries
from ctkd.competition import export_benchmark
from ctkd.config import RunConfig, check_imports, dump, resolve
from ctkd.distributed import from_leader, leads, together, wait, world
from ctkd.errors import BadInput, RunFailed
from ctkd.exporting import export, export_beside
from ctkd.interrupt import stop_request
from ctkd.machine import prepared
from ctkd.preflight import check, check_devices, check_precision, check_student
from ctkd.progress import Reporter
from ctkd.proving import check_proofs
from ctkd.report.curves import curves
from ctkd.report.write import report
from ctkd.runfolder import RunFolder
from ctkd.session import Session, load_data, selected, versions
from ctkd.storage import read_json, write_json, write_text
from ctkd.sweep import command as sweeping
from ctkd.sweep.study import Definition
from ctkd.teacher_context import SessionContext
from ctkd.trained import certify, certify_each, load_student, lock, radii, set_threads, voice_of
from ctkd.verify.command import verify
from ctkd.weak.command import weak

__all__ = [
    "certify",
    "certify_each",
    "check",
    "check_proofs",
    "curves",
    "export",
    "export_benchmark",
    "load_student",
    "radii",
    "report",
    "resume",
    "resume_sweep",
    "sweep",
    "train",
    "verify",
    "weak",
]


@together()
@attributed()
@prepared()
def train(
    *,
    settings: Mapping[str, Any] | None = None,
    config: Path | None = None,
    out: Path | None = None,
    certify: bool = True,
    allow_import: bool = False,
    reporter: Reporter | None = None,
    command: str = "",
) -> tuple[RunFolder, dict[str, Any]]:
    """Train a student with a teacher, certify it, export it: what ``ctkd train`` does.

    Args:
        settings: ``"role.key"`` -> value, such as ``{"bound.name": "cc-ibp", "train.eps": "2/255"}``.
        config: a TOML file below the settings.
        out: the run folder; None makes one under ``runs/``.
        certify: False stops after training and attack-free evaluation; certified figures are then null.
        allow_import: whether ``config`` may name code to import; ``settings`` always may.
        reporter: receives progress; None is silent.
        command: recorded in the configuration's header.

    Returns:
        The run's folder and the content of its ``summary.json``.

    Raises:
        BadInput, RunFailed, Contradiction, Interrupted: see ``ctkd.errors``.
    """
    voice = voice_of(reporter)
    resolved = resolve(settings, config)
    check_imports(resolved, allow_import)
    check_devices(resolved)
    check_precision(resolved)
    set_threads(resolved.train.threads)
    # The thread count belongs to the result: it is recorded even where it was left open.
    resolved = replace(resolved, train=resolved.train.model_copy(update={"threads": torch.get_num_threads()}))
    with stop_request() as stop:
        data = load_data(resolved)
        for notice in resolved.notices:
            voice.warn(notice)
        check_student(resolved, data, voice)
        folder = from_leader(lambda: RunFolder.create(out, f"{data.name}-{resolved.bound.name}"))
        try:
            with lock(folder):
                if leads():
                    header = f"# {' '.join(command.splitlines())}\n\n" if command else ""
                    write_text(folder.config, header + dump(resolved))
                    write_json(folder.path / "environment.json", _environment(resolved))
                wait()
                return folder, _work(Session(resolved, folder, data, voice, stop), certify)
        except BadInput:
            # A refusal leaves nothing half-written behind; but what was trained is never thrown away.
            if leads() and not folder.trained():
                folder.discard()
            raise


@together()
@attributed()
@prepared()
def resume(
    path: Path, *, certify: bool = True, allow_import: bool = False, reporter: Reporter | None = None
) -> tuple[RunFolder, dict[str, Any]]:
    """Go on with a run that was interrupted; a finished run is returned as it is. What ``ctkd train --resume`` does."""
    folder = RunFolder.open(path)
    with stop_request() as stop, lock(folder):
        if not folder.config.exists():
            raise BadInput(f"{path} was stopped before its configuration was written; start a new run")
        if folder.summary.exists():
            summary = read_json(folder.summary)
            if not certify or summary.get("certified_accuracy") is not None:
                return folder, summary
        wait()  # until all have seen that there is something left to do
        if leads():
            folder.tidy()
        config = resolve(file=folder.config)
        check_imports(config, allow_import)
        check_devices(config)
        set_threads(config.train.threads)
        session = Session(config, folder, load_data(config), voice_of(reporter), stop)
        return folder, _work(session, certify)


FRONT = ("natural_accuracy", "certified_accuracy")
"""What a sweep searches for unless it is told otherwise."""


def sweep(
    over: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    config: Path | None = None,
    trials: int | None = None,
    seeds: Sequence[int] = (),
    objectives: Sequence[str] = FRONT,
    sampler: str = "tpe",
    sampler_seed: int = 0,
    out: Path | None = None,
    allow_import: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train many configurations and find the best: what ``ctkd sweep`` does. It measures on validation images only.

    Args:
        over: what is varied: ``"key=low:high"``, ``"key=low:high:log"`` or ``"key=first,second"``.
        settings, config, allow_import, reporter: as for ``train``.
        trials: how many, failed ones included; None is 20, or every cell of a grid.
        seeds: each trial is trained with each of them; none means ``train.seed``.
        objectives: ``natural_accuracy``, ``certified_accuracy``, ``adversarial_accuracy`` (all maximised) or
            ``seconds`` (minimised).
        sampler: ``tpe``, ``random`` or ``grid``.
        sampler_seed: of the proposals.
        out: the sweep's folder; None makes one under ``sweeps/``.

    Returns:
        The folder, and what ``results.json`` in it holds: for each trial its values, the means of the objectives over
        the seeds and their spread (sample standard deviation), its runs, and whether it is on the front; what failed,
        and why.

    Raises:
        BadInput: anything is wrong with the input, before there is a folder.
        RunFailed: no trial succeeded.
    """
    definition = Definition(tuple(over), tuple(objectives), tuple(seeds), sampler, sampler_seed)
    path = sweeping.begin(
        definition, settings=settings or {}, config=config, trials=trials, out=out, allow_import=allow_import
    )
    return path, resume_sweep(path, allow_import=True, reporter=reporter)


def resume_sweep(
    path: Path, *, trials: int | None = None, allow_import: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Go on with a sweep, or return what a finished one found.

    Args:
        path: the sweep's folder.
        trials: how many there are to be now; None leaves their number as it is.
        allow_import: whether the folder may name code to import.
        reporter: receives progress; None is silent.

    Returns:
        What ``sweep`` returns besides the folder.

    Raises:
        BadInput, RunFailed: see ``sweep``.
    """
    voice = voice_of(reporter)
    runs = sweeping.one_run(train, resume, voice)
    return sweeping.go_on(path, runs, trials=trials, allow_import=allow_import, reporter=voice)


def _work(session: Session, certify: bool) -> dict[str, Any]:
    try:
        try:
            return _phases(session, certify)
        finally:
            session.clock.tick()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        where = f"{error.filename or session.folder.path}: {error.strerror or error}"
        raise RunFailed(f"{where}; what was stored before is kept. {session.resume_hint}") from error


def _phases(session: Session, certify: bool) -> dict[str, Any]:
    config, folder = session.config, session.folder
    session.hook("ctkd_run_started", config=config.tables())
    teachers, teacher_facts = SessionContext(session).teachers()
    student = session.student(teachers)
    options = config.certify
    session.check_stop()
    certificate = session.certify(student, config.train.eps, options, session.resume_hint) if certify else None
    if certificate is not None:
        figures = certificate.summary() | session.float32(student, config.train.eps, options)
        samples = certificate.samples
    else:
        part = selected(session.data, options)
        samples = len(part)
        figures = {
            "natural_accuracy": natural_accuracy(student, part),
            "adversarial_accuracy": None,
            "certified_accuracy": None,
            "float32_certified": None,
        }
    summary = {
        **figures,
        "attack": attack_facts(options),
        "eps": config.train.eps,
        "samples": samples,
        "split": options.split,
        "seconds": session.clock.tick(),
        "teacher": teacher_facts[0] if teacher_facts else None,
        "further_teachers": teacher_facts[1:],
        "student_sha256": student.sha256(),
        "validation_seen_in_training": config.train.final,
        "versions": versions(),
    }
    if certify and leads():
        try:
            export_beside(session, student)
        except BadInput as problem:
            for message in problem.messages:
                session.reporter.warn(f"not exported: {message}")
    if leads():
        write_json(folder.summary, summary)
    session.hook("ctkd_run_finished", summary=summary)
    return summary


def _environment(config: RunConfig) -> dict[str, Any]:
    return {
        "versions": versions(),
        "plugins": sorted({entry.origin for entry in entries(config) if not is_own(entry)}),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world(),
    }
