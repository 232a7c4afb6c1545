# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One training step: clean pass, attack, one joint propagation, losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ctkd.distributed import all_sum, batch_mean, partial, world
from ctkd.propagate import CleanPass, Flow, Graph, Network, Statistics
from ctkd.randomness import Noise
from ctkd.train.batch import Batch
from ctkd.train.combination import Combination, point_enclosure
from ctkd.train.lessons import Known
from ctkd.train.losses import LossTerms
from ctkd.train.options import TrainOptions
from ctkd.train.regularisers import l1_norm, shi_regularisers
from ctkd.train.taught import Taught

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


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step has to compute.

    Attributes:
        robust: whether there is a radius, and with it a robust loss.
        teaching: whether the objective takes part.
        regularise: whether the regularisers of Shi et al. do.
        needs: of the bound method.
        evaluated: points at which the student is evaluated.
        attacked: whether the adversarial point is searched.
        kappa: weight of the clean loss.
    """

    schedule: Schedule
    robust: bool
    teaching: bool
    regularise: bool
    needs: Needs
    evaluated: frozenset[str]
    attacked: bool
    kappa: float


@dataclass(frozen=True, eq=False)
class Found:
    """The points of a batch or of a part of it.

    Attributes:
        box: all images within the step's radius.
        points: ``clean``, and ``adversarial`` where it was searched.
        taught: the teachers' outputs there.
    """

    box: Box
    points: dict[str, Tensor]
    taught: Taught


@dataclass(frozen=True, eq=False)
class Prepared:
    """What comes before bounds.

    Attributes:
        clean: the batch in training mode; None where nobody needs it.
        statistics: of each pass in training mode, in order; bounds use the last ones.
        network: the student folded with those.
    """

    clean: CleanPass | None
    statistics: list[Statistics]
    network: Network
    found: Found


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
        batch, plan = Batch(x, labels, noise, known), self.plan(schedule)
        return self.loss(batch, plan, self.prepare(batch, plan))

    def plan(self, schedule: Schedule, *, attacked: bool = False) -> Plan:
        """What a step at this moment has to compute; ``attacked``: the adversarial point is needed in any case."""
        options = self.options
        robust = schedule.eps > 0
        teaching = robust and len(self.teachers) > 0 and self.objective.teachers > 0
        needs = self.method.needs(schedule) if robust else Needs()
        evaluated = needs.points | (self.objective.student_points if teaching else frozenset())
        searched = needs.searched | evaluated | (self.objective.teacher_inputs if teaching else frozenset())
        return Plan(
            schedule=schedule,
            robust=robust,
            teaching=teaching,
            regularise=options.shi_weight > 0 and schedule.phase != "full",
            needs=needs,
            evaluated=evaluated,
            attacked=robust and (attacked or "adversarial" in searched),
            kappa=schedule.between(options.kappa_start, options.kappa_end) if robust else 1.0,
        )

    # Before bounds ---------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, plan: Plan) -> Prepared:
        """The passes of a whole batch."""
        clean = self.clean(batch.x, plan)
        statistics: Statistics = clean.statistics if clean else {}
        network = self.graph.bind(statistics)
        found = self.search(batch, plan, self.victim(network, statistics) if plan.attacked else network)
        last = self.last_pass(found.points.get("adversarial"))
        if last is None:
            return Prepared(clean, [statistics], network, found)
        return Prepared(clean, [statistics, last], self.graph.bind(last), found)

    def clean(self, x: Tensor, plan: Plan) -> CleanPass | None:
        """The whole batch in training mode, where anybody needs it."""
        if self.graph.norms or plan.kappa > 0 or "clean" in plan.evaluated:
            return self.backend.clean_pass(self.graph, x)
        return None

    def last_pass(self, adversarial: Tensor | None) -> Statistics | None:
        """The statistics of the whole batch's points, where bounds use those."""
        if adversarial is None or self.options.statistics != "last-pass" or not self.graph.norms:
            return None
        return self.backend.clean_pass(self.graph, adversarial).statistics

    @torch.no_grad()
    def victim(self, network: Network, statistics: Statistics) -> Network:
        """What is attacked, from the network with the statistics of the clean batch."""
        if self.options.statistics == "last-pass":
            # Published code attacks with running statistics that already contain this clean batch.
            network = self.graph.bind(self.graph.blended(statistics))
        network = network.detach()
        return network.lowered(torch.bfloat16) if self.options.precision == "mixed" else network

    def search(self, batch: Batch, plan: Plan, victim: Network) -> Found:
        """The points of a batch or of a part of it."""
        box = perturbation_box(batch.x, plan.schedule.eps or REGULARISER_EPS)
        taught = Taught(self.teachers, {"clean": batch.x}, dict(batch.known or {}))
        points = {"clean": batch.x}
        if plan.attacked:
            if self.options.attack_eps_factor != 1:
                around = perturbation_box(batch.x, plan.schedule.eps * self.options.attack_eps_factor)
            else:
                around = box
            points["adversarial"] = self._attack(batch, around, victim, taught)
        taught.inputs = points
        return Found(box, points, taught)

    def _attack(self, batch: Batch, box: Box, victim: Network, taught: Taught) -> Tensor:
        given: dict[str, Any] = {}
        reference = getattr(self.attack, "reference", None)
        if reference == "teacher":
            given["reference"] = taught(0, "clean").logits
        elif reference == "student":
            with torch.no_grad():
                given["reference"] = victim(batch.x)
        if getattr(self.attack, "calls_teacher", False):
            given["teacher"] = self.teacher
        start = batch.start_in(box) if getattr(self.attack, "warm_start", False) else None
        if start is not None:
            given["start"] = start
        perturb: Callable[..., Tensor] = self.attack.perturb
        found = perturb(victim, batch.x, batch.labels, box, batch.noise, **given)
        check_points(found, batch.x, f"perturb of {self.labels.get('attack', 'the attack')}", finite=False)
        found = box.clamp(found.detach())
        batch.remember(found, box)
        return found

    # Losses ----------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, plan: Plan, prepared: Prepared) -> Loss:
        """The loss to minimise, of a batch or of a part of one."""
        options, schedule, needs = self.options, plan.schedule, plan.needs
        x, labels, clean, network = batch.x, batch.labels, prepared.clean, prepared.network
        points = prepared.found.points
        context = BoxContext(x, labels, prepared.found.box, points, schedule)
        boxes = {name: make(context) for name, make in needs.boxes.items()}
        if plan.regularise and not boxes:
            boxes = {"full": full_box(context)}
        terms = LossTerms(
            self.objective,
            prepared.found.taught.lessons(self.objective.teacher_inputs) if plan.teaching else (),
            labels,
            schedule,
            self.labels.get("distill", "the objective"),
        )
        total: Tensor = torch.zeros((), dtype=x.dtype, device=x.device)
        if plan.kappa > 0:
            assert clean is not None
            total = plan.kappa * _mean(terms.record("clean", cross_entropy(clean.logits, labels, reduction="none")))

        # The clean point was evaluated already; it is only read from there.
        joint = {name: point for name, point in points.items() if name in plan.evaluated and name != "clean"}
        flow: Flow | None = None
        if joint or boxes or plan.evaluated:
            if joint or boxes:
                flow = self.backend.propagate(network, _stack(joint), _stack_boxes(boxes), needs)
            if plan.robust:
                step = self._combination(batch, schedule, network, flow, terms, clean, joint, boxes)
                terms.points = step.enclosures
                combined = self.method.combine(step)
                check_loss(combined, len(x), f"combine of {self.labels.get('bound', 'the bound method')}")
                # A scalar counts for as many samples as this process has.
                total = total + (1 - plan.kappa) * _mean(combined.expand(len(x)) if world() > 1 else combined)
        if plan.regularise and flow is not None:
            assert flow.box is not None
            fade = options.shi_weight * (1 - schedule.progress)
            elementwise = {i: flow.pre_activation[i] for i in flow.network.activations}
            tightness, balance = shi_regularisers(elementwise, flow.box)
            total = total + fade * (terms.record("shi/tightness", tightness) + terms.record("shi/balance", balance))
        if options.l1 > 0:
            total = total + options.l1 * terms.record("l1", l1_norm(self.graph.module))
        one_pass = len(prepared.statistics) == 1 and clean is not None
        comparable = one_pass and needs.tighten is None and options.precision != "bf16"
        return Loss(
            total,
            terms.terms,
            [update for update in prepared.statistics if update],
            flow,
            points.get("adversarial"),
            terms.claims if comparable else [],
            clean.logits.detach() if comparable and clean is not None else None,
        )

    def certainty(self, batch: Batch, plan: Plan, prepared: Prepared) -> Loss:
        """The adversarial certainty of EDAC, times its weight: the mean of the logits' standard deviations."""
        attacked = prepared.found.points.get("adversarial")
        deviations = prepared.network(batch.x if attacked is None else attacked).std(1)
        return Loss(self.options.edac * _mean(deviations), {"edac": deviations}, [], None, attacked)

    def _combination(
        self,
        batch: Batch,
        schedule: Schedule,
        network: Network,
        flow: Flow | None,
        terms: LossTerms,
        clean: CleanPass | None,
        joint: Mapping[str, Tensor],
        boxes: Mapping[str, Box],
    ) -> Combination:
        x, labels, size = batch.x, batch.labels, len(batch)
        enclosures: dict[str, Enclosure] = {}
        if clean is not None:
            features = clean.features if network.head is not None else None
            enclosures["clean"] = point_enclosure(x, clean.logits, features, labels)
        for i, (name, point) in enumerate(joint.items()):
            assert flow is not None
            rows = slice(i * size, (i + 1) * size)
            features = None if flow.features is None else flow.features[rows]
            enclosures[name] = point_enclosure(point, flow.value[rows], features, labels)
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
            batch.noise,
            places,
        )

    def _interval_lower(self, network: Network, flow: Flow, boxes: slice, rows: Tensor) -> Tensor:
        return self.backend.interval_lower(network, flow, rows, boxes)


def _mean(values: Tensor) -> Tensor:
    """The mean over the batch; of a part of it its own, which enters the whole with the part's share of samples."""
    return values.mean() if partial() else batch_mean(values)


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
