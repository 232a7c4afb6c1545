# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Plugins with lifecycle hooks (``ctkd_run_started``, ``ctkd_epoch_finished``, ``ctkd_run_finished``)."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctkd import plugins
from ctkd.config import resolve
from ctkd.runfolder import RunFolder
from ctkd.testing.common import leaves_global_state_alone
from ctkd.testing.isolated import look
from ctkd.testing.runs import quick_settings, sandbox
from ctkd.testing.subject import NotApplicable, Subject

HOOKS = ("ctkd_run_started", "ctkd_epoch_finished", "ctkd_run_finished")
NETWORKS = ("teacher", "teacher-2", "teacher/member-2", "student")
CONFIG = "# as ctkd writes it\n"


def _module(subject: Subject) -> Any:
    """The registered module of that entry point, distribution or origin."""
    registry = plugins.registry()
    entry_points = importlib.metadata.entry_points(group=plugins.GROUP)
    values = {point.value for point in entry_points if point.name == subject.name}
    loaded = registry.manager.list_name_plugin()
    found = [module for name, module in loaded if getattr(module, "__name__", None) in values]
    found += [module for name, module in loaded if subject.name in (name, name.partition(" ")[0])]
    if not found:
        known = ", ".join(sorted(point.name for point in entry_points))
        failures = "; ".join(map(str, registry.failures))
        subject.reject(
            f"no plugin of that name was loaded; entry points: {known}{f'; {failures}' if failures else ''}",
            "an entry point of the group 'ctkd' names the module with the hooks",
            "install the package (pip install -e .), and compare the entry point in pyproject.toml and CTKD_INTERFACE",
        )
    return found[0]


def _hooks(subject: Subject) -> dict[str, Callable[..., None]]:
    """Its hooks, each called as core calls it: with those of the arguments that it takes."""
    module, found = _module(subject), {}
    for name in HOOKS:
        for implementation in getattr(plugins.registry().manager.hook, name).get_hookimpls():
            if implementation.plugin is module:
                found[name] = _caller(implementation.function, implementation.argnames)
    if not found:
        subject.reject(
            f"{module.__name__} implements none of {', '.join(HOOKS)}",
            "a logger implements at least one lifecycle hook, marked with @hookimpl",
            "write them at the top level of the entry point's module",
        )
    return found


def _caller(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., None]:
    def call(**given: Any) -> None:
        function(**{name: given[name] for name in names if name in given})

    return call


def _metrics(network: str, epoch: int) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    warmup = epoch == 1
    return {
        "network": network,
        "epoch": epoch,
        "eps": 0.0 if warmup else 0.05 * (epoch - 1),
        "phase": "warmup" if warmup else "ramp",
        "lr": 5e-4,
        "losses": {"clean": 1.5 / epoch, "loss": 2.0 / epoch, **({} if warmup else {"robust/box": 2.5 / epoch})},
        "gradient_norms": {} if warmup else {"clean": 0.5, "robust/box": 1.25},
        "validation_seen_in_training": False,
        "validation": {"natural_accuracy": 0.25 * epoch, "interval_certified_accuracy": 0.0},
        "seconds": 0.5,
    }


def _summary(certified: bool) -> dict[str, Any]:
    """The content of summary.json, with and without certification."""
    figures = {
        "natural_accuracy": 0.75,
        "adversarial_accuracy": 0.5 if certified else None,
        "certified_accuracy": 0.25 if certified else None,
    }
    teacher = {"name": "pgd", "natural_accuracy": 0.9, "adversarial_accuracy": None, "sha256": "0" * 64}
    return {
        **figures,
        "eps": 0.1,
        "samples": 40,
        "split": "test",
        "seconds": 3.5,
        "teacher": teacher if certified else None,
        "further_teachers": [],
        "student_sha256": "0" * 64,
        "validation_seen_in_training": False,
        "versions": {"ctkd": "0"},
    }


def _run(subject: Subject, folder: Path, *, certified: bool = True, epochs: int = 3, finish: bool = True) -> RunFolder:
    """All hooks in the order of a run."""
    hooks = _hooks(subject)
    config = resolve(quick_settings()).tables()
    run = RunFolder.open(folder) if folder.exists() else RunFolder.create(folder, "conformance")
    run.config.write_text(CONFIG)

    def call(name: str, **given: Any) -> None:
        before = copy.deepcopy(given)
        if name in hooks:
            hooks[name](folder=run, **given)
        if given != before:
            subject.reject(
                f"{name} changed its arguments",
                "hooks share their arguments with core and with each other",
                "copy what you change",
            )

    call("ctkd_run_started", config=config)
    for epoch in range(1, epochs + 1):
        for network in NETWORKS:
            metrics = _metrics(network, epoch)
            run.append_metrics(metrics)
            call("ctkd_epoch_finished", network=network, metrics=metrics)
    if finish:
        run.summary.write_text(json.dumps(_summary(certified)))
        call("ctkd_run_finished", summary=_summary(certified))
    return run


def exercise(subject: Subject) -> None:
    """One run's hooks."""
    with sandbox() as folder:
        _run(subject, folder / "run")


def is_loaded_without_torch(subject: Subject) -> None:
    """It was loaded, and importing its module does not import torch."""
    module = _module(subject)
    if getattr(module, "__spec__", None) is None:
        raise NotApplicable("it was registered in this process only, by a module without a file")
    seen = look(module.__name__, ())
    if seen["error"]:
        raise NotApplicable(f"{module.__name__} cannot be imported in a process of its own: {seen['error']}")
    if seen["loaded"]:
        subject.reject(
            f"importing {module.__name__} loads torch",
            "ctkd.hookspecs: the registration module does not import torch, so that `ctkd --help` stays fast",
            "import what is heavy inside the hooks; a package's __init__.py counts, too",
        )


def follows_a_run(subject: Subject) -> None:
    """No hook raises, with or without teacher, certification and radius; arguments are left as they are."""
    with sandbox() as folder:
        for certified in (True, False):
            _run(subject, folder / f"run-{certified}", certified=certified)


def follows_a_resumed_run(subject: Subject) -> None:
    """A run that stopped without an end and is resumed, which repeats an epoch, is followed to its end."""
    with sandbox() as folder:
        _run(subject, folder / "run", epochs=2, finish=False)
        _run(subject, folder / "run", epochs=3)


def keeps_runs_apart(subject: Subject) -> None:
    """Of two runs in one process the second leaves the first one's files alone."""
    with sandbox() as folder:
        _run(subject, folder / "first")
        before = _files(folder / "first")
        _run(subject, folder / "second")
        changed = _changed(before, _files(folder / "first"))
    if changed:
        subject.reject(
            f"a second run in the same process changed {changed[0]} of the first",
            "hooks are given the folder of the run they speak about",
            "keep what is open by folder.path, and close it in ctkd_run_finished",
        )


def writes_into_the_run_folder_alone(subject: Subject) -> None:
    """It writes nothing outside the run folder, and none of ctkd's own files inside it."""
    with sandbox() as folder:
        (folder / "home").mkdir()
        os.environ.update({"HOME": str(folder / "home"), "USERPROFILE": str(folder / "home")})
        (folder / "temporary").mkdir()
        run = _run(subject, folder / "run")
        found = _files(folder)
        outside = [path for path in found if not path.startswith("run/")]
        if outside:
            subject.reject(
                f"it wrote {outside[0]}, beside the run folder",
                "a run folder holds everything about a run",
                "write below folder.path, in a folder of your own",
            )
        own = {"run.json", "config.toml", "metrics.jsonl", "summary.json"}
        lines = [_metrics(network, epoch) for epoch in (1, 2, 3) for network in NETWORKS]
        intact = (
            own <= {path.name for path in run.path.iterdir()}
            and run.config.read_text() == CONFIG
            and run.metrics.read_text() == "".join(json.dumps(line) + "\n" for line in lines)
            and run.summary.read_text() == json.dumps(_summary(True))
        )
    if not intact:
        subject.reject(
            "it changed run.json, config.toml, metrics.jsonl or summary.json",
            "these files are ctkd's: it reads them when the run is resumed",
            "write files of your own",
        )


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


CHECKS = (
    is_loaded_without_torch,
    follows_a_run,
    follows_a_resumed_run,
    keeps_runs_apart,
    writes_into_the_run_folder_alone,
    leaves_global_state_alone(exercise),
)
