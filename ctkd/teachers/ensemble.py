# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several teachers as one: files, or networks that differ in their seed only.

Ensembles are among the teachers of Maroto et al. 2022, arXiv 2203.07159.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ctkd.errors import BadInput
from ctkd.options import AbsolutePath, Count, Index, Options, Positive, validate
from ctkd.plugins import create, options_class, registry
from ctkd.teachers.trained import ModelName

if TYPE_CHECKING:
    from pathlib import Path

    from ctkd.api import TeacherContext
    from ctkd.propagate import Network
    from ctkd.teaching import OnnxModel, Teacher

PASSED_ON = ("model", "epochs", "lr", "batch_size", "steps", "keep", "patience")
"""Options that are the members' own; None leaves the default of their source."""


class EnsembleTeacherOptions(Options):
    """Either ``paths``, or ``of`` with ``size``."""

    paths: Annotated[tuple[AbsolutePath, ...], Field(min_length=2)] | None = None
    """``network.safetensors`` files, run folders or ONNX files."""
    of: Literal["pgd", "natural", "trades", "mart"] | None = None
    """Train the members here: the teacher source they come from."""
    size: Annotated[Count, Field(ge=2, le=100)] = 3
    """How many are trained."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged. The mean of probabilities is returned as its logarithm."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What the files return."""
    seed: Index | None = None
    """Of the first member, each further one's is one higher; None: the run's seed."""
    model: ModelName | None = None
    """For trained members, as in their source."""
    epochs: Count | None = None
    """For trained members, as in their source."""
    lr: Positive | None = None
    """For trained members, as in their source."""
    batch_size: Count | None = None
    """For trained members, as in their source."""
    steps: Count | None = None
    """For trained members, as in their source."""
    keep: Literal["last", "best-adversarial"] | None = None
    """For trained members, as in their source."""
    patience: Count | None = None
    """For trained members, as in their source."""

    def member(self) -> dict[str, Any]:
        """The options that are passed on."""
        return {name: getattr(self, name) for name in PASSED_ON if getattr(self, name) is not None}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.paths is None) == (self.of is None):
            raise ValueError("give either paths, or of with size")
        if self.paths is not None and (unused := [*self.member(), *(["seed"] if self.seed is not None else [])]):
            raise ValueError(f"{', '.join(unused)}: for members that are trained (of), not for files (paths)")
        if self.of is not None:
            if self.outputs != "logits":
                raise ValueError("outputs = probabilities is for files (paths)")
            problems: list[str] = []
            if validate(options_class(registry().find("teacher", self.of)), self.member(), "", problems) is None:
                raise ValueError(f"members by {self.of}: {'; '.join(problems)}")
        return self


class EnsembleTeacher:
    """Logits only: the members' features have no common meaning."""

    Options = EnsembleTeacherOptions
    features = False

    def __init__(self, options: EnsembleTeacherOptions) -> None:
        self.options = options

    @property
    def trains(self) -> bool:
        return self.options.of is not None

    def obtain(self, context: TeacherContext) -> Teacher:
        from ctkd.teaching import Teacher

        options = self.options
        if options.paths is not None:
            members = tuple(_read(path, context.data.input_shape) for path in options.paths)
            return Teacher(members, options.average, options.outputs == "probabilities")
        assert options.of is not None
        entry = registry().find("teacher", options.of)
        first = context.seed if options.seed is None else options.seed
        trained: list[Network] = []
        for i in range(options.size):
            table = {**options.member(), "seed": first + i}
            trained.append(create(entry, options_class(entry)(**table)).obtain(context))
        return Teacher(tuple(trained), options.average)


def _read(path: Path, input_shape: tuple[int, ...]) -> Network | OnnxModel:
    from ctkd.propagate import Network
    from ctkd.teaching import OnnxModel

    if path.suffix == ".onnx":
        return OnnxModel.read(path, input_shape)
    file = path / "network.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise BadInput(f"{path} has no network.safetensors: it is not the folder of a finished run")
    return Network.load(file)
