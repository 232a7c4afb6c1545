# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The public functions: each command of the command line is a thin layer over one of these."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctkd.accuracy import is_correct, natural_accuracy
from ctkd.attribution import attributed, is_own
from ctkd.certify.attack import attack_facts
from ctkd.certify.store import Store
from ctkd.cite import entries
from ctkd.config import RunConfig, check_imports, dump, resolve
from ctkd.distributed import from_leader, leads, together, wait, world
from ctkd.errors import BadInput
from ctkd.export import export_instances
from ctkd.interrupt import StopRequest, stop_request
from ctkd.machine import prepared
from ctkd.options import Radius
from ctkd.preflight import check, check_device, check_precision, check_student
from ctkd.progress import Mute, Reporter, Silent
from ctkd.propagate import Network, margins_of
from ctkd.randomness import generator
from ctkd.runfolder import RunFolder
from ctkd.session import Session, load_data, selected, split_digest, versions
from ctkd.storage import read_json, write_json, write_text

__all__ = ["certify", "check", "export", "resume", "train"]


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
    voice = _voice(reporter)
    resolved = resolve(settings, config)
    check_imports(resolved, allow_import)
    check_device(resolved.train.device)
    check_precision(resolved)
    _set_threads(resolved.train.threads)
    # The thread count belongs to the result: it is recorded even where it was left open.
    resolved = replace(resolved, train=resolved.train.model_copy(update={"threads": torch.get_num_threads()}))
    with stop_request() as stop:
        data = load_data(resolved)
        for notice in resolved.notices:
            voice.warn(notice)
        check_student(resolved, data, voice)
        folder = from_leader(lambda: RunFolder.create(out, f"{data.name}-{resolved.bound.name}"))
        try:
            with _lock(folder):
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
    with stop_request() as stop, _lock(folder):
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
        check_device(config.train.device)
        _set_threads(config.train.threads)
        session = Session(config, folder, load_data(config), _voice(reporter), stop)
        return folder, _work(session, certify)


def _voice(reporter: Reporter | None) -> Reporter:
    """The leader speaks for all processes."""
    return (reporter or Silent()) if leads() else Mute()


def _lock(folder: RunFolder) -> AbstractContextManager[None]:
    """The leader keeps other runs out, for all processes."""
    return folder.lock() if leads() else nullcontext()


def _work(session: Session, certify: bool) -> dict[str, Any]:
    try:
        return _phases(session, certify)
    finally:
        session.clock.tick()


def _phases(session: Session, certify: bool) -> dict[str, Any]:
    config, folder = session.config, session.folder
    session.hook("ctkd_run_started", config=config.tables())
    teachers, teacher_facts = session.teachers()
    student = session.student(teachers)
    options = config.certify
    session.check_stop()
    certificate = session.certify(student, config.train.eps, options, session.resume_hint) if certify else None
    if certificate is not None:
        figures = certificate.summary()
        samples = certificate.samples
    else:
        part = selected(session.data, options)
        samples = len(part)
        figures = {
            "natural_accuracy": natural_accuracy(student, part),
            "adversarial_accuracy": None,
            "certified_accuracy": None,
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
            _export_beside(session, student)
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


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _export_beside(session: Session, student: Network) -> None:
    """The export that belongs to a run; made again when a resumed run ends."""
    config = session.config
    shutil.rmtree(session.folder.exports, ignore_errors=True)
    _export(session, student, config.train.eps, session.folder.exports, **config.export.model_dump())


def _export(
    session: Session, network: Network, eps: float, folder: Path, *, samples: int, seed: int, timeout: float
) -> dict[str, Any]:
    split = getattr(session.data, session.config.certify.split)
    with torch.no_grad():
        logits = torch.cat([network(part) for part in split.images.split(1000)])
    correct = is_correct(margins_of(logits, split.labels), split.labels).nonzero().flatten()
    if samples > len(correct):
        raise BadInput(f"export.samples={samples}: only {len(correct)} images of the split are classified correctly")
    order = torch.randperm(len(correct), generator=generator(seed, "export"))
    indices = correct[order[:samples]].sort().values.tolist()
    known = certified_samples(session.folder, network, eps, session.config.certify.split, split_digest(split))
    report = export_instances(
        network,
        split.images[indices],
        split.labels[indices],
        indices,
        eps,
        folder,
        # File names of a competition folder allow few characters.
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", f"{session.data.name}-{session.config.model.name}"),
        timeout=timeout,
        certified=known.intersection(indices),
    )
    return {
        "folder": str(folder),
        "model": report.model,
        "instances": len(indices),
        "indices": indices,
        "eps": eps,
        "certified": report.replayed,
        "largest_difference": report.difference,
    }


def certified_samples(folder: RunFolder, network: Network, eps: float, split: str, data: str) -> set[int]:
    """Samples of the split that the run's results record as certified at this radius."""
    if not folder.results.exists():
        return set()
    with Store(folder.results) as store:
        return store.certified(network.sha256(), eps, split, data)


def _open(
    path: Path, data_dir: Path | None, settings: Mapping[str, Any], reporter: Reporter, stop: StopRequest
) -> tuple[Session, Network]:
    """A finished run as a session, with its network."""
    folder = RunFolder.open(path)
    if not folder.network.exists():
        raise BadInput(f"{path} has no trained student yet; go on with `ctkd train --resume {path}`")
    given = dict(settings)
    if data_dir is not None:
        given["data.dir"] = str(data_dir)
    config = resolve(given, folder.config, trained=True)
    _set_threads(config.train.threads)
    return Session(config, folder, load_data(config), reporter, stop), Network.load(folder.network)


def _radius(eps: float | str | None, default: float) -> float:
    from pydantic import TypeAdapter, ValidationError

    if eps is None:
        return default
    try:
        return float(TypeAdapter(Radius).validate_python(eps))
    except ValidationError as error:
        raise BadInput(f"eps={eps}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


@together()
@attributed()
@prepared()
def certify(
    run: Path,
    *,
    eps: float | str | None = None,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Certify a trained student: what ``ctkd certify`` does. Samples that are already settled are not done again.

    Args:
        run: a run folder.
        eps: radius in pixel units, also as ``"2/255"``; None is the run's.
        data_dir: where the data set's files lie, if not where the run found them.
        settings: ``"certify.key"`` -> value, such as ``{"certify.samples": 500}``.

    Returns:
        Accuracies (fractions), counts, stages, eps, samples, split.
    """
    foreign = [path for path in settings or {} if not path.startswith("certify.")]
    if foreign:
        raise BadInput(
            *(f"{path}: certifying takes certify.* settings only; the rest belongs to the run" for path in foreign)
        )
    with stop_request() as stop:
        session, network = _open(run, data_dir, settings or {}, _voice(reporter), stop)
        radius = _radius(eps, session.config.train.eps)
        with _lock(session.folder):
            hint = "The same command goes on"
            certificate = session.certify(network, radius, session.config.certify, hint)
    return {
        **certificate.summary(),
        "attack": attack_facts(session.config.certify),
        "eps": radius,
        "samples": certificate.samples,
        "split": session.config.certify.split,
        "seconds": certificate.seconds,
    }


@attributed()
def export(
    run: Path,
    folder: Path,
    *,
    samples: int = 10,
    seed: int = 0,
    eps: float | str | None = None,
    timeout: float = 60.0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Write a student for external verifiers: what ``ctkd export`` does.

    Args:
        run: a run folder.
        folder: must be absent or empty; gets ``onnx/``, ``vnnlib/`` and ``instances.csv``.
        samples: how many correctly classified images.
        seed: which of them.
        eps: radius in pixel units; None is the run's.
        timeout: seconds per instance.

    Returns:
        What was written, and how many instances are certified by ctkd's own stages.
    """
    settings = {"export.samples": samples, "export.seed": seed, "export.timeout": timeout}
    with stop_request() as stop:
        session, network = _open(run, data_dir, settings, Silent(), stop)
        radius = _radius(eps, session.config.train.eps)
        return _export(session, network, radius, folder, **session.config.export.model_dump())
