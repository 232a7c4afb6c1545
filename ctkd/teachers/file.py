# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher from a file of weights: a run's network, or a state dict, also of other projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ctkd.errors import BadInput
from ctkd.options import AbsolutePath, Number, Options, Positive
from ctkd.teachers.trained import ModelName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ctkd.api import TeacherContext
    from ctkd.teaching import Teacher


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, int | float | str) else value


class FileTeacherOptions(Options):
    """The file, the architecture its weights are for, and what stands around it.

    ``names`` says how the file names the layers:

    ``own``: as the model does (``load_state_dict``).

    ``expressive-losses``: ``N.weight`` with N the place in a plain ``nn.Sequential``, batch norm included, images
    normalised outside of it. Its CNN-7 is conv 0, 3, 6, 9, 12, fully connected 16, 19, batch norm 1, 4, 7, 10, 13, 17.

    ``ctbench``: the same behind a normalisation layer, all in a module list: ``layers.0.mean``, ``layers.0.sigma``,
    ``layers.1.weight``, ...

    Both are matched by order and shape, so they work for every feed-forward model; strides and padding are the model's.
    """

    path: AbsolutePath
    """``network.safetensors`` of a run or its folder, or a state dict: safetensors, or .pt, .pth, .ckpt."""
    model: ModelName | None = None
    """For a state dict: the model's name; None is the student's model with the student's options."""
    names: Literal["own", "expressive-losses", "ctbench"] = "own"
    """``own``: as the model does. ``expressive-losses``: ``N.weight``, N the place in a plain nn.Sequential, images
    normalised outside. ``ctbench``: the same behind ``layers.0.mean`` and ``layers.0.sigma``. Both are
    matched by order and shape."""
    mean: Annotated[tuple[Number, ...], BeforeValidator(_several), Field(min_length=1)] | None = None
    """For weights that expect ``(x - mean) / std``: per channel, or one for all. MNIST there: 0 and 1; CIFAR-10: mean
    [0.4914, 0.4822, 0.4465], std [0.2023, 0.1994, 0.2010]."""
    std: Annotated[tuple[Positive, ...], BeforeValidator(_several), Field(min_length=1)] | None = None
    """See ``mean``."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What the model returns."""

    @model_validator(mode="after")
    def _normalisation(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        if self.names == "expressive-losses" and self.mean is None:
            raise ValueError(
                "names = expressive-losses needs mean and std, which such files do not hold: MNIST 0 and 1, CIFAR-10 "
                "[0.4914, 0.4822, 0.4465] and [0.2023, 0.1994, 0.2010]"
            )
        if self.names == "ctbench" and self.mean is not None:
            raise ValueError("names = ctbench takes mean and std from the file; leave them out")
        return self


class FileTeacher:
    """Loads without executing code. Pixels arrive in [0, 1]; a normalisation becomes part of the network."""

    Options = FileTeacherOptions
    trains = False

    def __init__(self, options: FileTeacherOptions) -> None:
        self.options = options

    @property
    def features(self) -> bool:
        return self.options.outputs == "logits"

    def obtain(self, context: TeacherContext) -> Teacher:
        from ctkd.propagate.network import FORMAT, Network
        from ctkd.teachers.weights import normalised, normalises, read_weights
        from ctkd.teaching import Teacher
        from ctkd.train.finish import finalise

        options = self.options
        path = options.path / "network.safetensors" if options.path.is_dir() else options.path
        setting = f"{context.role}.path={path}"
        if path.suffix == ".onnx":
            raise BadInput(f"{setting}: an ONNX file is read by --teacher onnx")
        tensors, metadata = read_weights(path)
        probabilities = (options.outputs == "probabilities",)
        if metadata.get("format") == FORMAT:
            if options.names != "own" or options.mean is not None:
                raise BadInput(f"{setting} is a network of ctkd: leave out {context.role}.names, mean and std")
            return Teacher((Network.load(path),), probabilities=probabilities)
        module = context.build_model(options.model)
        normalisation = self._fill(module, tensors, setting)
        if normalisation is not None:
            if options.names == "own" and normalises(module):
                raise BadInput(f"{setting}: the model normalises by itself: leave out {context.role}.mean and std")
            channels = context.data.input_shape[0]
            for name, values in zip(("mean", "std"), normalisation, strict=True):
                if values.numel() not in (1, channels):
                    raise BadInput(
                        f"{context.role}.{name}: {values.numel()} values for images of {channels} "
                        f"channel{'s' if channels > 1 else ''}"
                    )
            module = normalised(module, *normalisation)
        return Teacher((finalise(module, context.data.input_shape),), probabilities=probabilities)

    def _fill(self, module: nn.Module, tensors: dict[str, Tensor], setting: str) -> tuple[Tensor, Tensor] | None:
        """Load the weights; returns mean and std, of the options or of the file, if there are any.

        ``setting``: the file as the configuration names it, for messages.
        """
        import torch

        from ctkd.teachers.weights import assign, layers_of

        options = self.options
        given = None
        if options.mean is not None and options.std is not None:
            given = torch.tensor(options.mean), torch.tensor(options.std)
        if options.names == "own":
            try:
                module.load_state_dict(tensors)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise BadInput(f"{setting}: the weights are for another architecture: {reason[:200]}") from None
            return given
        layers = layers_of(tensors, setting)
        if options.names == "ctbench":
            first = layers[0] if layers else None
            if first is None or first.kind != "Normalisation":
                raise BadInput(f"{setting}: names = ctbench expects a normalisation first, found {first}")
            deviation = first.tensors["sigma"] if "sigma" in first.tensors else first.tensors["std"]
            given, layers = (first.tensors["mean"], deviation), layers[1:]
        assign(layers, module, setting)
        return given
