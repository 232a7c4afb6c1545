# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The step as users of auto_LiRPA write it: a BoundedModule around the network, no ctkd but the shim that 0.3 needs."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import nets
from benchmarks.cases import ALPHA, CLIP, L1, LR, Case
from benchmarks.worker import Unavailable, synchroniser


def load() -> Any:
    """auto_LiRPA, whichever of its versions is installed. Raises: Unavailable."""
    try:
        from ctkd_autolirpa import compat

        from ctkd.errors import CtkdError
    except ImportError:
        raise Unavailable("the shim for auto_LiRPA is not installed: pip install plugins/ctkd-autolirpa") from None
    try:
        return compat.load()
    except CtkdError as error:
        raise Unavailable(str(error)) from None


def bounded_module(net: nn.Module, example: Any, dtype: torch.dtype, **options: Any) -> Any:
    """Traced without the warnings and prints of it."""
    from ctkd_autolirpa import compat

    with compat.quiet(dtype), compat.exporter_untouched():
        return load().BoundedModule(net, example, {"conv_mode": "patches", **options})


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """auto_LiRPA makes some of its tensors of the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def register_gather() -> None:
    """The ONNX exporter of a current torch writes gather as OneHot, which no auto_LiRPA reads; loss fusion needs it."""
    helper: Any = importlib.import_module("torch.onnx.symbolic_helper")  # not what torch.onnx exposes

    def gather(g: Any, x: Any, dim: Any, index: Any, sparse_grad: Any = None) -> Any:
        return g.op("GatherElements", x, index, axis_i=helper._get_const(dim, "i", "dim"))

    onnx: Any = importlib.import_module("torch.onnx")
    onnx.register_custom_op_symbolic("aten::gather", gather, 12)


class AutoLirpa:
    """Intervals with the specification merged; CROWN-IBP with loss fusion by its CrossEntropyWrapper.

    Points are evaluated by the module in training mode, so that the box of CC-IBP has the batch-norm statistics of the
    attacked batch (as in published code); PGD runs in evaluation mode, by running statistics.
    """

    def __init__(self, case: Case, settings: dict[str, Any]) -> None:
        if settings["precision"] != "fp32":
            raise Unavailable("auto_LiRPA is timed in fp32 only")
        self.case, self.lirpa = case, load()
        self.dtype = torch.float32
        self.net, self.bounded = self._build()
        self.x, self.labels = (t.to(case.device) for t in nets.images(case))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=LR, fused=True)
        self.done = 0

    def facts(self) -> dict[str, Any]:
        return {"auto_LiRPA": self.lirpa.__version__, "precision": "fp32", "statistics": "last-pass"}

    @property
    def fused(self) -> bool:
        return self.case.step == "crown-ibp"

    def _build(self) -> tuple[nn.Module, Any]:
        case = self.case
        net = nets.build(case.layers)
        nets.initialise(net, case.seed)
        net.to(case.device, self.dtype).eval()
        x, labels = (t[:2].to(case.device) for t in nets.images(case, 1))
        if self.fused:
            register_gather()
            wrapper = importlib.import_module("auto_LiRPA.wrapper").CrossEntropyWrapper
            bounded = bounded_module(wrapper(net), (x.to(self.dtype), labels), self.dtype, loss_fusion=True)
        else:
            bounded = bounded_module(net, x.to(self.dtype), self.dtype)
        net.train()
        bounded.train()
        return net, bounded

    def step(self) -> float:
        import time

        synchronise = synchroniser(self.case.device)
        began = time.perf_counter()
        self._step()
        synchronise()
        return time.perf_counter() - began

    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.net.parameters())

    def _step(self) -> None:
        start = self.done % (len(self.labels) // self.case.batch) * self.case.batch
        self.done += 1
        x, labels = self.x[start : start + self.case.batch], self.labels[start : start + self.case.batch]
        lower, upper = (x - self.case.eps).clamp(0, 1), (x + self.case.eps).clamp(0, 1)
        point = None
        if self.case.attack_steps:
            with torch.no_grad():
                self.bounded(x)  # for running statistics
            point = self._attack(x, labels, lower, upper)
        loss = self._loss(x, labels, lower, upper, point, "last-pass")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()

    def _attack(self, x: Tensor, labels: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """PGD from a uniform start; the best point of several steps, the last one of one step, as ctkd's."""
        steps, size = self.case.attack_steps, self.case.step_size * self.case.eps
        self.bounded.eval()
        point = lower + torch.rand_like(x) * (upper - lower)
        best, best_value = point, torch.full_like(labels, -math.inf, dtype=x.dtype)
        for _ in range(steps):
            point.requires_grad_()
            value = cross_entropy(self.bounded(point), labels, reduction="none")
            (gradient,) = torch.autograd.grad(value.sum(), point)
            if steps > 1:
                best, best_value = _keep(best, best_value, point.detach(), value.detach())
            point = (point.detach() + size * gradient.sign()).clamp(lower, upper)
        if steps == 1:
            best = point
        else:
            with torch.no_grad():
                value = cross_entropy(self.bounded(point), labels, reduction="none")
            best, _ = _keep(best, best_value, point, value)
        self.bounded.train()
        return best

    def _loss(
        self, x: Tensor, labels: Tensor, lower: Tensor, upper: Tensor, point: Tensor | None, statistics: str
    ) -> Tensor:
        box = self._bounded_input(x, lower, upper)
        if self.fused:
            robust = self._fused_loss(x, labels, box)
        else:
            rows = self._rows(labels)
            if statistics == "clean" or point is None:
                self.bounded(x)  # a bound uses the statistics of the forward pass before it, with their gradient
            margins = None
            if point is not None and statistics == "last-pass":
                margins = (rows @ self.bounded(point).unsqueeze(2)).squeeze(2)
            elif point is not None:  # a point by given statistics: a box without width
                zero = self._bounded_input(point, point, point)
                margins, _ = self.bounded.compute_bounds(x=(zero,), C=rows, method="IBP", bound_upper=False)
            bound, _ = self.bounded.compute_bounds(x=(box,), C=rows, method="IBP", bound_upper=False)
            mixed = bound if margins is None else (1 - ALPHA) * margins + ALPHA * bound
            robust = cross_entropy(torch.cat([torch.zeros_like(mixed[:, :1]), -mixed], 1), torch.zeros_like(labels))
        weights = [part.weight for part in self.net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        total: Tensor = robust + L1 * torch.stack([weight.abs().sum() for weight in weights]).sum()
        return total

    def _fused_loss(self, x: Tensor, labels: Tensor, box: Any) -> Tensor:
        self.bounded(x, labels)
        _, upper = self.bounded.compute_bounds(x=(box, labels), method="CROWN-IBP", bound_lower=False)
        # Its exponentials are of differences to the largest input, which it keeps.
        (exponential,) = (node for node in self.bounded._modules.values() if type(node).__name__ == "BoundExp")
        loss: Tensor = (upper.log() + exponential.max_input).mean()
        return loss

    def _bounded_input(self, x: Tensor, lower: Tensor, upper: Tensor) -> Any:
        ball = self.lirpa.PerturbationLpNorm(norm=math.inf, eps=self.case.eps, x_L=lower, x_U=upper)
        return self.lirpa.BoundedTensor(x, ball)

    def _rows(self, labels: Tensor) -> Tensor:
        """label minus each other class, (batch, classes - 1, classes)."""
        identity = torch.eye(self.case.classes, dtype=self.dtype, device=labels.device)
        rows = identity[labels].unsqueeze(1) - identity.unsqueeze(0)
        others = ~identity.bool()[labels]
        return rows[others].view(len(labels), self.case.classes - 1, self.case.classes)

    def check(self, statistics: str, dtype: str, eps: float) -> tuple[float, dict[str, Tensor]]:
        self.dtype = getattr(torch, dtype)
        with default_dtype(self.dtype):
            self.net, self.bounded = self._build()
            images, labels = nets.images(self.case, 1)
            x, labels = images.to(self.case.device, self.dtype), labels.to(self.case.device)
            lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
            point = nets.some_point(x, lower, upper) if self.case.attack_steps else None
            loss = self._loss(x, labels, lower, upper, point, statistics)
            self.net.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        zeros = ((name, torch.zeros_like(p) if p.grad is None else p.grad) for name, p in self.net.named_parameters())
        return float(loss.detach()), dict(zeros)


def _keep(best: Tensor, best_value: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    better = value > best_value
    return torch.where(better[:, None, None, None], point, best), torch.where(better, value, best_value)
