# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""CTRAIN's own training loops (they drive auto_LiRPA from its repository), unchanged, fed batch by batch.

Runs in an environment of its own, without ctkd; see benchmarks/README.md. MTL-IBP stands in CC-IBP's place: the same
passes, another way to mix them. Its weights are its own: the loops initialise them, so there is nothing to compare.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import nets
from benchmarks.cases import ALPHA, CLIP, L1, LR, Case
from benchmarks.contenders.autolirpa import register_gather
from benchmarks.worker import Driven, Unavailable, synchroniser

FOREVER = 10**6


class Loader:
    """Batches of random data; waits in front of each until a step is asked for."""

    def __init__(self, case: Case, driven: Driven) -> None:
        self.case, self.driven = case, driven
        self.x, self.labels = nets.images(case)
        self.mean, self.std = torch.zeros(case.shape[0]), torch.ones(case.shape[0])
        self.min, self.max = torch.zeros(case.shape[0], 1, 1), torch.ones(case.shape[0], 1, 1)

    def __len__(self) -> int:
        return FOREVER

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = list(zip(*(torch.split(t, self.case.batch) for t in (self.x, self.labels)), strict=True))
        for i in range(FOREVER):
            self.driven.fetching()
            yield parts[i % len(parts)]


class Ctrain:
    """Shi's IBP, MTL-IBP, CROWN-IBP with loss fusion."""

    def __init__(self, case: Case, settings: dict[str, Any]) -> None:
        if settings["precision"] != "fp32":
            raise Unavailable("CTRAIN is timed in fp32 only")
        self.case = case
        # The loops import what evaluates by complete verifiers; a step needs none of it.
        stand_in: Any = types.ModuleType("CTRAIN.eval")
        stand_in.__path__ = []
        stand_in.__getattr__ = lambda name: None
        sys.modules["CTRAIN.eval"] = stand_in
        try:
            self.version = importlib.metadata.version("CTRAIN")
            self.lirpa: Any = importlib.import_module("auto_LiRPA")
            self.certified: Any = importlib.import_module("CTRAIN.train.certified")
        except (ImportError, importlib.metadata.PackageNotFoundError) as error:
            raise Unavailable(f"{error}; give an interpreter that has it, see benchmarks/README.md") from None
        self.driven: Driven | None = None
        self.net: torch.nn.Module | None = None

    def facts(self) -> dict[str, Any]:
        return {
            "CTRAIN": self.version,
            "auto_LiRPA": self.lirpa.__version__,
            "precision": "fp32",
            "statistics": "last-pass",
            "method": "mtl-ibp" if self.case.attack_steps else self.case.step,
        }

    def step(self) -> float:
        if self.driven is None:
            self.driven = Driven(self._loop)
        return self.driven.step(synchroniser(self.case.device))

    def finite(self) -> bool:
        return self.net is not None and all(bool(p.isfinite().all()) for p in self.net.parameters())

    def check(self, statistics: str, dtype: str, eps: float) -> tuple[float, dict[str, Tensor]]:
        raise Unavailable("its loops initialise the weights themselves, so losses cannot be compared")

    def _loop(self, driven: Driven) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._train(Loader(self.case, driven))

    def _train(self, loader: Loader) -> None:
        case, device = self.case, torch.device(self.case.device)
        net = nets.build(case.layers).to(device).eval()
        self.net = net
        nets.initialise(net, case.seed)  # biases and batch norm, as for everyone
        example = torch.ones(1, *case.shape, device=device)
        options: dict[str, Any] = {"conv_mode": "patches", "relu": "adaptive"}
        bounded = self.lirpa.BoundedModule(net, example, bound_opts=options, device=device)
        fused = None
        if case.step == "crown-ibp":
            register_gather()
            label = torch.zeros(1, dtype=torch.long, device=device)
            wrapped, options = self.lirpa.CrossEntropyWrapper(net), {**options, "loss_fusion": True}
            fused = self.lirpa.BoundedModule(wrapped, (example, label), bound_opts=options, device=device)
        net.train()
        # The radius is full from the first step on, and bounds alone count.
        schedule = {"start_eps": case.eps, "start_kappa": 0, "end_kappa": 0, "start_beta": 1, "end_beta": 1}
        common: dict[str, Any] = {
            "original_model": net,
            "hardened_model": bounded,
            "train_loader": loader,
            "num_epochs": FOREVER,
            "eps": case.eps,
            "eps_std": case.eps,
            "eps_schedule": (0, 20),
            "eps_schedule_unit": "batch",
            "eps_scheduler_args": schedule,
            "optimizer": torch.optim.Adam((fused or bounded).parameters(), lr=LR),
            "n_classes": case.classes,
            "gradient_clip": CLIP,
            "l1_regularisation_weight": L1,
            "results_path": None,
            "device": device,
        }
        if case.step == "ibp":
            self.certified.shi_train_model(**common)
        elif fused is not None:
            self.certified.crown_ibp_train_model(**common, loss_fusion=True, loss_fusion_model=fused)
        else:
            attack = {"pgd_n_steps": case.attack_steps, "pgd_step_size": case.step_size}
            self.certified.mtl_ibp_train_model(**common, **attack, alpha=ALPHA)
