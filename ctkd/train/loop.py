# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The one training loop: teachers and students, every bound method."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctkd.accuracy import adversarial_accuracy, interval_report
from ctkd.api import Attack, BoundMethod, Data, Objective, PropagationBackend, Split
from ctkd.attribution import is_own, label
from ctkd.distributed import batch_mean, greatest, leader_first, leads, share, world
from ctkd.errors import BadInput, Interrupted, RunFailed
from ctkd.hookspecs import Registration
from ctkd.interrupt import StopRequest
from ctkd.progress import Reporter
from ctkd.propagate import Graph, Network
from ctkd.propagate.ops.compiled import compile_now
from ctkd.randomness import Noise, generator
from ctkd.teaching import Teacher
from ctkd.train import checkpoint
from ctkd.train.batch import Batch
from ctkd.train.finish import feature_widths, finalise, population_statistics
from ctkd.train.initialise import default_initialise, shi_initialise
from ctkd.train.lessons import Known, Lessons, learn
from ctkd.train.optimise import Optimiser
from ctkd.train.options import TrainOptions
from ctkd.train.parts import check_whole
from ctkd.train.places import Places, check_still
from ctkd.train.schedule import learning_rate, schedule_at
from ctkd.train.state import collect, restore
from ctkd.train.step import TrainingStep
from ctkd.train.update import Update, Updated

SELECTION = 1000
"""Validation images that are attacked to compare epochs."""
KEEP = {"last": None, "best-adversarial": "adversarial_accuracy", "best-interval": "interval_certified_accuracy"}
"""Values of ``train.keep``, and the validation figure that each maximises."""


@dataclass
class Plugins:
    """The plugin objects one training combines."""

    method: BoundMethod
    objective: Objective
    attack: Attack
    backend: PropagationBackend
    evaluation: Attack | None = None
    """The attack by which epochs are compared where ``train.keep`` asks for it."""
    entries: Mapping[str, Registration] = field(default_factory=dict)
    """Where each of them comes from, by kind, for messages."""

    def stateful(self) -> dict[str, Any]:
        """Those that keep state between steps: they have ``state_dict`` and ``load_state_dict`` (JSON values)."""
        parts = {"bound": self.method, "distill": self.objective, "attack": self.attack}
        return {role: part for role, part in parts.items() if hasattr(part, "state_dict")}


@dataclass(eq=False)
class Trainer:
    """Trains one network from a schedule, resumable at any moment.

    Attributes:
        name: names the network in logs, such as ``student``, ``teacher``, ``teacher-2``.
        role: ``student`` or ``teacher``: what its random numbers depend on beside the seed.
        teachers: frozen; empty for none.
        folder: where checkpoints go.
        on_epoch: called with each epoch's metrics, before its checkpoint is written.
        stop: checked after every step.
        resume_hint: what to tell the user after an interruption.
    """

    name: str
    role: str
    module: nn.Module
    data: Data
    plugins: Plugins
    options: TrainOptions
    teachers: Sequence[Teacher]
    folder: Path
    reporter: Reporter
    stop: StopRequest
    resume_hint: str
    on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None
    on_resume: Callable[[int], None] = lambda epoch: None
    _saved_at: float = field(default=0.0, init=False)

    def run(self) -> Network:
        """Train, or go on from the checkpoint in ``folder``; returns the folded float32 network.

        Raises:
            RunFailed: the loss or its gradient was not finite. The weights before it are kept.
            Interrupted: a signal came; the state is saved.
        """
        self._prepare()
        if self.options.compile:
            self._compile()
        total = self.options.epochs * self.steps_per_epoch
        self.reporter.begin(f"training the {self.name}", total, self.step)
        try:
            while self.step < total and not self._enough():
                self._epoch(total)
        finally:
            self.reporter.end()
        if self.step < total:
            done = f"{self.step // self.steps_per_epoch} of {self.options.epochs}"
            self.reporter.say(f"the {self.name} stops after epoch {done}: none was better than {self.best_epoch}")
        return self._finish()

    # Preparation -----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        options, device = self.options, torch.device(self.options.device)
        self.split = _join(self.data.train, self.data.validation) if options.final else self.data.train
        self.images, self.labels = self.split.images.to(device), self.split.labels.to(device)
        whole = self.data.validation
        self.validation = Split(whole.images.to(device), whole.labels.to(device))
        self.batch = min(options.batch_size, len(self.split))
        self._check_possible()
        if self.batch < world():
            raise BadInput(f"train.batch_size: {self.batch} images per step are too few for {world()} processes")
        self.steps_per_epoch = len(self.split) // self.batch
        self.module.to(device).train()
        self.graph: Graph = self.plugins.backend.trace(self.module, self.data.input_shape)
        default_initialise(self.module, generator(options.seed, f"{self.role}-initialisation"))
        if options.init == "shi":
            shi_initialise(self.graph, generator(options.seed, f"{self.role}-shi"))
        teachers = [teacher.to(options.device) for teacher in self.teachers]
        self.parameters: list[Tensor] = [p for p in self.module.parameters() if p.requires_grad]
        self.learned = self._objective_parameters(teachers)
        self.parameters += self.learned
        self.optimizer = Optimiser(options, self.parameters)
        self.training_step = TrainingStep(
            self.graph,
            self.plugins.method,
            self.plugins.objective,
            self.plugins.attack,
            self.plugins.backend,
            options,
            [teacher.outputs for teacher in teachers],
            teachers[0] if teachers else None,
            {kind: label(entry) for kind, entry in self.plugins.entries.items()},
        )
        bound = self.plugins.entries.get("bound")
        who = "the bound method" if bound is None else label(bound)
        self.update = Update(self.training_step, options, self.parameters, self.optimizer, who)
        self.lessons = self._lessons()
        self.places = Places.of(self.images) if getattr(self.plugins.attack, "warm_start", False) else None
        self.step = 0
        self.best: dict[str, Tensor] = {}
        self.best_value, self.best_epoch = -1.0, 0
        self.averaged = 0
        self.average: list[Tensor] = []
        self.sums: dict[str, Tensor] = {}
        self.seconds = 0.0
        self._saved_at = time.monotonic()
        with leader_first():
            found = checkpoint.load(self.folder, self.reporter.warn)
        if found is not None:
            restore(self, found)
        else:
            self._save()  # so that there is a good checkpoint even if the first epoch fails
        self.on_resume(self.step // self.steps_per_epoch)

    def _check_possible(self) -> None:
        if getattr(self.plugins.attack, "warm_start", False):
            check_still(self.data, f"warm_start=true ({self.name})")
        check_whole(self.options)

    def _compile(self) -> None:
        """A phase of its own; without a compiler the training goes on without."""
        dtype = torch.bfloat16 if self.options.precision == "bf16" else torch.float32
        self.reporter.begin("compiling", 1)
        try:
            compile_now(dtype, self.images.device)
        except Exception as error:  # torch.compile raises whatever the compiler's absence leads to
            self.reporter.warn(f"not compiled, which only makes it slower: {_first_line(error)}")
            self.training_step.graph = self.training_step.graph.interpreted()
        finally:
            self.reporter.end()

    def _lessons(self) -> Lessons | None:
        """Answers to the clean images, where the method of training reads them and no augmentation changes them."""
        step = self.training_step
        reads = step.objective.teachers > 0 and "clean" in step.objective.teacher_inputs
        wanted = self.options.eps > 0 and (reads or getattr(step.attack, "reference", None) == "teacher")
        if not (wanted and step.teachers) or self.data.augment is not None:
            return None
        return learn(step.teachers, self.images, self.reporter)

    def _objective_parameters(self, teachers: Sequence[Teacher]) -> list[Tensor]:
        prepare = getattr(self.plugins.objective, "prepare", None)
        if prepare is None or not teachers:
            return []
        with torch.no_grad():
            widths = feature_widths(self.graph.bind(), teachers[0])
        found = prepare(widths, generator(self.options.seed, f"{self.role}-objective"))
        device = torch.device(self.options.device)
        for tensor in found:
            tensor.data = tensor.data.to(device)
        return list(found)

    # The loop --------------------------------------------------------------------------------------------

    def _epoch(self, total: int) -> None:
        epoch, first = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.split), generator=generator(self.options.seed, f"{self.role}-order", epoch))
        order = order.to(self.images.device)
        bad: tuple[list[str], Tensor] | None = None
        began = time.monotonic()
        for i in range(first, self.steps_per_epoch):
            rows = order[i * self.batch : (i + 1) * self.batch]
            last = i == self.steps_per_epoch - 1
            x = self.images[rows]
            if self.data.augment is not None:
                x = self.data.augment(x, Noise(self.options.seed, f"{self.role}-augmentation", epoch, samples=rows))
            mine = share(len(rows))
            x, rows = x[mine], rows[mine]
            noise = Noise(self.options.seed, f"{self.role}-attack", epoch, samples=rows)
            known = None if self.lessons is None else self.lessons.at(rows)
            done = self._one_step(x, self.labels[rows], noise, known, rows=rows, measure=last)
            # The flags of a step are read one step later, when the device has long finished them.
            if bad is not None:
                self._refuse_non_finite(bad)
            bad, norms = (done.names, done.flags), done.norms
            del done  # with all bounds of the step, which the next one needs the memory of
            self.step += 1
            self.reporter.advance(note=f"epoch {epoch + 1}/{self.options.epochs}")
            if last:
                break
            late = time.monotonic() - self._saved_at >= self.options.checkpoint_seconds
            # All processes stop, and save, at the same step.
            signal, due = greatest(self.stop.signal_number or 0, int(late))
            if signal:
                self._refuse_non_finite(bad)
                self.seconds += time.monotonic() - began
                self._interrupt(signal)
            if due:
                self._refuse_non_finite(bad)
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                self._save()
        if bad is not None:
            self._refuse_non_finite(bad)
        self.seconds += time.monotonic() - began
        metrics = self._metrics(epoch, norms)
        self._select(metrics)
        self.sums, self.seconds = {}, 0.0
        # In this order: a kill between the two repeats the epoch, and its line is dropped on resume.
        self.on_epoch(metrics)
        self._save()
        self.reporter.epoch(self.name, metrics)
        (signal,) = greatest(self.stop.signal_number or 0)
        if signal and self.step < total:
            self._interrupt(signal, saved=True)

    def _select(self, metrics: dict[str, Any]) -> None:
        """Keep the weights of the best epoch at the full radius, where ``train.keep`` asks for one."""
        key = KEEP[self.options.keep]
        if key is None:
            return
        if metrics["phase"] == "full" and metrics["validation"][key] > self.best_value:
            self.best_value, self.best_epoch = metrics["validation"][key], metrics["epoch"]
            self.best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        metrics["best_epoch"] = self.best_epoch or None

    def _enough(self) -> bool:
        """Whether ``train.patience`` is used up."""
        patience, epoch = self.options.patience, self.step // self.steps_per_epoch
        return patience is not None and bool(self.best) and epoch - self.best_epoch >= patience

    def _one_step(
        self,
        x: Tensor,
        labels: Tensor,
        noise: Noise,
        known: Known | None = None,
        *,
        rows: Tensor | None = None,
        measure: bool,
    ) -> Updated:
        options = self.options
        places = None if self.places is None or rows is None else self.places.at(rows)
        schedule = schedule_at(options, self.step, self.steps_per_epoch)
        rate = learning_rate(options, self.step, self.steps_per_epoch)
        done = self.update(Batch(x, labels, noise, known, places), schedule, rate, measure=measure)
        for statistics in done.loss.statistics:
            self.graph.update_running(statistics, keep=~done.flags.any())
        self._accumulate({**done.loss.terms, "loss": done.loss.total})
        if options.average_from is not None and self.step >= options.average_from * self.steps_per_epoch:
            self._average()
        return done

    @torch.no_grad()
    def _accumulate(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            mean = batch_mean(value.detach()).double()
            pair = torch.stack([mean, torch.ones_like(mean)])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    @torch.no_grad()
    def _average(self) -> None:
        self.averaged += 1
        if not self.average:
            self.average = [p.detach().clone() for p in self.parameters]
            return
        for mean, parameter in zip(self.average, self.parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 / self.averaged)

    def _refuse_non_finite(self, bad: tuple[list[str], Tensor]) -> None:
        names = [name for name, flag in zip(bad[0], bad[1].tolist(), strict=True) if flag]
        if names:
            foreign = " and ".join(label(entry) for entry in self.plugins.entries.values() if not is_own(entry))
            raise RunFailed(
                f"training the {self.name} stopped at step {self.step}: {names[0]} is not finite"
                f"{f', with {foreign}' if foreign else ''}; "
                f"the update was not made and the last good checkpoint is kept in {self.folder}. "
                "A smaller train.lr or train.clip, or a longer train.ramp, often helps"
            )

    # State -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        tensors, values = collect(self)
        if leads():
            checkpoint.save(self.folder, tensors, values)
        self._saved_at = time.monotonic()

    def _interrupt(self, signal: int, *, saved: bool = False) -> None:
        if not saved:
            self._save()
        message = f"interrupted after step {self.step} of the {self.name}; saved. {self.resume_hint}"
        raise Interrupted(message, signal)

    # Results ---------------------------------------------------------------------------------------------

    def _metrics(self, epoch: int, norms: dict[str, float]) -> dict[str, Any]:
        with torch.no_grad():
            network = self.graph.bind().detach()
        schedule = schedule_at(self.options, self.step - 1, self.steps_per_epoch)
        validation = interval_report(network, self.validation, self.options.eps, backend=self.plugins.backend)
        if self.options.keep == "best-adversarial":
            validation["adversarial_accuracy"] = self._attacked(network)
        return {
            "network": self.name,
            "epoch": epoch + 1,
            "eps": schedule.eps,
            "phase": schedule.phase,
            "lr": learning_rate(self.options, self.step - 1, self.steps_per_epoch),
            "losses": {name: float(value[0] / value[1]) for name, value in self.sums.items()},
            "gradient_norms": norms,
            "validation_seen_in_training": self.options.final,
            "validation": validation,
            "seconds": self.seconds,
        }

    def _attacked(self, network: Network) -> float:
        """Adversarial accuracy on the first validation images."""
        assert self.plugins.evaluation is not None
        part = Split(self.validation.images[:SELECTION], self.validation.labels[:SELECTION])
        return adversarial_accuracy(network, part, self.options.eps, self.plugins.evaluation, self.options.seed)

    @torch.no_grad()
    def _finish(self) -> Network:
        """Best epoch, average and population statistics where asked for; then the fold into one float32 network."""
        if self.best:
            self.module.load_state_dict(self.best)
        if self.average:
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)
        if self.average or self.options.population_statistics:
            batches = (self.images[i * self.batch :][share(self.batch)] for i in range(self.steps_per_epoch))
            population_statistics(self.graph, batches)
        return finalise(self.module, self.data.input_shape)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _join(a: Split, b: Split) -> Split:
    return Split(torch.cat([a.images, b.images]), torch.cat([a.labels, b.labels]))
