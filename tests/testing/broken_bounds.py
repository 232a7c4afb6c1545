# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bound methods as strangers write them: one that keeps the contract, and many that break one part of it each."""

from __future__ import annotations

import os
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from ctkd.api import Box, BoxContext, Enclosure, Needs, Schedule, Step, cross_entropy, full_box
from ctkd.options import Options, Unit


class GoodOptions(Options):
    """How the two losses are mixed."""

    alpha: Unit = 0.5
    """Weight of the box."""


class Good:
    """Clean loss and interval loss, mixed; it counts its steps."""

    Options: type[Options] = GoodOptions
    evaluates = frozenset({"point", "box"})
    sound = False
    point = "clean"

    def __init__(self, options: Any) -> None:
        self.options = options
        self.steps = 0

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(points=frozenset({"clean"}), boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        self.steps += 1
        share = self.options.alpha / self.steps
        return (1 - share) * step.loss(step["clean"]) + share * step.loss(step["full"])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.steps = values["steps"]


class Interval:
    """IBP, the base of most of what follows."""

    Options: type[Options] = Options
    evaluates = frozenset({"box"})
    sound = True

    def __init__(self, options: Any) -> None:
        self.options = options

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"])


def smaller(context: BoxContext) -> Box:
    tenth = 0.1 * (context.box.upper - context.box.lower)
    return Box(context.box.lower + tenth, context.box.upper - tenth)


class SmallBox(Interval):
    def needs(self, schedule: Schedule) -> Needs:
        return Needs(boxes={"full": smaller})


class HairTooTight(Interval):
    """A thousandth off the upper bounds of neurons."""

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(boxes={"full": full_box}, tighten=lambda op, low, high: (low, high - 1e-3 * (high - low)))


class WrongBox(Interval):
    """Margins that are no bounds, under the name of a box."""

    sound = False

    def combine(self, step: Step) -> Tensor:
        box = step["full"]
        assert box.margins is not None
        return step.loss(box.with_margins(box.margins + 0.5))


class Detached(Interval):
    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"]).detach()


class WrongShape(Interval):
    def combine(self, step: Step) -> Tensor:
        margins = step["full"].margins
        assert margins is not None
        return margins + step.loss(step["full"])[:, None]


class NotANumber(Interval):
    """Divides by the width of what goes into the features, which may be 0."""

    sound = False

    def combine(self, step: Step) -> Tensor:
        radius = step["full"].radius
        assert radius is not None
        return step.loss(step["full"]) + (radius / radius.detach()).mean(1)


class Explodes(Interval):
    """Divides by the radius."""

    sound = False

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"]) * (1 + 1e-9 / step.schedule.eps)


class GlobalNoise(Interval):
    sound = False

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"]) * (1 + torch.rand(()).item())


class WrongKinds(Interval):
    evaluates = frozenset({"box", "point"})


class Undeclared(Interval):
    sound = False

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"]) + step.loss(step["clean"])


class UnaskedPoint(Interval):
    sound = False

    def needs(self, schedule: Schedule) -> Needs:
        return Needs(boxes={"full": lambda context: Box(context.points["adversarial"], context.box.upper)})


class OwnLoss(Interval):
    """A loss of its own that it does not declare, on half of the network."""

    def combine(self, step: Step) -> Tensor:
        box = step["full"]
        assert box.margins is not None
        own = Enclosure(box.inputs, "box", box.centre, box.radius, None, loss=cross_entropy(box.margins))
        return step.loss(own)


class FrozenHead(Interval):
    """The last layer gets no gradient."""

    sound = False

    def combine(self, step: Step) -> Tensor:
        box, head = step["full"], step.network.head
        assert box.centre is not None
        assert head is not None
        logits = box.centre @ head.weight.detach().T
        own = logits.gather(1, step.labels[:, None]) - logits
        return step.loss(box.estimated(cross_entropy(own))) * 1.0

    evaluates = frozenset({"mixed"})
    own_loss = True


class ForgetsItsState(Good):
    """State that checkpoints do not hold."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattribute__(name)


class RoundsItsState(Good):
    def combine(self, step: Step) -> Tensor:
        self.steps += 0.25  # type: ignore[assignment]
        return step.loss(step["clean"]) * (1 + self.steps) + step.loss(step["full"])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": round(self.steps)}


class TensorState(Good):
    def state_dict(self) -> dict[str, Any]:
        return {"steps": torch.tensor(self.steps)}


class SetsThreads(Interval):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        torch.set_num_threads(2)


class SetsDtype(Interval):
    def combine(self, step: Step) -> Tensor:
        torch.set_default_dtype(torch.float64)
        os.environ["MY_METHOD"] = "1"
        return super().combine(step)


class WritesWeights(Interval):
    """Clips the weights while it looks at them."""

    sound = False

    def combine(self, step: Step) -> Tensor:
        with torch.no_grad():
            for node in step.network.nodes:
                for _, tensor in node.op.tensors() if node.op else ():
                    tensor.detach().mul_(0.999)
        return step.loss(step["full"])


class Raises(Interval):
    def combine(self, step: Step) -> Tensor:
        raise ZeroDivisionError("my table is empty")


class SilentOptions(Options):
    """Says nothing."""

    alpha: Unit = 0.5


class Undocumented(Interval):
    Options = SilentOptions


class LooseOptions(Options):
    """Takes anything."""

    model_config = ConfigDict(frozen=False, extra="ignore")
    alpha: Unit = 0.5
    """Weight of nothing."""


class Loose(Interval):
    Options = LooseOptions


class ListOptions(Options):
    """Holds a list."""

    weights: list[float] = [0.5, 0.5]  # noqa: RUF012
    """Of two things."""


class Mutable(Interval):
    Options = ListOptions


class NamedOptions(Options):
    """Takes the reserved name."""

    name: str = "x"
    """Of something."""


class Named(Interval):
    Options = NamedOptions


GOOD = {"good": Good, "interval": Interval}
BROKEN = (
    SmallBox,
    HairTooTight,
    WrongBox,
    Detached,
    WrongShape,
    NotANumber,
    Explodes,
    GlobalNoise,
    WrongKinds,
    Undeclared,
    UnaskedPoint,
    OwnLoss,
    FrozenHead,
    ForgetsItsState,
    RoundsItsState,
    TensorState,
    SetsThreads,
    SetsDtype,
    WritesWeights,
    Raises,
    Undocumented,
    Loose,
    Mutable,
    Named,
)
