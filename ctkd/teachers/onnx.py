# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A teacher in ONNX: any classifier, by its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ctkd.options import AbsolutePath, Options

if TYPE_CHECKING:
    from ctkd.api import TeacherContext
    from ctkd.teaching import Teacher


class OnnxTeacherOptions(Options):
    """The file, and what it returns."""

    path: AbsolutePath
    """Takes float32 images in [0, 1], (batch, *input_shape); normalisation, if any, must be part of the model."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What the model returns."""


class OnnxTeacher:
    """Run by onnxruntime on the CPU: no features, and no gradients, so its adversarial accuracy is not known."""

    Options = OnnxTeacherOptions
    trains = False
    features = False

    def __init__(self, options: OnnxTeacherOptions) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> Teacher:
        from ctkd.teaching import OnnxModel, Teacher

        model = OnnxModel.read(self.options.path, context.data.input_shape)
        return Teacher((model,), probabilities=(self.options.outputs == "probabilities",))
