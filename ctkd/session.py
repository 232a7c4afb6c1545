# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One process's work on one run: teacher, student, certification, each picked up where it was left."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctkd import faculty
from ctkd.api import Attack, Data, Split
from ctkd.certify.cascade import Cascade, Certificate
from ctkd.certify.options import CertifyOptions
from ctkd.certify.store import Store
from ctkd.config import Choice, RunConfig
from ctkd.data.checks import check_data
from ctkd.errors import BadInput, CtkdError, Interrupted, RunFailed
from ctkd.interrupt import StopRequest
from ctkd.options import validate
from ctkd.plugins import create, options_class, registry
from ctkd.progress import Reporter
from ctkd.propagate import Network
from ctkd.randomness import generator
from ctkd.runfolder import RunFolder
from ctkd.storage import cache_folder, digest_tensors, read_json, write_json
from ctkd.teaching import Teacher
from ctkd.train.loop import Plugins, Trainer, feature_widths, finalise
from ctkd.train.options import TrainOptions


def load_data(config: RunConfig) -> Data:
    """The checked data set of a configuration."""
    data: Data = config.data.create().load(config.data_dir)
    check_data(data)
    return data


def plugin(kind: str, table: Mapping[str, Any]) -> Any:
    """A plugin object from a table with ``name`` and options."""
    values = dict(table)
    entry = registry().find(kind, values.pop("name"))
    problems: list[str] = []
    options = validate(options_class(entry), values, kind, problems)
    if options is None:
        raise BadInput(*problems)
    return create(entry, options)


def evaluation_attack(options: CertifyOptions) -> Attack:
    """The attack of all reported adversarial accuracies: PGD on the margin."""
    table = {
        "name": "pgd",
        "steps": options.attack_steps,
        "restarts": options.attack_restarts,
        "step_size": options.attack_step_size,
        "objective": "margin",
    }
    return plugin("attack", table)  # type: ignore[no-any-return]


def versions() -> dict[str, str]:
    """Versions of what determines a result."""
    names = ("ctkd", "torch", "numpy", "onnx", "onnxruntime", "scikit-learn")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def code_digest() -> str:
    """A fingerprint of ctkd's own code: a cached teacher is not reused after the code that made it changed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def split_digest(split: Split) -> str:
    return digest_tensors({"images": split.images, "labels": split.labels})[:16]


def data_fingerprint(data: Data) -> str:
    parts = {
        f"{name}/{part}": getattr(getattr(data, name), part)
        for name in ("train", "validation", "test")
        for part in ("images", "labels")
    }
    return digest_tensors(parts)


class Clock:
    """Seconds of work on a run over all its processes; a killed one loses what came after its last tick."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = float(read_json(path)["seconds"]) if path.exists() else 0.0
        self.began = time.monotonic()

    def tick(self) -> float:
        seconds = self.before + time.monotonic() - self.began
        write_json(self.path, {"seconds": seconds})
        return seconds


@dataclass(eq=False)
class Session:
    """One process's work on one run."""

    config: RunConfig
    folder: RunFolder
    data: Data
    reporter: Reporter
    stop: StopRequest

    def __post_init__(self) -> None:
        self.clock = Clock(self.folder.path / "seconds.json")
        self._label, self._fits = "teacher", 0

    @property
    def resume_hint(self) -> str:
        return f"Go on with: ctkd train --resume {self.folder.path}"

    # Models

    def build_model(self, name: str | None = None) -> nn.Module:
        choice = self.config.model if name is None else _by_name("model", name)
        return choice.create().build(self.data.input_shape, self.data.classes)  # type: ignore[no-any-return]

    # Teachers (ctkd.api.TeacherContext)

    @property
    def eps(self) -> float:
        return self.config.train.eps

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    @property
    def device(self) -> str:
        return self.config.train.device

    def fit(
        self,
        train: TrainOptions,
        attack: Mapping[str, Any],
        bound: Mapping[str, Any],
        model: str | None = None,
    ) -> Network:
        self._fits += 1
        choice = self.config.model if model is None else _by_name("model", model)
        options = {key: value for key, value in train.model_dump(mode="json").items() if key != "checkpoint_seconds"}
        key = {
            "data": data_fingerprint(self.data),
            "data options": self.config.data.options.model_dump(mode="json"),
            "model": choice.table(),
            "train": options,
            "attack": dict(attack),
            "bound": dict(bound),
            "versions": versions(),
            "machine": platform.machine(),
            "code": code_digest(),
            "origins": sorted({choice.entry.origin, self.config.propagation.entry.origin}),
            "structure": finalise(self.build_model(model), self.data.input_shape).structure(),
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        cached = cache_folder() / "teachers" / f"{name}.safetensors"
        if cached.is_file():
            try:
                network = Network.load(cached)
                self.reporter.say(f"teacher: reused from the cache ({name[:12]})")
                return network
            except BadInput as problem:
                self.reporter.warn(f"{problem}; training the teacher again")
        plugins = Plugins(
            method=plugin("bound", bound),
            objective=plugin("distill", {"name": "none"}),
            attack=plugin("attack", attack),
            backend=self.config.propagation.create(),
            evaluation=self._selecting_attack(),
        )
        label = self._label if self._fits == 1 else f"{self._label}.{self._fits}"
        network = self._train(label, "teacher", train, plugins, (), self.build_model(model))
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            network.save(cached)
        except OSError as error:
            self.reporter.warn(f"the teacher could not be cached in {cached.parent}: {error.strerror}")
        return network

    def teachers(self) -> tuple[list[Teacher], list[dict[str, Any]]]:
        """The teachers, evaluated, hashed and recorded, and their figures; both empty without one."""
        if not self.config.taught:
            return [], []
        found = [self._teacher(choice, i) for i, choice in enumerate(self.config.teachers, start=1)]
        return [teacher for teacher, _ in found], [facts for _, facts in found]

    def _teacher(self, choice: Choice, number: int) -> tuple[Teacher, dict[str, Any]]:
        # A source may train several networks: they are named after its place and their order.
        self._label, self._fits = "teacher" if number == 1 else f"teacher-{number}", 0
        folder = self.folder.path / self._label
        recorded = faculty.load_recorded(folder, self.data.input_shape)
        if recorded is not None:
            return recorded
        with attributed(choice):
            found: Teacher | Network | None = choice.create().obtain(self)
        if found is None:
            raise RunFailed(f"teacher {choice.name!r} of {choice.entry.origin} returned no teacher")
        teacher = Teacher((found,)) if isinstance(found, Network) else found
        faculty.check_fits(teacher, choice.name, self.data)
        if number == 1:
            self._check_objective(teacher)
        faculty.check_logits(teacher, choice.name, self.data.validation)
        self.reporter.say("evaluating the teacher")
        options = self.config.certify
        test, attack = selected(self.data, options), evaluation_attack(options)
        facts = faculty.evaluate(teacher, choice.name, self.data, test, self.eps, attack, options.seed, self.check_stop)
        faculty.record(teacher, facts, folder)
        return teacher, facts

    def _check_objective(self, teacher: Teacher) -> None:
        """Let the objective refuse a teacher whose features do not fit, before the student's training."""
        prepare = getattr(self.config.distill.create(), "prepare", None)
        if prepare is not None:
            student = self.config.propagation.create().trace(self.build_model(), self.data.input_shape).bind()
            prepare(feature_widths(student, teacher), generator(0, "check"))

    def _selecting_attack(self) -> Attack:
        """The attack by which epochs are compared: a short one, since it runs after each."""
        return evaluation_attack(self.config.certify.model_copy(update={"attack_steps": 10, "attack_restarts": 1}))

    def check_stop(self) -> None:
        """Raises: Interrupted if a signal came; everything finished so far is stored."""
        if self.stop.signal_number is not None:
            raise Interrupted(f"interrupted; what is finished is stored. {self.resume_hint}", self.stop.signal_number)

    # Students

    def student(self, teachers: Sequence[Teacher]) -> Network:
        path = self.folder.network
        if path.exists():
            return Network.load(path)
        config = self.config
        plugins = Plugins(
            config.bound.create(),
            config.distill.create(),
            config.attack.create(),
            config.propagation.create(),
            self._selecting_attack(),
        )
        network = self._train("student", "student", config.train, plugins, teachers, self.build_model())
        network.save(path)
        return network

    def _train(
        self,
        name: str,
        role: str,
        options: TrainOptions,
        plugins: Plugins,
        teachers: Sequence[Teacher],
        module: nn.Module,
    ) -> Network:
        def on_epoch(metrics: dict[str, Any]) -> None:
            self.folder.append_metrics(metrics)
            self.clock.tick()
            self.hook("ctkd_epoch_finished", network=name, metrics=metrics)

        place = self.folder.path / name
        place.mkdir(exist_ok=True)
        trainer = Trainer(
            name=name,
            role=role,
            module=module,
            data=self.data,
            plugins=plugins,
            options=options,
            teachers=teachers,
            folder=place,
            reporter=self.reporter,
            stop=self.stop,
            resume_hint=self.resume_hint,
            on_epoch=on_epoch,
            on_resume=lambda epoch: self.folder.forget_metrics(name, epoch),
        )
        roles = (self.config.bound, self.config.distill, self.config.attack) if role == "student" else ()
        with attributed(*roles):
            return trainer.run()

    # Certification

    def certify(self, network: Network, eps: float, options: CertifyOptions, hint: str) -> Certificate:
        split = getattr(self.data, options.split)
        samples = sample_range(self.data, options)
        attack = {k: v for k, v in options.model_dump().items() if k.startswith("attack") or k == "seed"}
        details = {
            "stages": options.stages,
            "batch_size": options.batch_size,
            "start": options.start,
            "attack": attack,
            "data": split_digest(split),
        }
        cascade = Cascade(
            network=network,
            eps=eps,
            attack=evaluation_attack(options),
            stages={name: plugin("stage", {"name": name}) for name in options.stages},
            seed=options.seed,
        )
        with Store(self.folder.results) as store:
            settings = store.settings(network.sha256(), eps, options.split, details)
            return cascade.run(split, samples, store, settings, options.batch_size, self.reporter, self.stop, hint)

    def hook(self, name: str, **arguments: Any) -> None:
        """Call a lifecycle hook plugin by plugin; one that raises is switched off with a warning."""
        for implementation in list(getattr(registry().manager.hook, name).get_hookimpls()):
            given = {"folder": self.folder, **arguments}
            try:
                implementation.function(**{key: given[key] for key in implementation.argnames if key in given})
            except Exception as error:  # foreign code: anything may come out of it
                self.reporter.warn(f"plugin {implementation.plugin_name}: {name} raised {error!r}; it is switched off")
                registry().manager.unregister(implementation.plugin)


def _by_name(kind: str, name: str) -> Choice:
    entry = registry().find(kind, name)
    return Choice(entry, options_class(entry)())


def sample_range(data: Data, options: CertifyOptions) -> range:
    """The samples of the split that are asked for. Raises: BadInput if the split has no such samples."""
    size = len(getattr(data, options.split))
    stop = size if options.samples is None else options.start + options.samples
    if stop > size or options.start >= size:
        raise BadInput(
            f"certify.start={options.start}, certify.samples={options.samples}: "
            f"the {options.split} split has {size} samples"
        )
    return range(options.start, stop)


def selected(data: Data, options: CertifyOptions) -> Split:
    """Those samples."""
    split: Split = getattr(data, options.split)
    rows = sample_range(data, options)
    return replace(split, images=split.images[rows.start : rows.stop], labels=split.labels[rows.start : rows.stop])


@contextmanager
def attributed(*choices: Choice) -> Iterator[None]:
    """An unexpected exception inside the block becomes an error that names the foreign plugins in play."""
    try:
        yield
    except (CtkdError, KeyboardInterrupt):
        raise
    except Exception as error:
        foreign = [f"{c.entry.kind} {c.name!r} of {c.entry.origin}" for c in choices if not _is_own(c)]
        if not foreign:
            raise
        raise RunFailed(f"{' or '.join(foreign)} raised {type(error).__name__}: {error}") from error


def _is_own(choice: Choice) -> bool:
    return choice.entry.target.startswith("ctkd.")
