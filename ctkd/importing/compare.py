# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Does the imported network compute what onnxruntime makes of the model? Asked before anything is certified."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor

from ctkd.boxes import Box
from ctkd.errors import BadInput
from ctkd.importing.file import first_line
from ctkd.propagate import Network

TOLERANCE = 1e-4
"""Largest accepted difference of an output, times the largest output where that exceeds 1."""
BATCH = 7
POINTS = 28


@torch.no_grad()
def compare(model: onnx.ModelProto, network: Network, batch: int | None, box: Box | None, where: str) -> float:
    """The largest difference of an output on random points and corners of [0, 1], of [-3, 3], and of ``box``.

    Raises: BadInput if onnxruntime refuses the model, or computes something else.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for x in _points(network.input_shape, box):
            for part in torch.split(x, batch or BATCH):
                found = session.run(None, {name: part.numpy()})[0]
                largest = max(largest, _difference(np.asarray(found), network(part), where))
    except BadInput:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BadInput(f"{where} does not run in onnxruntime: {first_line(error)}") from None
    return largest


def _difference(found: np.ndarray, expected: Tensor, where: str) -> float:
    wanted = expected.double().numpy()
    if found.shape != wanted.shape:
        raise BadInput(f"{where} returns shape {found.shape} for a batch of {len(wanted)}; accepted: {wanted.shape}")
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        raise BadInput(f"{where} returns outputs that are not finite; nothing can be certified about them")
    difference = float(np.abs(found - wanted).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if difference > allowed:
        raise BadInput(
            f"{where}: what was read from the file differs from onnxruntime by {difference:.3g} in an output; at most "
            f"{allowed:.3g} is accepted. It is not certified, since the certificates would be about another network"
        )
    return difference


def _points(shape: tuple[int, ...], box: Box | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    boxes = [
        Box(torch.full((1, *shape), low), torch.full((1, *shape), high)) for low, high in ((0.0, 1.0), (-3.0, 3.0))
    ]
    found = []
    for part in (*boxes, *([box] if box is not None else [])):
        rows = torch.arange(POINTS) % len(part.lower)
        chosen = part[rows]
        share = torch.rand(chosen.lower.shape, generator=generator)
        found.append(chosen.clamp(chosen.lower + share * (chosen.upper - chosen.lower)))
        found.append(torch.where(torch.rand(share.shape, generator=generator) < 0.5, chosen.lower, chosen.upper))
    return found
