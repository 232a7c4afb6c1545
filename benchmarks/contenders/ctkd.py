# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ctkd itself: its trainer, on random data, fed through the public ``Data.augment``."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import nets
from benchmarks.cases import ALPHA, CLIP, L1, LR, Case
from benchmarks.worker import Driven, Unavailable, synchroniser
from ctkd.api import Box, Data, Split
from ctkd.errors import CtkdError
from ctkd.interrupt import StopRequest
from ctkd.machine import prepared
from ctkd.plugins import create_from, registry
from ctkd.progress import Silent
from ctkd.train.loop import Plugins, Trainer
from ctkd.train.options import TrainOptions

FOREVER = 10**6
"""Epochs."""


class GivenPoint:
    """Stands in the attack's place: the point that all contenders are checked at."""

    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, *more: Any, **named: Any) -> Tensor:
        return nets.some_point(x, box.lower, box.upper)


def method_table(case: Case) -> dict[str, Any]:
    if case.step == "ibp":
        return {"name": "ibp"}
    if case.step == "crown-ibp":
        return {"name": "crown-ibp", "loss_fusion": True}
    return {"name": "cc-ibp", "alpha": ALPHA}


def train_options(case: Case, precision: str, settings: dict[str, Any], **more: Any) -> TrainOptions:
    """After the ramp: the full radius from the first step on, without its regularisers."""
    chosen: dict[str, Any] = {
        "eps": case.eps,
        "epochs": FOREVER,
        "warmup": 0,
        "ramp": 0,
        "batch_size": case.batch,
        "lr": LR,
        "clip": CLIP,
        "l1": L1,
        "device": case.device,
        "checkpoint_seconds": 1e9,
        **({} if precision == "fp32" else {"precision": precision}),
        **settings,
        **more,
    }
    unknown = sorted(set(chosen) - set(TrainOptions.model_fields))
    if unknown:
        raise Unavailable(f"this ctkd has no train.{unknown[0]}; it has {', '.join(sorted(TrainOptions.model_fields))}")
    return TrainOptions(**chosen)


class Ctkd:
    """``Trainer.run``; a step is what lies between two batches."""

    backend = "native"

    def __init__(self, case: Case, settings: dict[str, Any]) -> None:
        self.case, self.settings = case, settings
        self.given = dict(settings.get("set", {}))
        if self.backend != "native" and self.backend not in registry().names("propagation"):
            raise Unavailable(
                f"propagation backend {self.backend!r} is not installed: pip install plugins/ctkd-autolirpa"
            )
        self.driven: Driven | None = None
        self.scratch = settings.get("scratch")  # for checkpoints; who starts the process removes it
        if self.scratch is None:
            self.scratch = tempfile.mkdtemp(prefix="ctkd-benchmark-")
            weakref.finalize(self, shutil.rmtree, self.scratch, True)
        train_options(case, settings["precision"], self.given)  # refused before anything is timed

    def facts(self) -> dict[str, Any]:
        return {
            "ctkd": importlib.metadata.version("ctkd"),
            "backend": self.backend,
            "precision": self.settings["precision"],
            "statistics": "clean",
        }

    def step(self) -> float:
        if self.driven is None:
            self.driven = Driven(self._loop)
        return self.driven.step(synchroniser(self.case.device))

    def finite(self) -> bool:
        return True  # its loop refuses to go on otherwise

    def _loop(self, driven: Driven) -> None:
        def augment(x: Tensor, *_: Any) -> Tensor:
            driven.fetching()
            return x

        def on_epoch(_: dict[str, Any]) -> None:
            driven.spoilt = True

        attack = create_from(
            "attack", {"name": "pgd", "steps": max(1, self.case.attack_steps), "step_size": self.case.step_size}
        )
        options = train_options(self.case, self.settings["precision"], self.given)
        x, labels = nets.images(self.case)
        with prepared():  # as in ctkd.run
            self.trainer(options, attack, Split(x, labels), augment, on_epoch).run()

    def check(
        self, statistics: Literal["clean", "last-pass"], dtype: str, eps: float
    ) -> tuple[float, dict[str, Tensor]]:
        found: dict[str, Any] = {}

        def augment(x: Tensor, *_: Any) -> Tensor:  # by now the trainer has initialised the weights
            nets.initialise(trainer.module, self.case.seed)
            return x

        def on_epoch(metrics: dict[str, Any]) -> None:
            found["loss"] = metrics["losses"]["loss"]
            found["gradients"] = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in trainer.module.named_parameters()
            }

        options = train_options(self.case, "fp32", self.given, epochs=1, clip=1e30, eps=eps, statistics=statistics)
        x, labels = nets.images(self.case, 1)
        kind: torch.dtype = getattr(torch, dtype)
        trainer = self.trainer(options, GivenPoint(), Split(x.to(kind), labels), augment, on_epoch)
        trainer.module.to(kind)
        trainer.run()
        return found["loss"], found["gradients"]

    def trainer(
        self,
        options: TrainOptions,
        attack: Any,
        train: Split,
        augment: Callable[..., Tensor] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Trainer:
        """A trainer of ctkd's on the case's network; initialised by its own seed when it runs."""
        few = Split(train.images[:2], train.labels[:2])
        data = Data("noise", train, few, few, self.case.classes, augment)
        method = create_from("bound", method_table(self.case))
        objective, backend = (
            create_from("distill", {"name": "none"}),
            create_from("propagation", {"name": self.backend}),
        )
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        return Trainer(
            name="benchmark",
            role="student",
            module=nets.build(self.case.layers),
            data=data,
            plugins=Plugins(method, objective, attack, backend),
            options=options,
            teachers=(),
            folder=folder,
            reporter=Silent(),
            stop=StopRequest(),
            resume_hint="",
            on_epoch=on_epoch,
        )


class CtkdOnAutoLirpa(Ctkd):
    """The same step with the bounds of auto_LiRPA (the plugin in plugins/ctkd-autolirpa)."""

    backend = "autolirpa"

    def facts(self) -> dict[str, Any]:
        from ctkd_autolirpa import compat

        try:
            return {**super().facts(), "auto_LiRPA": compat.version()}
        except CtkdError as error:
            raise Unavailable(str(error)) from None
