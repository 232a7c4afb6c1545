# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What can be refused before anything runs or is written."""

from __future__ import annotations

from typing import Any

import torch

from ctkd.api import Data
from ctkd.attribution import label
from ctkd.boxes import perturbation_box
from ctkd.certify.device import certifying_device
from ctkd.certify.settling import PRECISION
from ctkd.config import RunConfig
from ctkd.errors import BadInput, RunFailed
from ctkd.export import to_onnx
from ctkd.machine import device_problem
from ctkd.options import Options
from ctkd.plugins import create_from
from ctkd.progress import Reporter
from ctkd.propagate import Network, trace
from ctkd.propagate.ops import Function
from ctkd.session import sample_range
from ctkd.settings import nth
from ctkd.train.finish import finalise
from ctkd.train.parts import check_whole
from ctkd.train.places import check_still


def check_devices(config: RunConfig) -> None:
    """That of the training, and that of its certification."""
    if (problem := device_problem(config.train.device)) is not None:
        raise BadInput(f"train.device={config.train.device}: {problem}")
    certifying_device(config)


def check_precision(config: RunConfig) -> None:
    if config.train.precision == "bf16" and config.propagation.name != "native":
        raise BadInput(
            f"train.precision=bf16 needs propagation.name=native, which alone computes in bfloat16; "
            f"{config.propagation.name} works with fp32 and mixed"
        )


def check_student(config: RunConfig, data: Data, reporter: Reporter) -> None:
    """Everything that can be refused is refused here, before a folder is made."""
    sample_range(data, config.certify)
    size = len(getattr(data, config.certify.split))
    if config.export.samples > size:
        raise BadInput(f"export.samples={config.export.samples}: the {config.certify.split} split has {size} samples")
    check_whole(config.train)
    for role, options in (("attack", config.attack.options), *_teacher_options(config)):
        if getattr(options, "warm_start", False):
            check_still(data, f"{role}.warm_start=true")
    module = config.model.create().build(data.input_shape, data.classes)
    if not isinstance(module, torch.nn.Module):
        raise RunFailed(
            f"build of {label(config.model.entry)} returned {type(module).__name__}; it must return a torch.nn.Module"
        )
    graph = config.propagation.create().trace(module, data.input_shape)
    if graph.classes != data.classes:
        raise BadInput(
            f"model {config.model.name!r} has {graph.classes} outputs, data set {data.name!r} {data.classes} classes"
        )
    student = graph.bind()
    if config.distill.create().needs_features and config.taught and student.features_node is None:
        raise BadInput(
            f"distill.name={config.distill.name} reads features, the input of a last Linear layer, "
            "and the student's network does not end in one"
        )
    if (check_method := getattr(config.bound.create(), "check", None)) is not None:
        check_method(student)
    network = finalise(module, data.input_shape)
    if any(isinstance(node.op, Function) for node in network.nodes):
        _check_stages(config, network, data)
    try:
        to_onnx(network)
    except BadInput as problem:
        for message in problem.messages:
            reporter.warn(f"this student can be trained and certified, but not exported: {message}")


def _teacher_options(config: RunConfig) -> list[tuple[str, Options]]:
    return [(nth("teacher", i), choice.options) for i, choice in enumerate(config.teachers, start=1)]


def _check_stages(config: RunConfig, network: Network, data: Data) -> None:
    """Let each certification stage refuse a network that has more than every engine bounds, before it is trained."""
    x, labels = data.test.images[:1], data.test.labels[:1]
    for table in config.certify.stages:
        try:
            create_from("stage", table).margins(network.to(PRECISION), perturbation_box(x, 0).to(PRECISION), labels)
        except BadInput as problem:
            raise BadInput(*(f"certify.stages: {table['name']}: {line}" for line in problem.messages)) from None


def check(model: str, input_shape: str | tuple[int, ...], classes: int = 10) -> dict[str, Any]:
    """Say whether a model can be bounded: what ``ctkd check`` does.

    Args:
        model: a registered name, or ``pkg.mod:factory``.
        input_shape: without the batch dimension; also as text, ``"1,28,28"``.
        classes: for models that ask.

    Returns:
        ``layers``: one entry per layer of the folded network: path, op, shape. ``export_problems``: why it cannot be
        exported, empty if it can.

    Raises:
        BadInput: one line per layer that cannot be bounded.
    """
    if isinstance(input_shape, str):
        try:
            input_shape = tuple(int(part) for part in input_shape.replace("x", ",").split(","))
        except ValueError:
            raise BadInput(f"--input {input_shape}: write sizes such as 1,28,28") from None
    if min(input_shape) < 1 or classes < 1:
        raise BadInput(f"--input {input_shape}, --classes {classes}: sizes must be at least 1")
    try:
        table = {"name": "import", "factory": model} if ":" in model else {"name": model}
        module = create_from("model", table).build(input_shape, classes)
        trace(module, input_shape)
        network = finalise(module, input_shape)
    except (RuntimeError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadInput(f"{model} cannot be built for inputs of shape {input_shape}: {reason}") from None
    layers = [
        {"path": node.path, "op": type(node.op).__name__ if node.op else "Input", "shape": list(node.shape)}
        for node in network.nodes
    ]
    try:
        to_onnx(network)
    except BadInput as problem:
        return {"layers": layers, "export_problems": list(problem.messages)}
    return {"layers": layers, "export_problems": []}
