# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One training step: clean pass, attack, one joint propagation, losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ctkd.api import (
    Attack,
    BoundMethod,
    BoxContext,
    Enclosure,
    Needs,
    Objective,
    PropagationBackend,
    Schedule,
    TeacherOutputs,
    full_box,
)
from ctkd.boxes import Box, perturbation_box
from ctkd.contract import check_loss, check_points
from ctkd.distributed import all_sum, batch_mean, world
from ctkd.propagate import (
    Bounds,
    CleanPass,
    Flow,
    Graph,
    Network,
    Statistics,
    at_classes,
    margin_specification,
    margins_of,
)
from ctkd.randomness import Noise
from ctkd.train.lessons import Known
from ctkd.train.losses import LossTerms
from ctkd.train.options import TrainOptions
from ctkd.train.regularisers import l1_norm, shi_regularisers

REGULARISER_EPS = 1e-6
"""Radius of the boxes that the regularisers look at while eps is still 0."""


@dataclass(frozen=True, eq=False)
class Loss:
    """What one step computed: the scalar to minimise, its terms, and the batch-norm statistics to keep.

    Attributes:
        claims: enclosures that claim to hold for a box; empty where they cannot be compared with ``clean``.
        attacked: what the attack found; None where there was none.
        clean: the logits of the batch itself, by the same statistics as the boxes; None where nobody needed them.
    """

    total: Tensor
    terms: dict[str, Tensor]
    statistics: list[Statistics]
    flow: Flow | None
    attacked: Tensor | None = None
    claims: list[Enclosure] = field(default_factory=list)
    clean: Tensor | None = None


@dataclass(eq=False)
class Combination:
    """The view of a step that a bound method combines (``ctkd.api.Step``)."""

    schedule: Schedule
    labels: Tensor
    network: Network
    flow: Flow | None
    loss: LossTerms
    enclosures: Mapping[str, Enclosure]
    backend: PropagationBackend
    noise: Noise
    rows: Mapping[str, slice] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Enclosure:
        return self.enclosures[name]

    def bounds(self, name: str) -> Bounds:
        rows = self.rows[name]
        assert self.flow is not None
        return {i: (lower[rows], upper[rows]) for i, (lower, upper) in self.flow.pre_activation.items()}

    def relaxed_lower(self, name: str, rows: Tensor) -> Tensor:
        return self.backend.relaxed_lower(self.network, self.bounds(name), self.enclosures[name].inputs, rows)

    def relaxed(self, name: str) -> Enclosure:
        box = self.enclosures[name]
        rows, others = margin_specification(self.labels, self.network.classes, box.inputs.lower.dtype)
        margins = at_classes(self.relaxed_lower(name, rows), others)
        return box.with_margins(margins, lambda rows: self.relaxed_lower(name, rows))

    def record(self, name: str, value: Tensor) -> Tensor:
        return self.loss.record(name, value)


@dataclass(eq=False)
class TrainingStep:
    """Computes the loss of a batch. Everything is done once, and skipped when nobody needs it."""

    graph: Graph
    method: BoundMethod
    objective: Objective
    attack: Attack
    backend: PropagationBackend
    options: TrainOptions
    teachers: Sequence[Callable[[Tensor], TeacherOutputs]]
    teacher: Callable[[Tensor], Tensor] | None = None
    """The first teacher's logits with gradients, for attacks that call it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """How messages name bound method, objective and attack, by kind."""

    def __post_init__(self) -> None:
        if self.options.precision == "bf16":
            self.graph = self.graph.lowered(torch.bfloat16)
        if self.options.compile:
            self.graph = self.graph.compiled()

    def __call__(
        self,
        x: Tensor,
        labels: Tensor,
        schedule: Schedule,
        noise: Noise,
        known: Known | None = None,
    ) -> Loss:
        """``known``: outputs of teachers that were computed before, by teacher and input."""
        options, graph = self.options, self.graph
        robust = schedule.eps > 0
        teaching = robust and len(self.teachers) > 0 and self.objective.teachers > 0
        regularise = options.shi_weight > 0 and schedule.phase != "full"
        needs = self.method.needs(schedule) if robust else Needs()
        evaluated = needs.points | (self.objective.student_points if teaching else frozenset())
        searched = needs.searched | evaluated | (self.objective.teacher_inputs if teaching else frozenset())
        kappa = schedule.between(options.kappa_start, options.kappa_end)
        kappa = kappa if robust else 1.0

        attacked = "adversarial" in searched
        reference = getattr(self.attack, "reference", None) if attacked else None
        clean: CleanPass | None = None
        if graph.norms or kappa > 0 or "clean" in evaluated:
            clean = self.backend.clean_pass(graph, x)
        statistics: Statistics = clean.statistics if clean else {}
        updates = [statistics]
        network = graph.bind(statistics)

        taught = _Taught(self.teachers, {"clean": x}, dict(known or {}))
        box = perturbation_box(x, schedule.eps or REGULARISER_EPS)
        points: dict[str, Tensor] = {"clean": x}
        if attacked:
            away_from = taught(0, "clean").logits if reference == "teacher" else None
            points["adversarial"] = self._attack(x, labels, box, schedule, network, statistics, noise, away_from)
            if options.statistics == "last-pass" and graph.norms:
                statistics = self.backend.clean_pass(graph, points["adversarial"]).statistics
                updates.append(statistics)
                network = graph.bind(statistics)

        context = BoxContext(x, labels, box, points, schedule)
        boxes = {name: make(context) for name, make in needs.boxes.items()}
        if regularise and not boxes:
            boxes = {"full": full_box(context)}
        taught.inputs = points
        terms = LossTerms(
            self.objective,
            taught.lessons(self.objective.teacher_inputs) if teaching else (),
            labels,
            schedule,
            self.labels.get("distill", "the objective"),
        )
        total: Tensor = torch.zeros((), dtype=x.dtype, device=x.device)
        if kappa > 0:
            assert clean is not None
            total = kappa * batch_mean(terms.record("clean", cross_entropy(clean.logits, labels, reduction="none")))

        # The clean point was evaluated already; it is only read from there.
        joint = {name: point for name, point in points.items() if name in evaluated and name != "clean"}
        flow: Flow | None = None
        if joint or boxes or evaluated:
            if joint or boxes:
                flow = self.backend.propagate(network, _stack(joint), _stack_boxes(boxes), needs)
            if robust:
                step = self._combination(schedule, labels, network, flow, terms, clean, x, joint, boxes, noise)
                terms.points = step.enclosures
                combined = self.method.combine(step)
                check_loss(combined, len(x), f"combine of {self.labels.get('bound', 'the bound method')}")
                # A scalar counts for as many samples as this process has.
                total = total + (1 - kappa) * batch_mean(combined.expand(len(x)) if world() > 1 else combined)
        if regularise and flow is not None:
            assert flow.box is not None
            fade = options.shi_weight * (1 - schedule.progress)
            elementwise = {i: flow.pre_activation[i] for i in flow.network.activations}
            tightness, balance = shi_regularisers(elementwise, flow.box)
            total = total + fade * (terms.record("shi/tightness", tightness) + terms.record("shi/balance", balance))
        if options.l1 > 0:
            total = total + options.l1 * terms.record("l1", l1_norm(graph.module))
        comparable = needs.tighten is None and options.precision != "bf16" and len(updates) == 1 and clean is not None
        return Loss(
            total,
            terms.terms,
            [update for update in updates if update],
            flow,
            points.get("adversarial"),
            terms.claims if comparable else [],
            clean.logits.detach() if comparable and clean is not None else None,
        )

    def _attack(
        self,
        x: Tensor,
        labels: Tensor,
        box: Box,
        schedule: Schedule,
        network: Network,
        statistics: Statistics,
        noise: Noise,
        reference: Tensor | None,
    ) -> Tensor:
        with torch.no_grad():
            if self.options.statistics == "last-pass":
                # Published code attacks with running statistics that already contain this clean batch.
                network = self.graph.bind(self.graph.blended(statistics))
            network = network.detach()
            if self.options.precision == "mixed":
                network = network.lowered(torch.bfloat16)
            if getattr(self.attack, "reference", None) == "student":
                reference = network(x)
        if self.options.attack_eps_factor != 1:
            box = perturbation_box(x, schedule.eps * self.options.attack_eps_factor)
        given: dict[str, Any] = {} if reference is None else {"reference": reference}
        if getattr(self.attack, "calls_teacher", False):
            given["teacher"] = self.teacher
        perturb: Callable[..., Tensor] = self.attack.perturb
        found = perturb(network, x, labels, box, noise, **given)
        check_points(found, x, f"perturb of {self.labels.get('attack', 'the attack')}", finite=False)
        return box.clamp(found.detach())

    def _combination(
        self,
        schedule: Schedule,
        labels: Tensor,
        network: Network,
        flow: Flow | None,
        terms: LossTerms,
        clean: CleanPass | None,
        x: Tensor,
        joint: Mapping[str, Tensor],
        boxes: Mapping[str, Box],
        noise: Noise,
    ) -> Combination:
        size = x.shape[0]
        enclosures: dict[str, Enclosure] = {}
        if clean is not None:
            features = clean.features if network.head is not None else None
            enclosures["clean"] = _point(x, clean.logits, features, labels)
        for i, (name, point) in enumerate(joint.items()):
            assert flow is not None
            rows = slice(i * size, (i + 1) * size)
            features = None if flow.features is None else flow.features[rows]
            enclosures[name] = _point(point, flow.value[rows], features, labels)
        places: dict[str, slice] = {}
        if boxes:
            assert flow is not None
            margins, upper = self.backend.interval_margins(network, flow, labels.repeat(len(boxes)))
            for i, (name, box) in enumerate(boxes.items()):
                rows = places[name] = slice(i * size, (i + 1) * size)
                centre = None if flow.features is None else flow.features[flow.points :][rows]
                radius = None if flow.feature_radius is None else flow.feature_radius[rows]
                lower = functools.partial(self._interval_lower, network, flow, rows)
                enclosures[name] = Enclosure(
                    box, "box", centre, radius, margins[rows], lower=lower, upper_margins=upper[rows]
                )
        return Combination(
            schedule,
            labels,
            network,
            flow,
            terms,
            enclosures,
            self.backend,
            noise,
            places,
        )

    def _interval_lower(self, network: Network, flow: Flow, boxes: slice, rows: Tensor) -> Tensor:
        return self.backend.interval_lower(network, flow, rows, boxes)


@dataclass(eq=False)
class _Taught:
    """The teachers' outputs, each computed once."""

    teachers: Sequence[Callable[[Tensor], TeacherOutputs]]
    inputs: Mapping[str, Tensor]
    known: dict[tuple[int, str], TeacherOutputs] = field(default_factory=dict)

    def __call__(self, i: int, name: str) -> TeacherOutputs:
        if (i, name) not in self.known:
            self.known[i, name] = self.teachers[i](self.inputs[name])
        return self.known[i, name]

    def lessons(self, names: frozenset[str]) -> tuple[Mapping[str, TeacherOutputs], ...]:
        """For each teacher a mapping from inputs to outputs."""
        return tuple(_Answers(self, i, names) for i in range(len(self.teachers)))


@dataclass(frozen=True)
class _Answers(Mapping[str, TeacherOutputs]):
    """One teacher's outputs by input, computed when they are read: not every teacher is asked at every input."""

    taught: _Taught
    i: int
    names: frozenset[str]

    def __getitem__(self, name: str) -> TeacherOutputs:
        if name not in self.names:
            raise KeyError(name)
        return self.taught(self.i, name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __len__(self) -> int:
        return len(self.names)


def _point(x: Tensor, logits: Tensor, features: Tensor | None, labels: Tensor) -> Enclosure:
    radius = None if features is None else torch.zeros_like(features)
    margins = margins_of(logits, labels)
    return Enclosure(
        Box(x, x),
        "point",
        features,
        radius,
        margins,
        logits,
        lower=lambda rows: (rows @ logits.unsqueeze(2)).squeeze(2),
        upper_margins=margins,
    )


def _stack(points: Mapping[str, Tensor]) -> Tensor | None:
    return torch.cat(list(points.values())) if points else None


def _stack_boxes(boxes: Mapping[str, Box]) -> Box | None:
    if not boxes:
        return None
    return Box(torch.cat([box.lower for box in boxes.values()]), torch.cat([box.upper for box in boxes.values()]))


def _norm(parts: Iterable[Tensor]) -> float:
    return float(torch.stack([all_sum(part).square().sum() for part in parts]).sum().sqrt())


def gradient_norms(loss: Loss, parameters: Sequence[Tensor]) -> dict[str, float]:
    """The L2 norm of what each term contributes to the gradient of the total, whatever the combiner did with it."""
    names = [name for name, term in loss.terms.items() if term.requires_grad]
    weights: Sequence[Tensor | None] = torch.autograd.grad(
        loss.total / world(), [loss.terms[name] for name in names], retain_graph=True, allow_unused=True
    )
    norms = {}
    for name, weight in zip(names, weights, strict=True):
        if weight is None:
            continue
        parts = torch.autograd.grad(
            loss.terms[name], parameters, grad_outputs=weight, retain_graph=True, allow_unused=True
        )
        norms[name] = _norm(part for part in parts if part is not None)
    return norms
