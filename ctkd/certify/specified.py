# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""VNN-LIB specifications settled by certification stages and attacks.

A specification's disjuncts say ``A y <= b`` about outputs y. With an affine layer that computes ``b - A y`` behind the
network and a constant 0 beside it, the margins of that constant are ``A y - b``: so every stage bounds them, and a
disjunct cannot be reached where one of its rows is above zero over the whole box.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctkd.api import Attack, CertificationStage
from ctkd.boxes import Box
from ctkd.certify.settling import PRECISION, ROUNDING
from ctkd.errors import BadInput
from ctkd.machine import plain_convolutions
from ctkd.propagate import Network, Node
from ctkd.propagate.ops import Linear
from ctkd.randomness import Noise
from ctkd.verify.replay import inner
from ctkd.verifying import Verdict
from ctkd.vnnlib import Disjunct, Specification

MOST_ROWS = 4096
"""Different constraints about one box."""

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Settled:
    """What became of a specification.

    Attributes:
        verdict: ``verified``, ``falsified``, ``unknown`` or ``timeout``.
        stage: the last stage that was needed, ``attack``, or "".
        lower: over boxes and disjuncts, the least of the best lower bounds of ``A y - b``; None without bounds.
        witness: (inputs,), a violation in the float32 network; not replayed elsewhere.
        refused: stages that refused the network, and why.
    """

    verdict: Verdict
    stage: str
    lower: float | None
    witness: Values | None
    seconds: float
    refused: Mapping[str, str]


def settle(
    network: Network,
    specification: Specification,
    stages: Mapping[str, CertificationStage],
    attack: Attack | None,
    *,
    seed: int = 0,
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> Settled:
    """Attack, then bound, one box after the other, cheap stages first.

    Args:
        network: float32, on the CPU; its flat inputs and outputs are those of the specification, in row-major order.
        device: where attack and stages compute. Points that they find are replayed on the CPU.
        stop: asked between stages, and handed to stages that search; once it is true the verdict is ``timeout``.

    Returns:
        ``verified`` is proved for the real-valued network up to float64 rounding, see docs/soundness.md.

    Raises:
        BadInput: the specification is about a network of other sizes, or has too many constraints.
    """
    began = time.monotonic()
    check_fits(network, specification)
    run = _Run(network, stages, attack, seed, device, stop)
    lower: list[float] = []
    last = ""
    verdict: Verdict = "verified"
    for number, box in enumerate(specification.boxes):
        about = [disjunct for disjunct in specification.disjuncts if disjunct.box is box]
        witness = run.attacked(about, number)
        if witness is None:
            least, stage, witness = run.bounded(about)
            lower.append(least)
            last = max(last, stage, key=["", *stages].index)
            if not stage and verdict == "verified":
                verdict = "timeout" if stop() else "unknown"
        if witness is not None:
            seconds = time.monotonic() - began
            return Settled("falsified", run.found_by, None, witness, seconds, run.refused)
        if stop():
            verdict = "timeout" if number + 1 < len(specification.boxes) else verdict
            break
    least = min(lower, default=float("-inf"))
    bound = least if np.isfinite(least) else None
    stage = last if verdict == "verified" else ""
    return Settled(verdict, stage, bound, None, time.monotonic() - began, run.refused)


def check_fits(network: Network, specification: Specification) -> None:
    inputs = int(np.prod(network.input_shape))
    wanted = specification.inputs, specification.outputs
    if wanted != (inputs, network.classes):
        raise BadInput(
            f"the specification is for another network: it is about {wanted[0]} inputs and {wanted[1]} outputs, "
            f"the model has {inputs} and {network.classes}"
        )


@dataclass(eq=False)
class _Run:
    network: Network
    stages: Mapping[str, CertificationStage]
    attack: Attack | None
    seed: int
    device: str
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self.wide, self.attacked_network = self.network.to(PRECISION), self.network.to(self.device)
        self.refused: dict[str, str] = {}
        self.found_by = "attack"

    def attacked(self, about: Sequence[Disjunct], number: int) -> Values | None:
        """A violation that the attack finds; only float32 inputs inside the exact box count."""
        low, high = (torch.from_numpy(bound).float() for bound in inner(about[0].box, np.float32))
        if self.attack is None or self.stop() or bool((low > high).any()):
            return None
        shape = (1, *self.network.input_shape)
        box = Box(low.reshape(shape), high.reshape(shape))
        centre = box.clamp((box.lower + box.upper) / 2)
        rows = [tuple(torch.from_numpy(part).to(self.device) for part in disjunct.constraints) for disjunct in about]

        def logits(x: Tensor) -> Tensor:
            """0, and for each disjunct how far it is from being reached, negated."""
            y = self.attacked_network(x).double()
            far = [(y @ matrix.t() - bound).amax(1) for matrix, bound in rows]
            return -torch.stack([torch.zeros_like(far[0]), *far], 1).to(x.dtype)

        noise = Noise(self.seed, "specification", samples=torch.tensor([number]))
        label = torch.zeros(1, dtype=torch.long, device=self.device)
        found = self.attack.perturb(logits, centre.to(self.device), label, box.to(self.device), noise)
        self.found_by = "attack"
        return self._violation(about, torch.cat([box.clamp(found.detach().cpu()), centre]))

    @torch.no_grad()
    def _violation(self, about: Sequence[Disjunct], points: Tensor) -> Values | None:
        for x, y in zip(points.flatten(1).double().numpy(), self.network(points).double().numpy(), strict=True):
            if any(disjunct.inside(x) and disjunct.reached(y) for disjunct in about):
                return np.asarray(x)
        return None

    @torch.no_grad()
    def bounded(self, about: Sequence[Disjunct]) -> tuple[float, str, Values | None]:
        """The least of the disjuncts' best lower bounds; the stage after which none can be reached, or ""; a violation
        that a stage came across."""
        matrix, bound, owners = _rows(about)
        network = specified(self.wide, torch.from_numpy(matrix), torch.from_numpy(bound)).to(self.device)
        shape = (1, *self.network.input_shape)
        lower, upper = (torch.from_numpy(part).reshape(shape) for part in about[0].box.outer)
        label = torch.zeros(1, dtype=torch.long, device=self.device)
        best = torch.full((len(bound),), -torch.inf, dtype=PRECISION)
        least = -np.inf
        for name, stage in self.stages.items():
            if self.stop():
                break
            try:
                margins, points = self._ask(stage, network, Box(lower, upper).to(self.device), label)
            except BadInput as problem:
                self.refused[name] = str(problem).splitlines()[0]
                continue
            best = torch.maximum(best, torch.where(margins.isnan(), -torch.inf, margins)[0, 1:])
            size = best[best.isfinite()].abs().amax().clamp(min=1) if bool(best.isfinite().any()) else best.new_ones(())
            each = [best[rows].amax() for rows in owners]
            least = float(min(each))
            if least > ROUNDING * float(size):
                return least, name, None
            if points is not None:
                low, high = (torch.from_numpy(part).float().reshape(shape) for part in inner(about[0].box, np.float32))
                witness = self._violation(about, Box(low, high).clamp(points.float()))
                if witness is not None:
                    self.found_by = name
                    return least, "", witness
        return least, "", None

    def _ask(
        self, stage: CertificationStage, network: Network, box: Box, label: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Margins and points, on the CPU."""
        search = getattr(stage, "search", None)
        with plain_convolutions(self.device):
            if search is None:
                return stage.margins(network, box, label).cpu(), None
            found = search(network, box, label, self.stop)
        return found.margins.cpu(), None if found.points is None else found.points.cpu()


def _rows(about: Sequence[Disjunct]) -> tuple[Values, Values, list[list[int]]]:
    """All different constraints about one box, and for each disjunct the numbers of its own."""
    numbers: dict[tuple[bytes, float], int] = {}
    kept: list[tuple[Values, float]] = []
    owners = []
    for disjunct in about:
        own = []
        for row, bound in zip(*disjunct.constraints, strict=True):
            key = (row.tobytes(), float(bound))
            if key not in numbers:
                numbers[key] = len(kept)
                kept.append((row, float(bound)))
            own.append(numbers[key])
        owners.append(own)
    if len(kept) > MOST_ROWS:
        raise BadInput(f"the specification has {len(kept)} different constraints about one box; at most {MOST_ROWS}")
    return np.stack([row for row, _ in kept]), np.array([bound for _, bound in kept]), owners


def specified(network: Network, matrix: Tensor, bound: Tensor) -> Network:
    """A float64 network with outputs 0 and ``bound - matrix y``: the margins of output 0 are ``matrix y - bound``.

    Where the network ends in an affine layer both become one, so that what its outputs share cancels.
    """
    weight = torch.cat([matrix.new_zeros(1, matrix.shape[1]), -matrix])
    bias = torch.cat([bound.new_zeros(1), bound])
    *before, last = network.nodes
    if network.head is None:
        end = Node(Linear(weight, bias), (network.output,), (len(bias),), "specification")
        return Network((*network.nodes, end))
    joined = Linear(weight @ network.head.weight, weight @ network.head.bias + bias)
    return Network((*before, replace(last, op=joined, shape=(len(bias),))))
