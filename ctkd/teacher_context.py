# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A run's teachers: obtained from their sources, or from the record, each in the context that a source is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctkd import faculty
from ctkd.api import TeacherSource
from ctkd.attribution import attributed, label
from ctkd.certify.attack import evaluation_attack
from ctkd.distributed import check_same, from_leader, leads, wait
from ctkd.errors import BadInput, RunFailed
from ctkd.fingerprint import fit_key
from ctkd.plugins import create_from, registry
from ctkd.propagate import Network
from ctkd.randomness import generator
from ctkd.session import Session, by_name, selected, versions
from ctkd.storage import cache_folder
from ctkd.teaching import Teacher
from ctkd.train.finish import feature_widths, finalise
from ctkd.train.loop import Plugins
from ctkd.train.options import TrainOptions


class SessionContext:
    """``ctkd.api.TeacherContext`` for one session."""

    def __init__(self, session: Session) -> None:
        self.session, self.config, self.data = session, session.config, session.data
        self._label, self._fits, self._expects_features = "teacher", 0, False

    def build_model(self, name: str | None = None) -> nn.Module:
        return self.session.build_model(name)

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
        choice = self.config.model if model is None else by_name("model", model)
        fresh = finalise(self.build_model(model), self.data.input_shape)
        if self._expects_features:
            self._check_objective(Teacher((fresh,)))
        selection = self.session.selecting_table()
        name = fit_key(self.config, self.data, choice, fresh, train, attack, bound, selection, versions())
        cached = cache_folder() / "teachers" / f"{name}.safetensors"
        found = self._cached(cached, name)
        if found is not None:
            return found
        none = {"name": "none"}
        tables = {"bound": bound, "distill": none, "attack": attack}
        chosen = {kind: registry().find(kind, table["name"]) for kind, table in tables.items()}
        plugins = Plugins(
            method=create_from("bound", bound),
            objective=create_from("distill", none),
            attack=create_from("attack", attack),
            backend=self.config.propagation.create(),
            evaluation=self.session.selecting_attack(),
            entries=self.session.entries(chosen),
        )
        label = self._label if self._fits == 1 else f"{self._label}/member-{self._fits}"
        network = self.session.train(label, "teacher", train, plugins, (), self.build_model(model))
        try:
            if leads():
                cached.parent.mkdir(parents=True, exist_ok=True)
                network.save(cached)
        except OSError as error:
            self.session.reporter.warn(f"the teacher could not be cached in {cached.parent}: {error.strerror}")
        return network

    def _cached(self, path: Path, name: str) -> Network | None:
        if not from_leader(path.is_file):
            return None
        try:
            network = Network.load(path)
        except BadInput as problem:
            self.session.reporter.warn(f"{problem}; training the teacher again")
            return None
        self.session.reporter.say(f"teacher: reused from the cache ({name[:12]})")
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
        return self.session.folder.path / _teacher_label(i)

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
        self.session.reporter.say("evaluating the teacher")
        options, name = self.config.certify, self.config.teachers[i].name
        test, attack = selected(self.data, options), evaluation_attack(options)
        return faculty.evaluate(
            teacher, name, self.data, test, self.eps, attack, options.seed, self.session.check_stop, self.device
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


def _teacher_label(i: int) -> str:
    return "teacher" if i == 0 else f"teacher-{i + 1}"
