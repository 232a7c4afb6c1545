# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Does an ONNX model compute what its network computes? Asked of onnxruntime, before a file is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctkd.boxes import Box
from ctkd.errors import RunFailed

if TYPE_CHECKING:
    from ctkd.propagate import Network

TOLERANCE = 1e-4
"""Largest accepted difference of a logit, times the largest logit where that exceeds 1."""
BATCH = 7
"""The larger batch; odd, so that no literal batch size in a model fits it by chance."""
BATCHES = 4

Run = Callable[[NDArray[Any]], NDArray[Any]]


def runner(model: onnx.ModelProto) -> Run:
    """A function (batch, *input_shape) -> (batch, classes), float32, by onnxruntime on the CPU.

    Raises: RunFailed if onnxruntime refuses the model; so does the function if it refuses the input.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A fixed count also keeps onnxruntime from pinning threads to cores that a container may not use.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise RunFailed(f"onnxruntime refuses the exported model: {_first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(x: NDArray[Any]) -> NDArray[Any]:
        try:
            result: NDArray[Any] = session.run(None, {name: x})[0]
        except Exception as error:
            raise RunFailed(
                f"the exported model does not run on an input of shape {x.shape}: {_first_line(error)}"
            ) from error
        return result

    return run


@torch.no_grad()
def compare(model: onnx.ModelProto, network: Network, box: Box | None = None) -> float:
    """Check a model against its network: ONNX's full checker, then onnxruntime against torch.

    Both run on random points and random corners, one at a time and in a larger batch. The same box gives the
    same points.

    Args:
        box: boxes (batch, *input_shape), float32, to take points from; by default all of [0, 1].

    Returns:
        The largest difference of a logit that was seen.

    Raises:
        RunFailed: the model is not valid ONNX, does not run, or differs.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise RunFailed(f"the exported model is not valid ONNX: {_first_line(error)}") from error
    network = network.to("cpu")
    run = runner(model)
    largest = 0.0
    points = _points(network, box)
    for size in (1, BATCH):
        for x in torch.split(points, size):
            largest = max(largest, _difference(run(x.numpy()), network(x).numpy(), size))
    return largest


def _difference(found: NDArray[Any], expected: NDArray[Any], size: int) -> float:
    if found.shape != expected.shape:
        raise RunFailed(f"the exported model returns shape {found.shape} for a batch of {size}, not {expected.shape}")
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        raise RunFailed(f"logits are not finite for a batch of {size}; the network cannot be exported")
    difference = float(np.abs(found - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if difference > allowed:
        raise RunFailed(
            f"the exported model differs from the network by {difference:.3g} in a logit (batch of {size}); "
            f"at most {allowed:.3g} is accepted"
        )
    return difference


def _points(network: Network, box: Box | None) -> Tensor:
    """(2 * BATCH * BATCHES, *input_shape): points inside, then corners."""
    generator = torch.Generator().manual_seed(0)
    count = BATCH * BATCHES
    if box is None:
        box = Box(torch.zeros(1, *network.input_shape), torch.ones(1, *network.input_shape))
    rows = torch.arange(count) % box.lower.shape[0]
    lower, upper = box.lower.cpu()[rows], box.upper.cpu()[rows]
    share = torch.rand(lower.shape, generator=generator)
    inside = Box(lower, upper).clamp(lower + share * (upper - lower))
    corner = torch.where(torch.rand(lower.shape, generator=generator) < 0.5, lower, upper)
    return torch.cat([inside, corner])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
