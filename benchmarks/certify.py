# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``python -m benchmarks certify``: samples per second of certification stages beside auto_LiRPA used directly.

The networks are trained for a few epochs on enlarged digits: on untrained ones nearly all neurons are unstable.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks import output, timing
from benchmarks.cases import Case, without_norms
from benchmarks.contenders.autolirpa import bounded_module, default_dtype, load
from benchmarks.contenders.ctkd import Ctkd, train_options
from benchmarks.nets import build
from ctkd.api import Split
from ctkd.boxes import Box, perturbation_box
from ctkd.plugins import create_from
from ctkd.propagate import Network, propagate
from ctkd.propagate.ops import Conv, Linear

STAGES = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
"""ctkd's names and auto_LiRPA's."""
TOLERANCE = {"float64": 1e-7, "float32": 1e-3}
"""Of margins, relative to the largest."""
CROWN_TOLERANCE = 1e-2
"""ctkd's CROWN also uses intervals before it chooses its relaxations, so that single margins differ from auto_LiRPA's,
up and down. Their mean may not be lower by more than this."""


def digits(shape: tuple[int, ...]) -> Split:
    """scikit-learn's digits, enlarged; each channel the same."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    large = interpolate(small, size=shape[1:], mode="bilinear").clamp(0, 1)
    order = torch.randperm(len(large), generator=torch.Generator().manual_seed(0))
    return Split(large.expand(-1, shape[0], -1, -1)[order].contiguous(), torch.tensor(labels)[order].long())


def trained(case: Case, epochs: int) -> Network:
    """The case's network after a short IBP training."""
    options = train_options(case, "fp32", {}, epochs=epochs, warmup=min(1, epochs / 4), ramp=epochs / 2)
    found = Ctkd(case, {"precision": "fp32"})
    data = digits(case.shape)
    trainer = found.trainer(
        options, create_from("attack", {"name": "pgd"}), Split(data.images[500:], data.labels[500:])
    )
    return trainer.run()


def plain(case: Case, network: Network) -> nn.Sequential:
    """The very numbers of ctkd's network, in which batch norm is folded, as a module of torch's."""
    module = build(without_norms(case.layers))
    layers = [layer for layer in module if isinstance(layer, nn.Conv2d | nn.Linear)]
    ops: list[Any] = [node.op for node in network.nodes if isinstance(node.op, Conv | Linear)]
    for layer, op in zip(layers, ops, strict=True):
        layer.load_state_dict({"weight": op.weight, "bias": op.bias})
    return module.eval().requires_grad_(False)


class Direct:
    """auto_LiRPA around the folded module."""

    def __init__(self, net: nn.Module, box: Box, labels: Tensor) -> None:
        self.lirpa, dtype = load(), box.lower.dtype
        self.dtype, self.labels, self.box = dtype, labels, box
        self.bounded = bounded_module(copy.deepcopy(net).to(dtype), box.lower[:1], dtype)
        self.bounded.eval()
        classes = int(self.bounded.final_shape[1])
        identity = torch.eye(classes, dtype=dtype)
        self.rows = identity[labels].unsqueeze(1) - identity.unsqueeze(0)

    @torch.no_grad()
    def __call__(self, method: str) -> Tensor:
        with default_dtype(self.dtype):
            ball = self.lirpa.PerturbationLpNorm(norm=math.inf, x_L=self.box.lower, x_U=self.box.upper)
            x = self.lirpa.BoundedTensor((self.box.lower + self.box.upper) / 2, ball)
            lower, _ = self.bounded.compute_bounds(x=(x,), C=self.rows, method=method, bound_upper=False)
        return lower  # type: ignore[no-any-return]


def run(
    case: Case, stages: list[str], dtypes: list[str], samples: dict[str, int], epochs: int, rounds: int, guard: bool
) -> list[dict[str, Any]]:
    output.say(f"{case.model}, {case.size}: training for {epochs} epochs")
    network = trained(case, epochs)
    net = plain(case, network)
    data = digits(case.shape)
    results = []
    for dtype in dtypes:
        for stage in stages:
            count = samples[stage]
            box = perturbation_box(data.images[:count], case.eps).to(getattr(torch, dtype))
            labels = data.labels[:count]
            results.append(_row(case, net, network, stage, dtype, box, labels, rounds, guard))
    return results


def _row(
    case: Case,
    net: nn.Module,
    network: Network,
    stage: str,
    dtype: str,
    box: Box,
    labels: Tensor,
    rounds: int,
    guard: bool,
) -> dict[str, Any]:
    output.say(f"{stage}, {dtype}, {len(labels)} samples")
    made, wide = create_from("stage", {"name": stage}), network.to(box.lower.dtype)
    direct = Direct(net, box, labels)

    @torch.no_grad()
    def ours() -> Tensor:
        margins: Tensor = made.margins(wide, box, labels)
        return margins

    def theirs() -> Tensor:
        return direct(STAGES[stage])

    looser, tighter, mean = _differences(ours(), theirs(), labels)
    agree = mean <= CROWN_TOLERANCE if stage == "crown" else max(looser, tighter) <= TOLERANCE[dtype]
    things = {"ctkd": _timed(ours), "auto_LiRPA": _timed(theirs)}
    found = timing.interleave(things, rounds, guard=guard, least=0.0 if rounds == 1 else timing.LEAST, say=output.say)
    return {
        "case": asdict(case),
        "stage": stage,
        "dtype": dtype,
        "samples": len(labels),
        "unstable": unstable(wide, box),
        "auto_LiRPA": direct.lirpa.__version__,
        "looser": looser,
        "tighter": tighter,
        "looser_on_average": mean,
        "agree": agree,
        "times": found,
        "per_second": {name: len(labels) / timing.summary(times)["median"] for name, times in found.items()},
        "ratio": timing.ratio(found["auto_LiRPA"], found["ctkd"]) if agree else None,
    }


def _differences(ours: Tensor, theirs: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """How much lower, how much higher and on average how much lower ctkd's margins are, relative to the largest."""
    others = torch.ones_like(ours, dtype=torch.bool).scatter(1, labels[:, None], False)
    difference = ((theirs - ours) / theirs.abs().amax().clamp(min=1))[others]
    return float(difference.max().clamp(min=0)), float((-difference).max().clamp(min=0)), float(difference.mean())


def unstable(network: Network, box: Box) -> float:
    """The share of ReLUs whose input may have either sign, by intervals."""
    with torch.no_grad():
        bounds = propagate(network, None, box).pre_activation
    both = [((lower < 0) & (upper > 0)).flatten() for lower, upper in bounds.values()]
    return float(torch.cat(both).double().mean())


def _timed(function: Callable[[], Tensor]) -> Callable[[int], list[float]]:
    import time

    def repeated(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        return seconds

    return repeated


def show(results: list[dict[str, Any]]) -> None:
    rows = []
    for r in results:
        case = Case(**r["case"])
        speed = [f"{r['per_second'][name]:.1f}" for name in ("ctkd", "auto_LiRPA")]
        ratio = f"{r['ratio']['of_medians']:.2f}" if r["ratio"] else "bounds differ"
        rows.append(
            (
                f"{case.model} {case.shape[0]}x{case.shape[1]}",
                r["stage"],
                r["dtype"],
                str(r["samples"]),
                *speed,
                ratio,
                f"{100 * r['unstable']:.0f} %",
            )
        )
    columns = ("network", "stage", "dtype", "count", "ctkd /s", "peer /s", "ratio", "unstable")
    notes = [
        f"{r['stage']}, {r['dtype']}: ctkd's margins are at most {r['looser']:.1e} lower and {r['tighter']:.1e} higher "
        f"than those of auto_LiRPA {r['auto_LiRPA']} (relative to the largest)"
        for r in results
    ]
    output.table("Certification stages", columns, rows, notes)
