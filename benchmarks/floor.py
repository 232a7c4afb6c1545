# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The least time in which the machine could do a step's multiplications: each layer at its own measured rate.

Only convolutions and fully connected layers count, so that no step can reach the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks import nets
from benchmarks.cases import Case
from benchmarks.worker import synchroniser

PASSES = ("forward", "input_gradient", "weight_gradient")
Function = Callable[[], Any]


@dataclass(frozen=True)
class Layer:
    """One layer's FLOPs for a batch in one pass, and the best seconds for each kind of pass."""

    name: str
    flops: int
    seconds: dict[str, float]


def passes(case: Case) -> dict[str, dict[str, int]]:
    """How often the step needs each kind of pass through all layers, by part of the step.

    The clean batch, points, and centre and radius of the box each go forward and have both gradients (the clean batch's
    are those of batch-norm statistics). The attack needs no weight gradient, and for several steps a last forward pass
    to compare points. The relaxation goes backward by one row for a sample.
    """
    both = dict.fromkeys(PASSES, 1)
    parts = {"clean": both, "centre": both, "radius": both}
    if case.attack_steps:
        last = case.attack_steps > 1
        parts["point"] = both
        parts["attack"] = {
            "forward": case.attack_steps + last,
            "input_gradient": case.attack_steps,
            "weight_gradient": 0,
        }
    if case.step == "crown-ibp":
        parts["relaxation"] = both
    return parts


def floor(case: Case, layers: list[Layer], attack: list[Layer] | None = None) -> dict[str, Any]:
    """Seconds and FLOPs. ``attack``: the layers as measured in the precision of the attack, if it is another one."""
    seconds, flops = 0.0, 0
    for part, counts in passes(case).items():
        for i, layer in enumerate(attack if part == "attack" and attack else layers):
            for kind, count in counts.items():
                # Training never asks for the gradient of the images; the attack does, and the relaxation ends there.
                if i == 0 and kind == "input_gradient" and part not in ("attack", "relaxation"):
                    continue
                seconds += count * layer.seconds[kind]
                flops += count * layer.flops
    return {"seconds": seconds, "flops": flops}


def measure(case: Case, dtype: torch.dtype, repetitions: int = 5) -> list[Layer]:
    """The layers of the case's network with their best times over memory formats and kernels."""
    x = torch.rand(case.batch, *case.shape, device=case.device, dtype=dtype)
    found = []
    for i, module in enumerate(nets.build(case.layers)):
        module = module.to(case.device, dtype).eval()
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            with torch.no_grad():
                x = module(x)
            continue
        with torch.no_grad():
            y = module(x)
        ways = _convolution(module, x, y) if isinstance(module, torch.nn.Conv2d) else _linear(module, x, y)
        with torch.no_grad():
            best = {kind: min(_seconds(way, case.device, repetitions) for way in ways[kind]) for kind in PASSES}
        found.append(Layer(f"{i} {type(module).__name__}", 2 * prod(y.shape) * module.weight[0].numel(), best))
        x = y
    return found


def _convolution(module: torch.nn.Conv2d, x: Tensor, y: Tensor) -> dict[str, list[Function]]:
    ways: dict[str, list[Function]] = {kind: [] for kind in PASSES}
    for layout in (torch.contiguous_format, torch.channels_last):
        a, g, w = (t.detach().contiguous(memory_format=layout) for t in (x, torch.rand_like(y), module.weight))

        def backward(mask: list[bool], a: Tensor = a, g: Tensor = g, w: Tensor = w) -> Any:
            arguments = (None, module.stride, module.padding, module.dilation, False, [0, 0], 1, mask)
            return torch.ops.aten.convolution_backward(g, a, w, *arguments)

        ways["forward"].append(lambda a=a, w=w: torch.conv2d(a, w, None, module.stride, module.padding))  # type: ignore[misc]
        ways["input_gradient"].append(lambda b=backward: b([True, False, False]))  # type: ignore[misc]
        ways["weight_gradient"].append(lambda b=backward: b([False, True, False]))  # type: ignore[misc]
    return ways


def _linear(module: torch.nn.Linear, x: Tensor, y: Tensor) -> dict[str, list[Function]]:
    g, w = torch.rand_like(y), module.weight.detach()
    ways: dict[str, list[Function]] = {
        "forward": [lambda: torch.nn.functional.linear(x, w)],
        "input_gradient": [lambda: g @ w],
        "weight_gradient": [lambda: g.t() @ x],
    }
    if x.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        one_dnn: Any = torch.ops.mkldnn._linear_pointwise
        wt, gt, xt = w.t().contiguous(), g.t().contiguous(), x.t().contiguous()
        ways["forward"].append(lambda: one_dnn(x, w, None, "none", [], ""))
        ways["input_gradient"].append(lambda: one_dnn(g, wt, None, "none", [], ""))
        ways["weight_gradient"].append(lambda: one_dnn(gt, xt, None, "none", [], ""))
    return ways


def _seconds(function: Function, device: str, repetitions: int) -> float:
    """The best of several, each long enough for the clock."""
    synchronise = synchroniser(device)
    function()
    synchronise()
    began = time.perf_counter()
    function()
    synchronise()
    count = max(1, min(100, int(0.01 / max(time.perf_counter() - began, 1e-9))))
    best = float("inf")
    for _ in range(repetitions):
        began = time.perf_counter()
        for _ in range(count):
            function()
        synchronise()
        best = min(best, (time.perf_counter() - began) / count)
    return best
