# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The optimiser that a training is configured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ctkd.train.options import TrainOptions


class Optimiser:
    """PyTorch's fused optimisers: an update is left out on the device where something was not finite."""

    def __init__(self, options: TrainOptions, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        rate, decay = options.lr, options.weight_decay
        self.inner: torch.optim.Optimizer
        if options.optimizer == "sgd":
            self.inner = torch.optim.SGD(
                self.parameters,
                lr=rate,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=decay,
                fused=True,
            )
        else:
            kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
            self.inner = kind(self.parameters, lr=rate, weight_decay=decay, fused=True)

    def step(self, rate: float, bad: Tensor) -> None:
        """One update at a learning rate, with the gradients that the parameters hold; none where ``bad`` is True.

        ``bad`` is a scalar boolean on the device, which the host does not wait for.
        """
        self.inner.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        self.inner.grad_scale = None  # type: ignore[attr-defined]
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """What it carries from step to step, under ``place of the parameter/name``."""
        return {
            f"{i}/{name}": value
            for i, parameter in enumerate(self.parameters)
            for name, value in self.inner.state.get(parameter, {}).items()
            if value is not None
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            place, _, name = key.partition("/")
            parameter = self.parameters[int(place)]
            # Step counters live on the device, too.
            self.inner.state[parameter][name] = value.to(parameter.device)
