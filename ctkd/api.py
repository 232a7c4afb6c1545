# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The types that plugins see. What a plugin of each kind must do is written here, and only here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ctkd.boxes import Box as Box
from ctkd.distributed import batch_mean as batch_mean
from ctkd.divergence import divergence_from as divergence_from
from ctkd.enclosure import Enclosure as Enclosure
from ctkd.enclosure import Kind as Kind
from ctkd.enclosure import cross_entropy as cross_entropy
from ctkd.randomness import Noise as Noise
from ctkd.runfolder import RunFolder as RunFolder
from ctkd.train.options import TrainOptions as TrainOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ctkd.propagate import Bounds, CleanPass, Flow, Graph, Network
    from ctkd.propagate.ops import Nonlinear
    from ctkd.teaching import Teacher


@dataclass(frozen=True)
class Schedule:
    """Where training stands.

    Attributes:
        eps: radius of this step's boxes, pixel units.
        target: the radius at the end of the ramp.
        phase: ``warmup`` while eps is 0, then ``ramp``, then ``full``.
        epoch: counted from 0.
        step: counted from 0 over all epochs.
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

    def between(self, start: float, end: float) -> float:
        """A weight that moves from ``start`` to ``end`` with the radius."""
        return start + (end - start) * self.progress


@dataclass(frozen=True)
class BoxContext:
    """What a method may build its boxes from.

    Attributes:
        x: (batch, *input_shape), the clean images.
        labels: (batch,).
        box: all images within the step's eps.
        points: ``clean``, and ``adversarial`` where somebody asked for it; each like x.
        schedule: where training stands.
    """

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
        points: any of ``clean``, ``adversarial``; they are evaluated and become enclosures.
        searched: points that boxes are built from, without being evaluated themselves.
        boxes: name -> function that builds the box; all of them go through the network in one joint pass.
        tighten: called with each nonlinear operator and the (lower, upper) of its input over the boxes,
            (boxes, *shape); what it returns is propagated in their place. Bounds are then as sound as what it returns,
            although their enclosures keep the kind ``box``.
    """

    points: frozenset[str] = frozenset()
    searched: frozenset[str] = frozenset()
    boxes: Mapping[str, Callable[[BoxContext], Box]] = field(default_factory=dict)
    tighten: Callable[[Nonlinear, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


class Step(Protocol):
    """What a bound method combines: the step's enclosures and the loss to apply to them."""

    schedule: Schedule
    """Where training stands."""
    labels: Tensor
    """(batch,)."""
    network: Network
    """The student with this step's statistics folded; it can be propagated again from any node."""
    flow: Flow | None
    """The joint pass; None where nothing went through it."""
    noise: Noise
    """For a method's own randomness; differs from step to step, and repeats when a run is resumed."""

    def __getitem__(self, name: str) -> Enclosure:
        """A point or box that was asked for."""
        ...

    def relaxed(self, name: str) -> Enclosure:
        """A box with CROWN-IBP margins (one backward pass on the interval bounds of the joint pass)."""
        ...

    def relaxed_lower(self, name: str, rows: Tensor) -> Tensor:
        """Lower bounds by the same backward pass for any functionals of the logits: (batch, specs, classes) rows."""
        ...

    def bounds(self, name: str) -> Bounds:
        """For each nonlinear node the (lower, upper) of its input over one box."""
        ...

    def record(self, name: str, value: Tensor) -> Tensor:
        """Log a term under a name of its own; returns it."""
        ...

    def loss(self, enclosure: Enclosure) -> Tensor:
        """The robust loss with the distillation objective on it, (batch,).

        The robust loss is the cross entropy of the margins, log(1 + sum over j != label of exp(-margin_j)).
        """
        ...


class BoundMethod(Protocol):
    """How the student's worst case is estimated.

    ``evaluates`` names the kinds of enclosure on which ``combine`` calls ``step.loss``, given the options: where one
    switches a part off, its kind is left out. An objective that reads none of them is refused before training.
    ``sound`` says whether the training loss, without an objective, bounds the loss over the full box from above; where
    it is False it is an estimate.

    Further attributes are optional. ``point``: where its point loss is taken, ``adversarial`` unless it says ``clean``.
    ``own_loss``: True where an enclosure it hands to ``step.loss`` carries a loss of the method's own. ``attack``:
    options of the attack that the method brings as defaults, such as ``{"objective": "kl-student"}``.
    ``needs_radius``: True where ``train.eps=0``, which is natural training, would be a mistake; it is refused.
    ``check(network)``: called before training with the student as a bound network; raises BadInput where the method
    cannot work with it. ``state_dict()`` and ``load_state_dict(values)``: state that it carries from step to step, as
    JSON values, kept in checkpoints.
    """

    evaluates: frozenset[Kind]
    sound: bool

    def needs(self, schedule: Schedule) -> Needs:
        """What core shall compute in a step. Not called while eps is 0."""
        ...

    def combine(self, step: Step) -> Tensor:
        """The robust part of the loss: (batch,) or a scalar. Not called while eps is 0.

        With several processes ``batch`` is this process's slice. A scalar that is not linear in the samples' losses
        must average over the global batch, by ``ctkd.api.batch_mean`` in place of ``mean()``.
        """
        ...


@dataclass(frozen=True)
class TeacherOutputs:
    """The frozen teacher's outputs at one input, without gradient."""

    logits: Tensor
    features: Tensor | None


@dataclass(frozen=True, eq=False)
class Lesson:
    """What an objective may use beside the enclosure.

    Attributes:
        robust: (batch,), the enclosure's robust loss.
        labels: (batch,).
        schedule: where training stands.
        teachers: for each teacher its outputs by input: ``lesson.teachers[0]["clean"]``.
        points: the student at the points that the objective asked for.
        record: logs a term, ``record(name, value)``, and returns it; it appears in the metrics as
            ``distill/NAME/KIND``, KIND that of the enclosure.
    """

    robust: Tensor
    labels: Tensor
    schedule: Schedule
    teachers: tuple[Mapping[str, TeacherOutputs], ...]
    points: Mapping[str, Enclosure]
    record: Callable[[str, Tensor], Tensor]

    @property
    def teacher(self) -> Mapping[str, TeacherOutputs]:
        """The outputs of the first teacher, by input."""
        return self.teachers[0]


class Objective(Protocol):
    """A loss on an enclosure and the teachers' outputs.

    Attributes:
        reads: kinds of enclosure it is applied to.
        teachers: how many teachers it needs; 0 for none.
        teacher_inputs: where teachers are evaluated: any of ``clean``, ``adversarial``.
        student_points: where it needs the student beside the enclosure: any of ``clean``, ``adversarial``.
        needs_features: True if the teacher's features are read.

    Further attributes are optional. ``point``: ``adversarial`` where it is defined for a point that was attacked, so
    that methods whose point is the clean input are refused. ``needs_functionals``: True where it takes the place of
    the loss through ``Enclosure.lower``, so that methods with a loss of their own are refused. ``attack``: options of
    the attack that the objective brings as defaults, such as ``{"objective": "kl-teacher"}``; with ``name`` another
    attack than ``pgd``. Where the user chooses another one, those of them count that it has, too.
    ``prepare(widths, generator)``: called before training with the numbers of features ``(student, first teacher)``,
    None where there are none, and a generator; raises BadInput where they do not fit, and returns trainable tensors of
    the objective's own, which core optimises and keeps in checkpoints. ``state_dict()`` and
    ``load_state_dict(values)``: state that the objective carries from step to step, as JSON values, kept in
    checkpoints.
    """

    reads: frozenset[Kind]
    teachers: int
    teacher_inputs: frozenset[str]
    student_points: frozenset[str]
    needs_features: bool

    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        """(batch,): the loss that takes the place of ``lesson.robust``; an added term is ``lesson.robust + term``."""
        ...


class Attack(Protocol):
    """Searches a box for inputs with small margins. Core clamps the result to the box and replays it.

    Optional attributes: ``reference`` names whose prediction at the clean input the attack moves away from:
    ``student``, ``teacher`` or None; ``calls_teacher`` is True where it evaluates the first teacher at inputs of its
    own. Both may depend on the options. ``warm_start`` is True where it goes on from where it ended before: core keeps
    the places. ``state_dict`` and ``load_state_dict`` as for bound methods.
    """

    def perturb(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        box: Box,
        noise: Noise,
        reference: Tensor | None = None,
    ) -> Tensor:
        """(batch, *input_shape) inside the box, like ``x`` in type and device.

        ``logits`` is the student folded with this step's batch statistics as constants; its weights need no gradient.
        Gradients may be enabled or not when this is called, and the result is detached by core.
        All randomness comes from ``noise``: ``noise.uniform(x)`` and ``noise.normal(x)`` are like ``x``, and a sample's
        numbers do not depend on the batch it is in; ``noise[rows]`` is for some of the samples.
        ``reference``: logits (batch, classes) at the clean input of the network that the attribute names. An attack
        with ``calls_teacher`` has one more keyword, ``teacher``: the first teacher's logits as a function of inputs,
        with gradients. One with ``warm_start`` has ``start``: like ``x``, where each sample's last attack ended in
        training, relative to the box, and NaN where there was none. Each is passed only where it is asked for.
        """
        ...


class ModelFactory(Protocol):
    """Builds an architecture."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """A fresh module: (batch, *input_shape), pixels in [0, 1], to logits (batch, classes).

        Normalisation is its first layer. The input of a last ``nn.Linear`` is what distillation calls the features.
        Core initialises the weights. Raises: BadInput where it cannot take such inputs.
        """
        ...


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

    ``name`` is that by which the data set is registered, or its file's: it appears in file names and messages.
    ``augment``, if given, changes training batches: (batch, *input_shape) and the samples' ``Noise`` to the same shape,
    in [0, 1]. It is called with whole batches of all processes, on the device that trains.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    augment: Callable[[Tensor, Noise], Tensor] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, without the batch."""
        return tuple(self.train.images.shape[1:])


class DataSource(Protocol):
    """Loads a data set."""

    def load(self, data_dir: Path | None) -> Data:
        """``data_dir``: the folder the user named, or None. Raises BadInput naming the folder looked in."""
        ...


class TeacherContext(Protocol):
    """What a teacher source may use."""

    @property
    def data(self) -> Data:
        """The student's data set."""
        ...

    @property
    def eps(self) -> float:
        """The certificate's radius."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def role(self) -> str:
        """The teacher's table in the configuration, for messages: ``teacher``, ``teacher.2``, ..."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads."""
        ...

    @property
    def device(self) -> str:
        """Where to train, as PyTorch names devices."""
        ...

    def build_model(self, name: str | None = None) -> nn.Module:
        """A model of that name with its default options; the student's architecture for None."""
        ...

    def fit(
        self,
        train: TrainOptions,
        attack: Mapping[str, Any],
        bound: Mapping[str, Any],
        model: str | None = None,
    ) -> Network:
        """Train a fresh model with a bound method; cached by all that determines it.

        ``attack`` and ``bound`` are tables with ``name`` and options; the architecture is the student's unless
        ``model`` names another, which is then built with its default options. The defaults of ``TrainOptions`` are
        those of a student; a teacher without bounds wants ``init="default"``, ``shi_weight=0`` and a short ``warmup``.
        """
        ...


class TeacherSource(Protocol):
    """Where the teacher comes from.

    Two attributes are optional. ``trains``: False for a source that calls no ``fit``; such teachers are obtained and
    checked before any training starts. ``features``: False where the teacher never has features, so that objectives
    that read them are refused at once; True where it has those of the network that ``fit`` returns, so that their
    width is checked before it is trained.
    """

    def obtain(self, context: TeacherContext) -> Network | Teacher | None:
        """The teacher, or None for no teacher."""
        ...


@dataclass(frozen=True, eq=False)
class Found:
    """What a certification stage knows after a search.

    Attributes:
        margins: (batch, classes), as ``CertificationStage.margins`` returns them.
        points: (batch, *input_shape), an input for each sample that may be a counterexample, in any floating type, or
            None. Core clamps it to the box and replays it in the float32 network; no claim is made about it.
        proofs: for each sample the tensors of a proof that all its margins are above zero, or None; empty without any.
            See docs/proofs.md for what they hold.
    """

    margins: Tensor
    points: Tensor | None = None
    proofs: Sequence[Mapping[str, Tensor] | None] = ()


class CertificationStage(Protocol):
    """Lower bounds of the margins over boxes. Must be sound up to floating-point rounding.

    A stage may also search: then it has a method ``search(network, box, labels, stop) -> Found``, which the cascade
    calls instead of ``margins``, on samples that no attack broke and no stage certified so far. ``stop`` is a function;
    once it returns True the stage must return within seconds with what it has, sound as ever. A number ``at_once``
    says how many samples it is given together (default: 1): their results are stored together.
    """

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        """(batch, classes), 0 at the label.

        Network, box and labels come on one device, the first two in one dtype, float64 by default.
        """
        ...


class PropagationBackend(Protocol):
    """An engine that computes training bounds."""

    def trace(self, module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        """The module as a graph; BadInput, one line per layer, where it cannot be bounded."""
        ...

    def clean_pass(self, graph: Graph, x: Tensor) -> CleanPass:
        """A batch in training mode: logits, features, and the batch-norm statistics that it set."""
        ...

    def propagate(self, network: Network, points: Tensor | None, box: Box | None, needs: Needs) -> Flow:
        """Points and boxes through the network, in one pass; at least one of the two is given."""
        ...

    def interval_margins(self, network: Network, flow: Flow, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the margins of the flow's boxes, each (boxes, classes), 0 at the label."""
        ...

    def interval_lower(self, network: Network, flow: Flow, rows: Tensor, boxes: slice) -> Tensor:
        """Lower bounds of functionals of the logits over some boxes of the flow, (boxes, specs, classes) rows."""
        ...

    def relaxed_lower(self, network: Network, bounds: Bounds, box: Box, rows: Tensor) -> Tensor:
        """Such lower bounds by a backward linear relaxation, given ``bounds`` of each nonlinear node's input."""
        ...
