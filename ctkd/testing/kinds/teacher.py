# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Teacher sources (``ctkd.api.TeacherSource``), asked for a teacher of a small model on the digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctkd import faculty
from ctkd.api import TeacherContext
from ctkd.errors import BadInput
from ctkd.interrupt import StopRequest
from ctkd.progress import Silent
from ctkd.propagate import Network
from ctkd.runfolder import RunFolder
from ctkd.session import Session, load_data
from ctkd.teacher_context import SessionContext
from ctkd.teaching import Teacher
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.runs import quick_settings, resolved, sandbox
from ctkd.testing.state import seed_everything
from ctkd.testing.subject import NotApplicable, Subject

NO_TEACHER = "none"
"""The one name by which a source may return None."""


@contextmanager
def _context(subject: Subject) -> Iterator[tuple[TeacherContext, Path]]:
    """What a run gives a source, with an empty cache, and a folder."""
    with sandbox() as folder:
        config = resolved(subject, {**quick_settings(), **subject.settings("teacher")})
        run = RunFolder.create(folder / "run", "conformance")
        yield SessionContext(Session(config, run, load_data(config), Silent(), StopRequest())), folder


class _Context:
    """The context as a source sees it; what core draws in it from global random numbers is not the source's doing."""

    def __init__(self, context: TeacherContext, subject: Subject, trains: bool) -> None:
        self.context, self.subject, self.trains = context, subject, trains

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def build_model(self, name: str | None = None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return self.context.build_model(name)

    def fit(self, *arguments: Any, **named: Any) -> Network:
        if not self.trains:
            self.subject.reject(
                "obtain called context.fit, and trains is False",
                "TeacherSource.trains is False for a source that calls no fit: it is obtained before any training",
                "set trains = True, or leave it out",
            )
        with torch.random.fork_rng(devices=[]):
            return self.context.fit(*arguments, **named)


def _obtain(subject: Subject) -> Teacher | None:
    source = subject.create()
    with _context(subject) as (context, _):
        given: Any = _Context(context, subject, getattr(source, "trains", True))
        found = source.obtain(given)
    if found is None and subject.name == NO_TEACHER:
        return None
    if not isinstance(found, Teacher | Network):
        subject.reject(
            f"obtain returned {'None' if found is None else type(found).__name__}",
            "TeacherSource.obtain returns a ctkd.propagate.Network or a ctkd.teaching.Teacher",
            "return what context.fit gives, or Teacher((network,))",
        )
    return Teacher((found,)) if isinstance(found, Network) else found


def _teacher(subject: Subject) -> Teacher:
    """The teacher, obtained once for all checks of one test. Raises: NotApplicable for the source that has none."""
    memory: dict[str, Any] = subject.__dict__
    if "teacher" not in memory:
        memory["teacher"] = _obtain(subject)
    if memory["teacher"] is None:
        raise NotApplicable("it stands for no teacher")
    return memory["teacher"]  # type: ignore[no-any-return]


def exercise(subject: Subject) -> None:
    """Obtain a teacher."""
    _obtain(subject)


def declares_what_it_is(subject: Subject) -> None:
    """``trains`` and ``features``, where they are there, are True or False."""
    source = subject.create()
    for name in ("trains", "features"):
        value = getattr(source, name, True)
        if not isinstance(value, bool):
            subject.reject(f"{name} is {value!r}", f"TeacherSource.{name} is True or False", "correct it")


def obtains_a_teacher_that_fits(subject: Subject) -> None:
    """The teacher takes the data's images, has its classes, returns finite logits and is better than guessing."""
    teacher = _teacher(subject)
    with _context(subject) as (context, _):
        try:
            faculty.check_fits(teacher, subject.name, context.data)
            faculty.check_logits(teacher, subject.name, context.data.validation)
            faculty.check_chance(teacher, subject.name, context.data)
        except BadInput as problem:
            subject.reject(
                str(problem),
                "a teacher classifies the data set of the run, pixels in [0, 1], by its logits",
                "put normalisation into the network; train longer, or with a larger learning rate",
            )
        images = context.data.validation.images[:8]
    before = images.clone()
    outputs = teacher.outputs(images)
    if outputs.logits.requires_grad or not images.equal(before):
        subject.reject(
            "its outputs have a gradient, or its input was written to",
            "a teacher is frozen: it answers without gradient and changes nothing",
            "return network.detach()",
        )


def has_features_where_it_says_so(subject: Subject) -> None:
    """Where ``features`` is there, it says whether the teacher has features."""
    source = subject.create()
    if not hasattr(source, "features"):
        raise NotApplicable("it has no attribute features")
    teacher = _teacher(subject)
    # True speaks of the network that fit returns: other sources may still find none.
    wrong = (
        (teacher.feature_shape is not None)
        if not source.features
        else (getattr(source, "trains", True) and teacher.feature_shape is None)
    )
    if wrong:
        subject.reject(
            f"features is {source.features}, and the teacher has {'some' if not source.features else 'none'}",
            "TeacherSource.features is False where the teacher never has features, and True where it has those of the "
            "network that fit returns",
            "correct it: core refuses objectives that read features by this attribute",
        )


def repeats_under_its_seed(subject: Subject) -> None:
    """Obtained twice, with an empty cache each time, it is the same teacher bit for bit."""
    first = _teacher(subject)
    seed_everything(7)
    second = _obtain(subject)
    if second is None or second.sha256() != first.sha256():
        subject.reject(
            "obtained twice under one seed, the teacher has other weights",
            "a teacher is determined by the run's configuration and context.seed",
            "pass seed=context.seed to TrainOptions, and draw from generators that are seeded with it",
        )


def can_be_stored(subject: Subject) -> None:
    """Written into a run folder and read again it is the same teacher."""
    teacher = _teacher(subject)
    with sandbox() as folder:
        again = Teacher.load(folder, teacher.save(folder), teacher.input_shape)
    x = torch.rand(4, *teacher.input_shape, generator=torch.Generator().manual_seed(0))
    same: Tensor = teacher.outputs(x).logits
    if again.sha256() != teacher.sha256() or not again.outputs(x).logits.equal(same):
        subject.reject(
            "a teacher that was stored and loaded has other weights or outputs",
            "a run folder holds its teacher, and resuming loads it from there",
            "return members that save and load: ctkd.propagate.Network or ctkd.teaching.OnnxModel",
        )


CHECKS = (
    *COMMON,
    declares_what_it_is,
    obtains_a_teacher_that_fits,
    has_features_where_it_says_so,
    repeats_under_its_seed,
    can_be_stored,
    leaves_global_state_alone(exercise),
)
