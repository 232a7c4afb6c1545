# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Initialisation of Shi et al. 2021 (arXiv 2103.15887, Section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import nn

from ctkd.propagate import Graph
from ctkd.propagate.ops import Add


@torch.no_grad()
def shi_initialise(graph: Graph, generator: torch.Generator) -> None:
    """Weights ~ Normal(0, sqrt(2 pi) / fan_in), which keeps the expected interval width from layer to layer.

    As in the published code: the last weight tensor, biases and batch norm keep PyTorch's defaults, and
    weights that directly follow a sum of branches are halved.
    """
    weights = [p for p in graph.module.parameters() if p.dim() >= 2]
    for weight in weights[:-1]:
        fan_in = weight[0].numel()
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.copy_(noise * (math.sqrt(2 * math.pi) / fan_in))
    for layer in _after_sums(graph):
        layer.weight.mul_(0.5)


def _after_sums(graph: Graph) -> list[nn.Linear | nn.Conv2d]:
    made = [node.make for node in graph.nodes]
    found = []
    for node in graph.nodes:
        module = dict(graph.module.named_modules()).get(node.path)
        if isinstance(module, nn.Linear | nn.Conv2d) and made[node.inputs[0]] is Add:
            found.append(module)
    return found


@torch.no_grad()
def default_initialise(module: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's own initialisation of the architecture, from the run's generator."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for layer in module.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    finally:
        torch.set_rng_state(state)
