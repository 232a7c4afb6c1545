# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A trainer's state as tensors and plain values: what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ctkd.errors import BadInput
from ctkd.train.checkpoint import Checkpoint

if TYPE_CHECKING:
    from ctkd.train.loop import Trainer


def collect(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that the rest of the training depends on."""
    groups: dict[str, Mapping[str, Tensor]] = {
        "model": trainer.module.state_dict(),
        "optimizer": trainer.optimizer.state(),
        "average": {str(i): value for i, value in enumerate(trainer.average)},
        "learned": {str(i): value for i, value in enumerate(trainer.learned)},
        "best": trainer.best,
        "sum": trainer.sums,
    }
    if trainer.places is not None:
        groups["attacked"] = {"places": trainer.places.bytes, "known": trainer.places.known}
    tensors = {f"{group}/{name}": value for group, content in groups.items() for name, value in content.items()}
    values = {
        "step": trainer.step,
        "averaged": trainer.averaged,
        "seconds": trainer.seconds,
        "best": [trainer.best_value, trainer.best_epoch],
        "plugins": {role: part.state_dict() for role, part in trainer.plugins.stateful().items()},
    }
    return tensors, values


def restore(trainer: Trainer, found: Checkpoint) -> None:
    """The inverse of ``collect``. Raises: BadInput if the checkpoint is of another model."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in found.tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    try:
        trainer.module.load_state_dict(groups["model"])
    except RuntimeError as error:
        raise BadInput(
            f"{trainer.folder}: the checkpoint is for another model ({str(error).splitlines()[0]})"
        ) from None
    device = trainer.images.device
    average = groups.get("average", {})
    trainer.optimizer.restore(groups.get("optimizer", {}))
    trainer.average = [average[str(i)].to(device) for i in range(len(average))]
    for place, value in groups.get("learned", {}).items():
        trainer.learned[int(place)].data.copy_(value)
    trainer.best = {name: value.to(device) for name, value in groups.get("best", {}).items()}
    trainer.best_value, trainer.best_epoch = found.values["best"]
    trainer.sums = {name: value.to(device) for name, value in groups.get("sum", {}).items()}
    if trainer.places is not None:
        trainer.places.bytes.copy_(groups["attacked"]["places"])
        trainer.places.known.copy_(groups["attacked"]["known"])
    trainer.step, trainer.averaged = found.values["step"], found.values["averaged"]
    trainer.seconds = found.values["seconds"]
    for role, part in trainer.plugins.stateful().items():
        part.load_state_dict(found.values["plugins"][role])
