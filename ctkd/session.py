# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One process's work on one run: teacher, student, certification, each picked up where it was left."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctkd import faculty
from ctkd.api import Attack, Data, Split, TeacherSource
from ctkd.attribution import attributed, label
from ctkd.certify.attack import evaluation_attack, pgd_table, resolved
from ctkd.certify.cascade import Cascade, Certificate
from ctkd.certify.device import certifying_device
from ctkd.certify.options import CertifyOptions
from ctkd.certify.proofs import check_provable, proof_folder
from ctkd.certify.rounding import of_results
from ctkd.certify.store import Store
from ctkd.config import Choice, RunConfig
from ctkd.data.checks import check_data
from ctkd.distributed import check_same, from_leader, greatest, leader_first, leads, wait
from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.fingerprint import fit_key
from ctkd.hookspecs import Registration
from ctkd.interrupt import StopRequest
from ctkd.machine import plain_convolutions
from ctkd.plugins import create_from, options_class, registry
from ctkd.progress import Reporter
from ctkd.propagate import Network
from ctkd.randomness import generator
from ctkd.runfolder import RunFolder
from ctkd.storage import cache_folder, digest_tensors, read_json, write_json
from ctkd.teaching import Teacher
from ctkd.train.finish import feature_widths, finalise
from ctkd.train.loop import Plugins, Trainer
from ctkd.train.options import TrainOptions


def load_data(config: RunConfig) -> Data:
    """The checked data set of a configuration."""
    with leader_first():  # what it downloads is there for the others
        data = config.data.create().load(config.data_dir)
    if not isinstance(data, Data):
        raise RunFailed(
            f"load of {label(config.data.entry)} returned {type(data).__name__}; it must return ctkd.api.Data"
        )
    check_data(data)
    return data


def versions() -> dict[str, str]:
    """Versions of what determines a result."""
    names = ("ctkd", "torch", "numpy", "onnx", "onnxruntime", "scikit-learn")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def split_digest(split: Split) -> str:
    return digest_tensors({"images": split.images, "labels": split.labels})[:16]


class Clock:
    """Seconds of work on a run over all its processes; a killed one loses what came after its last tick."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = float(read_json(path)["seconds"]) if path.exists() else 0.0
        self.began = time.monotonic()

    def tick(self) -> float:
        seconds = self.before + time.monotonic() - self.began
        if leads():
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
        self._label, self._fits, self._expects_features = "teacher", 0, False

    @property
    def resume_hint(self) -> str:
        return f"Go on with: ctkd train --resume {self.folder.path}"

    # Models

    def build_model(self, name: str | None = None) -> nn.Module:
        choice = self.config.model if name is None else _by_name("model", name)
        with torch.random.fork_rng(devices=[]):  # core initialises again, from a generator of its own
            return choice.create().build(self.data.input_shape, self.data.classes)  # type: ignore[no-any-return]

    # Teachers (ctkd.api.TeacherContext)

    @property
    def eps(self) -> float:
        return self.config.train.eps

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def role(self) -> str:
        return self._label.replace("-", ".")

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
        fresh = finalise(self.build_model(model), self.data.input_shape)
        if self._expects_features:
            self._check_objective(Teacher((fresh,)))
        selection = self._selecting_table()
        name = fit_key(self.config, self.data, choice, fresh, train, attack, bound, selection, versions())
        cached = cache_folder() / "teachers" / f"{name}.safetensors"
        if from_leader(cached.is_file):
            try:
                network = Network.load(cached)
                self.reporter.say(f"teacher: reused from the cache ({name[:12]})")
                return network
            except BadInput as problem:
                self.reporter.warn(f"{problem}; training the teacher again")
        none = {"name": "none"}
        tables = {"bound": bound, "distill": none, "attack": attack}
        plugins = Plugins(
            method=create_from("bound", bound),
            objective=create_from("distill", none),
            attack=create_from("attack", attack),
            backend=self.config.propagation.create(),
            evaluation=self._selecting_attack(),
            entries=self._entries({kind: registry().find(kind, table["name"]) for kind, table in tables.items()}),
        )
        label = self._label if self._fits == 1 else f"{self._label}/member-{self._fits}"
        network = self._train(label, "teacher", train, plugins, (), self.build_model(model))
        try:
            if leads():
                cached.parent.mkdir(parents=True, exist_ok=True)
                network.save(cached)
        except OSError as error:
            self.reporter.warn(f"the teacher could not be cached in {cached.parent}: {error.strerror}")
        return network

    def teachers(self) -> tuple[list[Teacher], list[dict[str, Any]]]:
        """The teachers, evaluated, hashed and recorded, and their figures; both empty without one."""
        if not self.config.taught:
            return [], []
        done: dict[int, tuple[Teacher, dict[str, Any]]] = {}
        sources: dict[int, TeacherSource] = {}
        for i, choice in enumerate(self.config.teachers):
            recorded = faculty.load_recorded(self._teacher_folder(i), self.data.input_shape)
            if recorded is None:
                sources[i] = choice.create()
            else:
                done[i] = recorded
        wait()  # until all have seen what is recorded
        # What needs no training comes first: what is wrong with it is refused before hours of work, and before
        # anything is stored.
        ready = {i: self._obtain(i, source) for i, source in sources.items() if not getattr(source, "trains", True)}
        for i, source in sources.items():
            teacher = ready[i] if i in ready else self._obtain(i, source)
            done[i] = teacher, self._evaluated(teacher, i)
            if leads():
                faculty.record(*done[i], self._teacher_folder(i))
        return [done[i][0] for i in sorted(done)], [done[i][1] for i in sorted(done)]

    def _teacher_folder(self, i: int) -> Path:
        return self.folder.path / _teacher_label(i)

    def _obtain(self, i: int, source: TeacherSource) -> Teacher:
        # A source may train several networks: they are named after its place and their order.
        choice, self._label, self._fits = self.config.teachers[i], _teacher_label(i), 0
        self._expects_features = i == 0 and getattr(source, "features", False) and getattr(source, "trains", False)
        with attributed(choice.entry):
            found = source.obtain(self)
        if not isinstance(found, Teacher | Network):
            what = "no teacher" if found is None else f"a {type(found).__name__}, neither a Network nor a Teacher"
            raise RunFailed(f"{label(choice.entry)} returned {what}")
        teacher = Teacher((found,)) if isinstance(found, Network) else found
        check_same(teacher.sha256(), f"the network of {label(choice.entry)}")
        faculty.check_fits(teacher, choice.name, self.data)
        if i == 0:
            self._check_objective(teacher)
            if getattr(self.config.attack.create(), "calls_teacher", False) and not teacher.differentiable:
                raise BadInput(
                    f"attack.name={self.config.attack.name} needs gradients of the teacher, and teacher "
                    f"{choice.name!r} has none; choose a teacher that is a network, such as pgd or file"
                )
        faculty.check_logits(teacher, choice.name, self.data.validation, self.role)
        faculty.check_chance(teacher, choice.name, self.data)
        return teacher

    def _evaluated(self, teacher: Teacher, i: int) -> dict[str, Any]:
        self.reporter.say("evaluating the teacher")
        options, name = self.config.certify, self.config.teachers[i].name
        test, attack = selected(self.data, options), evaluation_attack(options)
        return faculty.evaluate(
            teacher, name, self.data, test, self.eps, attack, options.seed, self.check_stop, self.device
        )

    def _check_objective(self, teacher: Teacher) -> None:
        """Let the objective refuse a teacher whose features do not fit, before training."""
        objective = self.config.distill.create()
        prepare = getattr(objective, "prepare", None)
        if prepare is not None:
            student = self.config.propagation.create().trace(self.build_model(), self.data.input_shape).bind()
            prepare(feature_widths(student, teacher), generator(0, "check"))
        if objective.needs_features and teacher.feature_shape is None:
            raise BadInput(
                f"distill.name={self.config.distill.name} reads the teacher's features, and teacher "
                f"{self.config.teachers[0].name!r} has none: it is not one network that ends in a Linear layer"
            )

    def _selecting_table(self) -> dict[str, Any]:
        return pgd_table(self.config.certify.model_copy(update={"attack_steps": 10, "attack_restarts": 1}))

    def _selecting_attack(self) -> Attack:
        """The attack by which epochs are compared: a short one, since it runs after each."""
        return create_from("attack", self._selecting_table())  # type: ignore[no-any-return]

    def check_stop(self) -> None:
        """Raises: Interrupted if a signal came; everything finished so far is stored."""
        (signal,) = greatest(self.stop.signal_number or 0)
        if signal:
            raise Interrupted(f"interrupted; what is finished is stored. {self.resume_hint}", signal)

    # Students

    def student(self, teachers: Sequence[Teacher]) -> Network:
        path = self.folder.network
        if from_leader(path.exists):
            return Network.load(path)
        config = self.config
        plugins = Plugins(
            config.bound.create(),
            config.distill.create(),
            config.attack.create(),
            config.propagation.create(),
            self._selecting_attack(),
            self._entries({c.entry.kind: c.entry for c in (config.bound, config.distill, config.attack)}),
        )
        network = self._train("student", "student", config.train, plugins, teachers, self.build_model())
        check_same(network.sha256(), "the student")
        if leads():
            network.save(path)
        return network

    def _entries(self, chosen: Mapping[str, Registration]) -> dict[str, Registration]:
        return {**chosen, "propagation": self.config.propagation.entry}

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
            if not leads():
                return
            self.folder.append_metrics(metrics)
            self.clock.tick()
            self.hook("ctkd_epoch_finished", network=name, metrics=metrics)

        def on_resume(epoch: int) -> None:
            if leads():
                self.folder.forget_metrics(name, epoch)

        place = self.folder.path / name
        place.mkdir(parents=True, exist_ok=True)
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
            on_resume=on_resume,
        )
        with attributed(*plugins.entries.values()):
            return trainer.run()

    # Certification

    def certify(self, network: Network, eps: float, options: CertifyOptions, hint: str) -> Certificate:
        split = getattr(self.data, options.split)
        samples = sample_range(self.data, options)
        cascade, details = self.cascade(network, eps, options)
        if options.proofs:
            check_provable(network)
        with Store(self.folder.results) if leads() else nullcontext() as store:
            settings = store.settings(network.sha256(), eps, options.split, details) if store is not None else 0
            number = from_leader(lambda: settings)
            proofs = proof_folder(self.folder.path, number, network, eps, options.split, details)
            rest = self.reporter, self.stop, hint, proofs if options.proofs else None
            return cascade.run(split, samples, store, settings, options.batch_size, *rest)

    def float32(self, network: Network, eps: float, options: CertifyOptions) -> dict[str, Any]:
        """Which of the stored certificates hold for the network as it computes in float32, as part of a summary."""
        split, samples = getattr(self.data, options.split), sample_range(self.data, options)
        details = self.cascade(network, eps, options)[1]
        device = certifying_device(self.config)
        given = self.folder.results, network.to(device), split, samples, eps, options, details, self.reporter
        with plain_convolutions(device):
            return from_leader(lambda: of_results(*given))

    def cascade(self, network: Network, eps: float, options: CertifyOptions) -> tuple[Cascade, dict[str, Any]]:
        """The configured attack and stages, and all that determines their results besides network, eps and split."""
        attack = {k: v for k, v in options.model_dump().items() if k.startswith("attack") or k == "seed"}
        details = {
            "stages": [resolved("stage", table) for table in options.stages],
            "further_attacks": [resolved("attack", table) for table in options.further_attacks],
            "attack": attack,
            "data": split_digest(getattr(self.data, options.split)),
            **({"proofs": True} if options.proofs else {}),
        }
        stages = {table["name"]: create_from("stage", table) for table in options.stages}
        cascade = Cascade(
            network=network,
            eps=eps,
            attack=evaluation_attack(options),
            stages=stages,
            seed=options.seed,
            device=certifying_device(self.config),
            labels={name: label(registry().find("stage", name)) for name in stages},
        )
        return cascade, details

    def hook(self, name: str, **arguments: Any) -> None:
        """Call a lifecycle hook plugin by plugin, in the leader; one that raises is switched off with a warning."""
        if not leads():
            return
        for implementation in list(getattr(registry().manager.hook, name).get_hookimpls()):
            given = {"folder": self.folder, **arguments}
            try:
                implementation.function(**{key: given[key] for key in implementation.argnames if key in given})
            except Exception as error:  # foreign code: anything may come out of it
                self.reporter.warn(f"plugin {implementation.plugin_name}: {name} raised {error!r}; it is switched off")
                registry().manager.unregister(implementation.plugin)


def _teacher_label(i: int) -> str:
    return "teacher" if i == 0 else f"teacher-{i + 1}"


def _by_name(kind: str, name: str) -> Choice:
    entry = registry().find(kind, name)
    return Choice(entry, options_class(entry)())


def sample_range(data: Data, options: CertifyOptions) -> range:
    """The samples of the split that are asked for. Raises: BadInput if the split has no such samples."""
    size = len(getattr(data, options.split))
    stop = size if options.samples is None else options.start + options.samples
    if stop > size or options.start >= size:
        wanted = "" if options.samples is None else f", certify.samples={options.samples}"
        raise BadInput(f"certify.start={options.start}{wanted}: the {options.split} split has {size} samples")
    return range(options.start, stop)


def selected(data: Data, options: CertifyOptions) -> Split:
    """Those samples."""
    split: Split = getattr(data, options.split)
    rows = sample_range(data, options)
    return replace(split, images=split.images[rows.start : rows.stop], labels=split.labels[rows.start : rows.stop])
