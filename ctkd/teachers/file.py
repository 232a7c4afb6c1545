# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher from a safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.errors import BadInput
from ctkd.options import AbsolutePath, Options

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.propagate import Network


class FileTeacherOptions(Options):
    """The file, and the architecture its weights are for."""

    path: AbsolutePath
    """``network.safetensors`` of a run, or a state dict as safetensors."""
    model: str | None = None
    """For a state dict: the model's name; None is the student's model with the student's options."""


class FileTeacher:
    """Loads without executing code. Normalisation, if any, must be part of the model: pixels arrive in [0, 1]."""

    Options = FileTeacherOptions

    def __init__(self, options: FileTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Network:
        from ctkd.propagate.network import FORMAT, Network
        from ctkd.storage import read_tensors
        from ctkd.train.loop import finalise

        path = self.options.path
        tensors, metadata = read_tensors(path)
        if metadata.get("format") == FORMAT:
            return Network.load(path)
        module = context.build_model(self.options.model)
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"teacher.path={path}: the weights are for another architecture: {reason[:200]}") from None
        return finalise(module, context.data.input_shape)
