# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One process's work on one run: teacher, student, certification, each picked up where it was left."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctkd.accuracy import adversarial_accuracy, natural_accuracy
from ctkd.api import Attack, Data, Split, TeacherOutputs
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
from ctkd.runfolder import RunFolder
from ctkd.storage import cache_folder, digest_tensors, read_json, write_json
from ctkd.train.loop import Plugins, Trainer, finalise
from ctkd.train.options import TrainOptions

CHANCE_SIGMAS = 3.0
"""A teacher within this many standard errors of guessing is refused."""


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

    def fit(self, train: TrainOptions, attack: Mapping[str, Any], bound: str) -> Network:
        options = {key: value for key, value in train.model_dump(mode="json").items() if key != "checkpoint_seconds"}
        key = {
            "data": data_fingerprint(self.data),
            "data options": self.config.data.options.model_dump(mode="json"),
            "model": self.config.tables()["model"],
            "train": options,
            "attack": dict(attack),
            "bound": bound,
            "versions": versions(),
            "machine": platform.machine(),
            "code": code_digest(),
            "origins": sorted({self.config.model.entry.origin, self.config.propagation.entry.origin}),
            "structure": finalise(self.build_model(), self.data.input_shape).structure(),
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
            method=plugin("bound", {"name": bound}),
            objective=plugin("distill", {"name": "none"}),
            attack=plugin("attack", attack),
            backend=self.config.propagation.create(),
        )
        network = self._train("teacher", train, plugins, None)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            network.save(cached)
        except OSError as error:
            self.reporter.warn(f"the teacher could not be cached in {cached.parent}: {error.strerror}")
        return network

    def teacher(self) -> tuple[Network | None, dict[str, Any] | None]:
        """The teacher, evaluated, hashed and recorded, or None."""
        path = self.folder.teacher
        network = Network.load(path) if path.exists() else self._obtain_teacher()
        if network is None:
            return None, None
        record = path.with_name("teacher.json")
        if record.exists():
            return network, read_json(record)
        facts = self._evaluate_teacher(network)
        network.save(path)
        write_json(record, facts)
        return network, facts

    def _obtain_teacher(self) -> Network | None:
        with attributed(self.config.teacher):
            network: Network | None = self.config.teacher.create().obtain(self)
        if network is None:
            return None
        if network.input_shape != self.data.input_shape or network.classes != self.data.classes:
            raise BadInput(
                f"teacher {self.config.teacher.name!r} takes inputs of shape {network.input_shape} and has "
                f"{network.classes} classes; data set {self.data.name!r} has {self.data.input_shape} "
                f"and {self.data.classes}"
            )
        self._check_features(network)
        return network

    def _check_features(self, network: Network) -> None:
        if not self.config.distill.create().needs_features:
            return
        student = self.config.propagation.create().trace(self.build_model(), self.data.input_shape).bind()
        widths = [feature_shape(self.config, who, net) for who, net in (("teacher", network), ("student", student))]
        if widths[0] != widths[1]:
            raise BadInput(
                f"distill.name={self.config.distill.name} compares features: the teacher has {widths[0]}, the student "
                f"{widths[1]}; choose models of equal width, or --distill logits"
            )

    def _evaluate_teacher(self, network: Network) -> dict[str, Any]:
        self.reporter.say("evaluating the teacher")
        data, options = self.data, self.config.certify
        seen = natural_accuracy(network, data.validation)
        chance = 1 / data.classes
        limit = chance + CHANCE_SIGMAS * (chance * (1 - chance) / len(data.validation)) ** 0.5
        if seen <= limit:
            raise BadInput(
                f"teacher {self.config.teacher.name!r} is at chance level: {seen:.1%} of the validation split is right "
                f"(guessing gives {chance:.1%}); it may expect other inputs than pixels in [0, 1]"
            )
        test = selected(data, options)
        attack = evaluation_attack(options)
        return {
            "natural_accuracy": natural_accuracy(network, test),
            "adversarial_accuracy": adversarial_accuracy(
                network, test, self.eps, attack, options.seed, between=self.check_stop
            ),
            "validation_natural_accuracy": seen,
            "sha256": network.sha256(),
        }

    def check_stop(self) -> None:
        """Raises: Interrupted if a signal came; everything finished so far is stored."""
        if self.stop.signal_number is not None:
            raise Interrupted(f"interrupted; what is finished is stored. {self.resume_hint}", self.stop.signal_number)

    # Students

    def student(self, teacher: Network | None) -> Network:
        path = self.folder.network
        if path.exists():
            return Network.load(path)
        config = self.config
        plugins = Plugins(
            config.bound.create(),
            config.distill.create(),
            config.attack.create(),
            config.propagation.create(),
        )
        network = self._train("student", config.train, plugins, teacher)
        network.save(path)
        return network

    def _train(self, name: str, options: TrainOptions, plugins: Plugins, teacher: Network | None) -> Network:
        def on_epoch(metrics: dict[str, Any]) -> None:
            self.folder.append_metrics(metrics)
            self.clock.tick()
            self.hook("ctkd_epoch_finished", network=name, metrics=metrics)

        trainer = Trainer(
            name=name,
            module=self.build_model(),
            data=self.data,
            plugins=plugins,
            options=options,
            teacher=None if teacher is None else teacher_function(teacher, options.device),
            folder=self.folder.path / name,
            reporter=self.reporter,
            stop=self.stop,
            resume_hint=self.resume_hint,
            on_epoch=on_epoch,
            on_resume=lambda epoch: self.folder.forget_metrics(name, epoch),
        )
        roles = (self.config.bound, self.config.distill, self.config.attack) if name == "student" else ()
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


def feature_shape(config: RunConfig, who: str, network: Network) -> tuple[int, ...]:
    """The shape of a network's features. Raises: BadInput if it has none."""
    if network.features_node is None:
        raise BadInput(
            f"distill.name={config.distill.name} reads features, the input of a last Linear layer, "
            f"and the {who}'s network does not end in one"
        )
    return network.nodes[network.features_node].shape


def teacher_function(network: Network, device: str) -> Callable[[Tensor], TeacherOutputs]:
    """The frozen teacher as a function of images."""
    frozen = network.detach().to(torch.device(device))
    tap = frozen.features_node

    @torch.no_grad()
    def outputs(x: Tensor) -> TeacherOutputs:
        if tap is None:
            return TeacherOutputs(frozen(x), None)
        features, logits = frozen.evaluate(x, tap, frozen.output)
        return TeacherOutputs(logits, features)

    return outputs


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
