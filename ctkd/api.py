# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The types that plugins see. What a plugin of each kind must do is written here, and only here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ctkd.boxes import Box

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ctkd.propagate import Bounds, CleanPass, Flow, Graph, Network
    from ctkd.train.options import TrainOptions

Kind = Literal["point", "box", "mixed"]
"""What an enclosure speaks about: one input, all inputs of a box, or (combined) neither."""


@dataclass(frozen=True, eq=False)
class Enclosure:
    """What the student can output over one set of inputs.

    Attributes:
        inputs: the set; lower equals upper for a point.
        centre, radius: (batch, feature_dim), the student's features (input of the last affine layer) as an
            interval; the radius is zero for a point. None where the student has no last affine layer.
        margins: (batch, classes), a lower estimate of ``logit[label] - logit[j]`` over the set, exact for a
            point; 0 at j = label. None for methods that only bound the loss.
        logits: (batch, classes), for points only.
        loss: (batch,), an upper bound of the cross entropy where a method has no margins.
        statistics: which batch-norm statistics it was computed with.
        kind: ``mixed`` once enclosures were combined: then it holds for no set, it is an estimate.
    """

    inputs: Box
    kind: Kind
    centre: Tensor | None
    radius: Tensor | None
    margins: Tensor | None
    logits: Tensor | None = None
    loss: Tensor | None = None
    statistics: Literal["batch", "running"] = "batch"

    def mix(self, other: Enclosure, weight: float) -> Enclosure:
        """``(1 - weight) self + weight other``: centre, radius and margins alike."""

        def blend(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            if weight in (0, 1):  # so that no infinite bound of weight 0 becomes NaN
                return b if weight else a
            return None if a is None or b is None else (1 - weight) * a + weight * b

        return Enclosure(
            inputs=other.inputs,
            kind="mixed",
            centre=blend(self.centre, other.centre),
            radius=blend(self.radius, other.radius),
            margins=blend(self.margins, other.margins),
            statistics=other.statistics,
        )

    def with_margins(self, margins: Tensor) -> Enclosure:
        """The same set with other lower estimates of the margins."""
        return replace(self, margins=margins)


@dataclass(frozen=True)
class Schedule:
    """Where training stands.

    Attributes:
        eps: radius of this step's boxes, pixel units.
        target: the radius at the end of the ramp.
        phase: ``warmup`` while eps is 0, then ``ramp``, then ``full``.
        epoch, step: counted from 0; step is global.
    """

    eps: float
    target: float
    phase: Literal["warmup", "ramp", "full"]
    epoch: int
    step: int

    @property
    def progress(self) -> float:
        """eps / target, in [0, 1]."""
        return self.eps / self.target if self.target > 0 else 1.0


@dataclass(frozen=True)
class BoxContext:
    """What a method may build its boxes from."""

    x: Tensor
    labels: Tensor
    box: Box
    points: Mapping[str, Tensor]
    schedule: Schedule


def full_box(context: BoxContext) -> Box:
    """All images within eps."""
    return context.box


@dataclass(frozen=True)
class Needs:
    """What a bound method asks core to compute in one step.

    Attributes:
        points: any of ``clean``, ``adversarial``.
        boxes: name -> function that builds the box; all of them go through the network in one joint pass.
    """

    points: frozenset[str] = frozenset()
    boxes: Mapping[str, Callable[[BoxContext], Box]] = field(default_factory=dict)


class Step(Protocol):
    """What a bound method combines: the step's enclosures and the loss to apply to them."""

    schedule: Schedule
    labels: Tensor
    network: Network
    flow: Flow
    """The joint pass, with pre-activation bounds; ``flow.network`` can be propagated again from any node."""

    def __getitem__(self, name: str) -> Enclosure:
        """A point or box that was asked for."""
        ...

    def relaxed(self, name: str) -> Enclosure:
        """A box with CROWN-IBP margins (one backward pass on the interval bounds of the joint pass)."""
        ...

    def loss(self, enclosure: Enclosure) -> Tensor:
        """The robust loss with the distillation objective on it, (batch,).

        The robust loss is the cross entropy of the margins, log(1 + sum over j != label of exp(-margin_j)).
        """
        ...


class BoundMethod(Protocol):
    """How the student's worst case is estimated.

    ``evaluates`` names the kinds of enclosure on which ``combine`` calls ``step.loss``: an objective that reads
    none of them is refused before training. ``estimate`` is True where the training bound is not sound.
    """

    evaluates: frozenset[Kind]

    def needs(self, schedule: Schedule) -> Needs: ...

    def combine(self, step: Step) -> Tensor:
        """The robust part of the loss: (batch,) or a scalar. Not called while eps is 0."""
        ...


@dataclass(frozen=True)
class TeacherOutputs:
    """The frozen teacher's outputs at one input, without gradient."""

    logits: Tensor
    features: Tensor | None


class Objective(Protocol):
    """A loss on an enclosure and the teacher's outputs.

    Attributes:
        reads: kinds of enclosure it is applied to.
        mode: ``added`` to the robust loss there, or ``replaces`` it.
        teacher_inputs: where the teacher is evaluated: any of ``clean``, ``adversarial``.
        needs_features: True if the teacher's features are read.
    """

    reads: frozenset[Kind]
    mode: Literal["added", "replaces"]
    teacher_inputs: frozenset[str]
    needs_features: bool

    def loss(
        self, enclosure: Enclosure, teacher: Mapping[str, TeacherOutputs], robust: Tensor, schedule: Schedule
    ) -> Tensor:
        """(batch,); ``robust`` is the robust loss of the same enclosure, for objectives that replace it."""
        ...


class Attack(Protocol):
    """Searches a box for inputs with small margins. Core clamps the result to the box and replays it."""

    def perturb(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        box: Box,
        generator: torch.Generator,
    ) -> Tensor:
        """(batch, *input_shape) inside the box; all randomness from ``generator``."""
        ...


class ModelFactory(Protocol):
    """Builds an architecture."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module: ...


@dataclass(frozen=True)
class Split:
    """Images (count, *input_shape), float32 in [0, 1], and labels (count,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set. Models are selected on ``validation``; ``test`` is for reported numbers only.

    ``augment``, if given, changes training batches: (batch, *input_shape) and a generator to the same shape, in [0, 1].
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.images.shape[1:])


class DataSource(Protocol):
    """Loads a data set."""

    def load(self, data_dir: Path | None) -> Data:
        """``data_dir``: the folder the user named, or None. Raises BadInput naming the folder looked in."""
        ...


class TeacherContext(Protocol):
    """What a teacher source may use."""

    data: Data
    eps: float
    seed: int
    threads: int
    device: str

    def build_model(self, name: str | None = None) -> nn.Module:
        """A model of that name with its default options; the student's architecture for None."""
        ...

    def fit(self, train: TrainOptions, attack: Mapping[str, Any], bound: str) -> Network:
        """Train a fresh model of the student's architecture with a bound method; cached by all that determines it."""
        ...


class TeacherSource(Protocol):
    """Where the teacher comes from."""

    def obtain(self, context: TeacherContext) -> Network | None:
        """The teacher as a bound network, or None for no teacher."""
        ...


class CertificationStage(Protocol):
    """Lower bounds of the margins over boxes. Must be sound up to floating-point rounding."""

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        """(batch, classes), 0 at the label; network and box come in one dtype, float64 by default."""
        ...


class PropagationBackend(Protocol):
    """An engine that computes training bounds."""

    def trace(self, module: nn.Module, input_shape: tuple[int, ...]) -> Graph: ...

    def clean_pass(self, graph: Graph, x: Tensor) -> CleanPass: ...

    def propagate(self, network: Network, points: Tensor | None, box: Box | None) -> Flow: ...

    def interval_margins(self, network: Network, flow: Flow, labels: Tensor) -> Tensor: ...

    def relaxed_margins(self, network: Network, bounds: Bounds, box: Box, labels: Tensor) -> Tensor: ...
