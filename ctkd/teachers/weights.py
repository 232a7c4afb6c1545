# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""State dicts from files, read without executing code, and the name maps of other projects."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctkd.errors import BadInput
from ctkd.models.blocks import Normalise
from ctkd.storage import read_tensors

NESTED = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep the state dict beside epoch, optimizer and the like."""
WRAPPERS = ("module.", "_orig_mod.", "layers.")
"""What DataParallel, torch.compile and CTBench's own Sequential put before every name."""
NORMALISATIONS = ({"mean", "std"}, {"mean", "sigma"})
"""How a normalisation layer's constants are called."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file or of a PyTorch checkpoint, and a safetensors file's metadata.

    Raises:
        BadInput: the file is missing, is damaged, holds no state dict, or would have to execute code to be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    pickled = head == b"PK" or head[:1] == b"\x80"
    tensors, metadata = (_unpickle(path), {}) if pickled else read_tensors(path)
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors, metadata


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols: what is wrong is said below, in one line
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is not None:
            raise BadInput(
                f"{path} wants to run code when it is read ({wanted[1]}), which ctkd never does; save the state dict "
                "alone: torch.save(model.state_dict(), ...)"
            ) from None
        raise _damaged(path, error) from None
    except Exception as error:  # a damaged file: anything may come out of the reader
        raise _damaged(path, error) from None
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(part, Tensor) for part in found.values()) or not found:
        what = (
            f"a mapping with {', '.join(map(repr, list(found)[:5]))}"
            if isinstance(found, Mapping)
            else type(found).__name__
        )
        raise BadInput(f"{path} holds no state dict (names to tensors, alone or under 'state_dict'), found {what}")
    return {str(name): tensor.detach() for name, tensor in found.items()}


def _damaged(path: Path, error: Exception) -> BadInput:
    # PyTorch's own reason follows a paragraph of advice, or comes before it.
    text = re.sub(r".*WeightsUnpickler error:", "", " ".join(str(error).split())).strip()
    reason = re.split(r"\. | Check the documentation", text)[0][:150] or type(error).__name__
    return BadInput(f"{path} is not a PyTorch checkpoint, or is damaged: {reason}")


# Weights by place ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer with weights: what it is, and its tensors by their last name."""

    path: str
    kind: str
    tensors: Mapping[str, Tensor]

    def __str__(self) -> str:
        weight = self.tensors["mean" if self.kind == "Normalisation" else "weight"]
        return f"{self.kind} {tuple(weight.shape)} ({self.path!r})"


def layers_of(tensors: Mapping[str, Tensor], setting: str) -> list[Layer]:
    """Group a state dict by layer. ``setting`` names the file in messages.

    In order of the numbers in the names where all are numbers, as those of ``nn.Sequential`` are (safetensors files
    do not keep an order), else in the file's order.

    Raises:
        BadInput: a layer is neither a convolution, fully connected, batch norm nor a normalisation.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, last = name.rpartition(".")
        groups.setdefault(place, {})[last] = tensor
    if all(part.isdecimal() for place in groups for part in place.split(".")):
        groups = dict(sorted(groups.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    return [Layer(place, _kind(place, group, setting), group) for place, group in groups.items()]


def _kind(place: str, group: Mapping[str, Tensor], setting: str) -> str:
    names = group.keys() - {"num_batches_tracked"}
    if names == {"weight", "bias", "running_mean", "running_var"}:
        return "BatchNorm"
    if names in NORMALISATIONS:
        return "Normalisation"
    if "weight" in names and names <= {"weight", "bias"} and group["weight"].dim() in (2, 4):
        return "Conv2d" if group["weight"].dim() == 4 else "Linear"
    raise BadInput(f"{setting}: layer {place!r} with {', '.join(sorted(group))} is none of a feed-forward network")


@torch.no_grad()
def assign(layers: Sequence[Layer], module: nn.Module, setting: str) -> None:
    """Copy layers into the module's convolutions, Linear and batch-norm layers, first to first, second to second.

    Raises:
        BadInput: a layer has another kind or shape than its counterpart, or one has no counterpart.
    """
    kinds = {nn.Conv2d: "Conv2d", nn.Linear: "Linear", nn.BatchNorm1d: "BatchNorm", nn.BatchNorm2d: "BatchNorm"}
    own = [(name, part) for name, part in module.named_modules() if type(part) in kinds]
    targets = [Layer(name, kinds[type(part)], part.state_dict(keep_vars=True)) for name, part in own]
    for i in range(max(len(layers), len(targets))):
        given, target = (found[i] if i < len(found) else None for found in (layers, targets))
        if given is None or target is None or not _fits(given, target):
            raise BadInput(
                f"{setting}: the weights are for another architecture: layer {i + 1} is "
                f"{given or 'missing'} in the file and {target or 'missing'} in the model"
            )
        for name, tensor in target.tensors.items():
            if name in given.tensors:
                tensor.copy_(given.tensors[name])
            elif name == "bias":
                tensor.zero_()


def _fits(given: Layer, target: Layer) -> bool:
    if given.kind != target.kind or not given.tensors.keys() <= target.tensors.keys():
        return False
    return all(tensor.shape == target.tensors[name].shape for name, tensor in given.tensors.items())


def normalises(module: nn.Module) -> list[Normalise]:
    """A model's own normalisation layers."""
    return [part for part in module.modules() if isinstance(part, Normalise)]


def normalised(module: nn.Module, mean: Tensor, std: Tensor) -> nn.Module:
    """The model behind ``(x - mean) / std``; one that normalises by itself does it with these numbers."""
    own = normalises(module)
    for part in own:
        part.mean.copy_(mean.reshape(-1, 1, 1))
        part.std.copy_(std.reshape(-1, 1, 1))
    if own:
        return module
    return nn.Sequential(Normalise(tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())), module)
