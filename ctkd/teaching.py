# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A frozen teacher: one network or several, bound networks or ONNX files, as one function of images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ctkd.api import TeacherOutputs
from ctkd.errors import BadInput
from ctkd.propagate import Network
from ctkd.storage import write_bytes


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A classifier in ONNX, run by onnxruntime on the CPU: logits without features or gradients.

    ``batch``: the only batch size it takes, for models that were exported with one; None for any.
    """

    content: bytes = field(repr=False)
    session: Any = field(repr=False)
    input_shape: tuple[int, ...]
    classes: int
    batch: int | None = None

    @staticmethod
    def read(path: Path, input_shape: tuple[int, ...]) -> OnnxModel:
        """Raises: BadInput if the file is no ONNX classifier for such inputs."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
        size = 2
        try:
            session = _session(content)
            shape: list[int | str | None] = session.get_inputs()[0].shape
            batch = next((size for size in shape[:1] if isinstance(size, int) and size > 0), None)
            size = batch or size
            found = OnnxModel(content, session, input_shape, 0, batch).raw(torch.zeros(size, *input_shape))
        except Exception as error:  # onnxruntime raises types of its own
            reason = " ".join(str(error).split())
            wanted = f"float32 images of shape (batch, {', '.join(map(str, input_shape))})"
            raise BadInput(f"{path} is not an ONNX model that takes {wanted}: {reason[:200]}") from None
        if found.dim() != 2 or found.shape[0] != size or not found.dtype.is_floating_point:
            raise BadInput(
                f"{path} must return logits of shape (batch, classes); for {size} image{'s' if size > 1 else ''} of "
                f"shape {input_shape} it returned {tuple(found.shape)} as {str(found.dtype).removeprefix('torch.')}"
            )
        return OnnxModel(content, session, input_shape, found.shape[1], batch)

    def raw(self, x: Tensor) -> Tensor:
        """What one run of the model gives for a batch that it takes."""
        images = x.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self.session.run(None, {self.session.get_inputs()[0].name: images})[0])

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, classes), in the images' own type and on their device."""
        if self.batch is None:
            return self.raw(x).to(x)
        missing = -len(x) % self.batch
        padded = torch.cat([x, x.new_zeros(missing, *self.input_shape)]) if missing else x
        return torch.cat([self.raw(part) for part in torch.split(padded, self.batch)])[: len(x)].to(x)

    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: Path) -> None:
        write_bytes(path, self.content)


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; it need not be printed, too
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


Average = Literal["probabilities", "logits"]


@dataclass(frozen=True, eq=False)
class Teacher:
    """One or several frozen classifiers of the same inputs and classes.

    Attributes:
        members: at least one. Features exist only where there is one bound network that ends in a Linear layer.
        average: several members answer with the logarithm of their mean probabilities, or with their mean logits.
        probabilities: for each member, whether it returns probabilities, whose logarithms are then taken as logits;
            none does by default.
    """

    members: tuple[Network | OnnxModel, ...]
    average: Average = "probabilities"
    probabilities: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("a teacher needs at least one network")
        flags = self.probabilities or (False,) * len(self.members)
        if len(flags) != len(self.members):
            raise ValueError(
                f"probabilities = {flags} must say for each of {len(self.members)} members what it returns"
            )
        object.__setattr__(self, "probabilities", flags)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.members[0].input_shape

    @property
    def classes(self) -> int:
        return self.members[0].classes

    @property
    def network(self) -> Network | None:
        """The one bound network that the teacher is, if it is one."""
        only = self.members[0]
        return only if len(self.members) == 1 and isinstance(only, Network) and not self.probabilities[0] else None

    @property
    def differentiable(self) -> bool:
        """Whether it can be attacked by gradients."""
        return all(isinstance(member, Network) for member in self.members)

    @property
    def feature_shape(self) -> tuple[int, ...] | None:
        """The shape of the features, the input of the last Linear layer; None where there are none."""
        tap = None if self.network is None else self.network.features_node
        return None if tap is None or self.network is None else self.network.nodes[tap].shape

    def to(self, device: str) -> Teacher:
        moved = tuple(m.detach().to(torch.device(device)) if isinstance(m, Network) else m for m in self.members)
        return Teacher(moved, self.average, self.probabilities)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, (batch, classes); with gradients where ``differentiable``."""
        found = [
            _logarithm(member(x)) if flag else member(x)
            for member, flag in zip(self.members, self.probabilities, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        if self.average == "logits":
            return torch.stack(found).mean(0)
        return torch.stack([part.log_softmax(1) for part in found]).logsumexp(0)  # up to a constant, log n

    @torch.no_grad()
    def outputs(self, x: Tensor) -> TeacherOutputs:
        """Logits and features at a batch of images, without gradient."""
        network = self.network
        if network is None or network.features_node is None:
            return TeacherOutputs(self(x), None)
        features, logits = network.evaluate(x, network.features_node, network.output)
        return TeacherOutputs(logits, features)

    def sha256(self) -> str:
        """A fingerprint of all members and of how they are averaged."""
        if self.network is not None:
            return self.network.sha256()
        parts = [member.sha256() for member in self.members]
        return hashlib.sha256(f"{self.average} {self.probabilities} {parts}".encode()).hexdigest()

    # Storage ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the members into ``folder``; returns the record by which ``load`` finds them."""
        files = []
        for i, member in enumerate(self.members, start=1):
            kind = "safetensors" if isinstance(member, Network) else "onnx"
            name = f"network.{kind}" if len(self.members) == 1 else f"network-{i}.{kind}"
            member.save(folder / name)
            files.append(name)
        return {"files": files, "average": self.average, "probabilities": list(self.probabilities)}

    @staticmethod
    def load(folder: Path, record: dict[str, Any], input_shape: tuple[int, ...]) -> Teacher:
        """Raises: BadInput if a file is missing or damaged."""
        members = tuple(
            OnnxModel.read(folder / name, input_shape) if name.endswith(".onnx") else Network.load(folder / name)
            for name in record["files"]
        )
        return Teacher(members, record["average"], tuple(record["probabilities"]))


def _logarithm(probabilities: Tensor) -> Tensor:
    """Finite where a probability is 0, too."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
