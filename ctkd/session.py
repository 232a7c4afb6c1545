# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One process's work on one run: student and certification, each picked up where it was left."""

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

from ctkd.api import Attack, Data, Split
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
from ctkd.distributed import check_same, from_leader, greatest, leader_first, leads
from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.hookspecs import Registration
from ctkd.interrupt import StopRequest
from ctkd.machine import plain_convolutions
from ctkd.plugins import create_from, options_class, registry
from ctkd.progress import Reporter
from ctkd.propagate import Network
from ctkd.runfolder import RunFolder
from ctkd.storage import digest_tensors, read_json, write_json
from ctkd.teaching import Teacher
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

    @property
    def resume_hint(self) -> str:
        return f"Go on with: ctkd train --resume {self.folder.path}"

    # Models

    def build_model(self, name: str | None = None) -> nn.Module:
        choice = self.config.model if name is None else by_name("model", name)
        with torch.random.fork_rng(devices=[]):  # core initialises again, from a generator of its own
            return choice.create().build(self.data.input_shape, self.data.classes)  # type: ignore[no-any-return]

    # Training

    def selecting_table(self) -> dict[str, Any]:
        return pgd_table(self.config.certify.model_copy(update={"attack_steps": 10, "attack_restarts": 1}))

    def selecting_attack(self) -> Attack:
        """The attack by which epochs are compared: a short one, since it runs after each."""
        return create_from("attack", self.selecting_table())  # type: ignore[no-any-return]

    def check_stop(self) -> None:
        """Raises: Interrupted if a signal came; everything finished so far is stored."""
        (signal,) = greatest(self.stop.signal_number or 0)
        if signal:
            raise Interrupted(f"interrupted; what is finished is stored. {self.resume_hint}", signal)

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
            self.selecting_attack(),
            self.entries({c.entry.kind: c.entry for c in (config.bound, config.distill, config.attack)}),
        )
        network = self.train("student", "student", config.train, plugins, teachers, self.build_model())
        check_same(network.sha256(), "the student")
        if leads():
            network.save(path)
        return network

    def entries(self, chosen: Mapping[str, Registration]) -> dict[str, Registration]:
        return {**chosen, "propagation": self.config.propagation.entry}

    def train(
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


def by_name(kind: str, name: str) -> Choice:
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
