# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certification stages by auto_LiRPA. All are sound up to floating-point rounding of the dtype they are given."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ctkd.boxes import Box
from ctkd.errors import BadInput, RunFailed
from ctkd.options import Options
from ctkd.propagate import Network, at_classes, margin_specification
from ctkd.propagate.ops import MaxPool
from ctkd_autolirpa.engine import Engine
from ctkd_autolirpa.options import AlphaOptions

ELEMENTS = 2**26
"""How many coefficients auto_LiRPA may hold for one layer; more samples are done in chunks."""

ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}
"""How far a bound may be above a value that it bounds, relative to the largest of the batch."""


class _Stage:
    method: str

    def __init__(self, options: Options) -> None:
        self.options = options
        self.engine = Engine()

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        """(batch, classes), 0 at the label; -inf where a bound is not finite.

        Raises: BadInput for a dtype other than float32 and float64, and where auto_LiRPA lacks an operator's bounds.
        """
        if network.dtype not in (torch.float32, torch.float64):
            raise BadInput(f"auto_LiRPA bounds in float32 or float64, not in {network.dtype}")
        size = max(1, ELEMENTS // self._coefficients(network))
        parts = [
            self._some(network, box[slice(i, i + size)], labels[i : i + size]) for i in range(0, len(labels), size)
        ]
        return torch.cat(parts) if parts else box.lower.new_zeros(0, network.classes)

    def _some(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        network = network.detach()
        rows, others = margin_specification(labels, network.classes, network.dtype)
        lower = rows.new_full(rows.shape[:2], -torch.inf)
        with torch.no_grad():
            # auto_LiRPA takes a bias that is not a number for zero, for the whole batch: only finite boxes go in.
            intervals, _ = self.engine.intervals(network, box, None)
            ends = [end.flatten(1).isfinite().all(1) for pair in intervals.values() for end in pair]
            usable = torch.stack(ends).all(0)
            if usable.any():
                found = self._lower(network, box[usable], rows[usable])
                lower[usable] = found.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        self._check(network, box, rows, lower)
        return at_classes(lower, others)

    def _lower(self, network: Network, box: Box, rows: Tensor) -> Tensor:
        return self.engine.lower(network, box, rows, self.method)

    def _check(self, network: Network, box: Box, rows: Tensor, lower: Tensor) -> None:
        """No bound may be above the value at the centre, or at the corner where the gradient says it is smallest.

        Raises: RunFailed. Some combinations of operators and versions are known to give unsound bounds; those are not
        used here, and others are not to pass in silence.
        """
        centre = ((box.lower + box.upper) / 2).requires_grad_()
        with torch.enable_grad():
            values = (rows @ network(centre).unsqueeze(2)).squeeze(2)
            (slope,) = torch.autograd.grad(values.amin(1).sum(), centre)
        with torch.no_grad():
            corner = torch.where(slope > 0, box.lower, box.upper)
            at_corner = (rows @ network(corner).unsqueeze(2)).squeeze(2)
            excess = lower - torch.minimum(values, at_corner)
            rounding = ROUNDING[network.dtype] * (1 + values.abs().amax())
        if bool((excess > rounding).any()):
            raise RunFailed(
                f"auto_LiRPA {self.engine.lirpa.__version__} gave a wrong bound ({self.method}): "
                f"{float(excess.max()):.3g} above the margin at a point of the box; nothing was certified by it"
            )

    def _coefficients(self, network: Network) -> int:
        """Per sample."""
        return network.classes * max(prod(node.shape) for node in network.nodes)


class IBPStage(_Stage):
    """Interval bounds, the specification merged into the last layer."""

    method = "IBP"


class CrownIBPStage(_Stage):
    """One backward pass; intermediate bounds by intervals."""

    method = "CROWN-IBP"


class CrownStage(_Stage):
    """Backward passes for every layer."""

    method = "CROWN"

    def _coefficients(self, network: Network) -> int:
        return max(prod(node.shape) for node in network.nodes) ** 2


class AlphaCrownStage(CrownStage):
    """Backward passes for every layer, the last with relaxations optimised for each sample; never below CROWN.

    CROWN alone where auto_LiRPA cannot optimise.
    """

    Options = AlphaOptions

    def __init__(self, options: AlphaOptions) -> None:
        super().__init__(options)
        self.optimiser = Engine(
            iteration=options.iterations
        )  # of its own: what it leaves behind changes CROWN's bounds

    def _lower(self, network: Network, box: Box, rows: Tensor) -> Tensor:
        crown = super()._lower(network, box, rows)
        if any(isinstance(node.op, MaxPool) for node in network.nodes):
            return crown  # 0.7.1 gives unsound bounds where its optimisation does not fail, as 0.3's always does
        try:
            with torch.enable_grad():
                optimised = self.optimiser.lower(network, box, rows, "CROWN-Optimized").detach()
        except RunFailed:
            return crown  # 0.3 fails where there is nothing to optimise
        return torch.maximum(crown, optimised)
