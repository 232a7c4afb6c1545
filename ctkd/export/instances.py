# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A folder of verification instances in the competition's layout: ONNX, VNN-LIB files, instances.csv."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput, Contradiction, RunFailed
from ctkd.export.check import Run, compare, runner
from ctkd.export.folder import folder_problems, whole_folder
from ctkd.export.generate_properties import positional
from ctkd.export.onnx_writer import to_onnx
from ctkd.export.vnnlib import RobustnessProperty, read_vnnlib, write_vnnlib
from ctkd.storage import write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import onnx
    from numpy.typing import NDArray

    from ctkd.propagate import Network

CORNERS = 64
"""How many random corners of a certified box are replayed."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ExportReport:
    """What was written and checked.

    Attributes:
        folder: the finished folder; paths below are relative to it, with forward slashes.
        model: the ONNX file.
        specifications: one VNN-LIB file per instance, in the order of instances.csv.
        replayed: how many instances claimed certified were tried at corners and centre, without a violation.
        difference: largest difference of a logit between onnxruntime and torch.
        timeouts: sum of the instances' timeouts in seconds.
    """

    folder: Path
    model: str
    specifications: tuple[str, ...]
    replayed: int
    difference: float
    timeouts: float


def export_instances(
    network: Network,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    indices: Sequence[int],
    eps: float,
    folder: Path,
    *,
    name: str,
    timeout: float,
    certified: Collection[int] = (),
) -> ExportReport:
    """Write ``onnx/NAME.onnx``, ``vnnlib/NAME_epsE_idxI.vnnlib`` and ``instances.csv``, and check them.

    An image's box is ``perturbation_box(image, eps)``; each file is read back and holds it bit for bit.

    Args:
        images: (n, *input_shape), float32, in [0, 1].
        labels: (n,), the class that has to win.
        indices: (n,), each image's number in its data set; it appears in the file name.
        eps: L-infinity radius in pixel units, in [0, 1].
        folder: must not exist yet, or be empty. It appears whole or not at all.
        name: letters, digits, ``.``, ``_`` and ``-``.
        timeout: seconds per instance, finite and above 0.
        certified: those of ``indices`` that a certificate exists for.

    Raises:
        BadInput: one line per mistake in the arguments, or per layer that cannot be exported.
        Contradiction: an instance claimed certified has a counterexample at its image or at a random corner.
        RunFailed: the model differs from the network, or a file does not read back as it was written.
    """
    folder = Path(folder).resolve()
    classes = [int(label) for label in labels]
    numbers = [int(index) for index in indices]
    problems = [
        *image_problems(network, images),
        *sample_problems(network, images, classes, numbers, certified),
        *naming_problems(eps, name),
        *_timeout_problems(timeout),
        *folder_problems(folder),
    ]
    if problems:
        raise BadInput(*problems)
    images = images.detach().cpu()
    model = to_onnx(network)
    box = perturbation_box(images, eps)
    difference = compare(model, network, box)
    properties = [
        RobustnessProperty(_flat(box.lower[k]), _flat(box.upper[k]), label, network.classes)
        for k, label in enumerate(classes)
    ]
    wanted = set(certified)
    claimed = [k for k, index in enumerate(numbers) if index in wanted]
    run = runner(model)
    for k in claimed:
        replay(run, images[k], box[k : k + 1], classes[k], numbers[k], eps)

    model_path = f"onnx/{name}.onnx"
    paths = [f"vnnlib/{name}_eps{positional(eps)}_idx{index}.vnnlib" for index in numbers]
    _write_folder(folder, model, model_path, dict(zip(paths, properties, strict=True)), eps, timeout)
    return ExportReport(folder, model_path, tuple(paths), len(claimed), difference, timeout * len(paths))


def _flat(tensor: Tensor) -> NDArray[Any]:
    return tensor.reshape(-1).numpy()


def image_problems(network: Network, images: Tensor) -> list[str]:
    """What is wrong with the images themselves."""
    problems = []
    if images.dtype != torch.float32:
        problems.append(f"images are {images.dtype}; boxes are made from float32 images")
    if tuple(images.shape[1:]) != network.input_shape or not len(images):
        wanted = ", ".join(("n", *map(str, network.input_shape)))
        problems.append(f"images have shape {tuple(images.shape)}; the network takes ({wanted}), n >= 1")
    if images.numel() and not ((images >= 0) & (images <= 1)).all():
        problems.append("images must lie in [0, 1]; normalisation belongs inside the network")
    return problems


def sample_problems(
    network: Network, images: Tensor, labels: list[int], indices: list[int], certified: Collection[int]
) -> list[str]:
    """What is wrong with what is said about the images."""
    problems = []
    if not len(images) == len(labels) == len(indices):
        problems.append(f"{len(images)} images, {len(labels)} labels and {len(indices)} indices; need as many of each")
    strange = sorted({label for label in labels if not 0 <= label < network.classes})
    if strange:
        problems.append(f"labels {strange} are outside of 0 to {network.classes - 1}")
    if len(set(indices)) != len(indices) or min(indices, default=0) < 0:
        problems.append("indices must be different from each other and not negative")
    unknown = sorted(set(certified) - set(indices))
    if unknown:
        problems.append(f"certified names {unknown}, which are not among the indices to export")
    return problems


def naming_problems(eps: float, name: str) -> list[str]:
    """What is wrong with the parts of file names."""
    problems = []
    if not 0 <= eps <= 1:
        hint = f", did you mean {eps:g}/255?" if 1 < eps <= 255 else ""
        problems.append(f"eps={eps:g} is outside [0, 1]; radii are in raw pixel units{hint}")
    if not NAME.fullmatch(name):
        problems.append(
            f"name {name!r} is not usable in instances.csv; accepted: letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return problems


def _timeout_problems(timeout: float) -> list[str]:
    right = math.isfinite(timeout) and timeout > 0
    return [] if right else [f"timeout={timeout:g} must be a finite number of seconds above 0"]


def replay(run: Run, image: Tensor, box: Box, label: int, index: int, eps: float) -> None:
    """Try the image and random corners of its box; the corners depend on nothing but the index.

    Raises: Contradiction if one of them violates the property of a sample that is claimed certified.
    """
    generator = torch.Generator().manual_seed(index)
    upwards = torch.rand((CORNERS, *image.shape), generator=generator) < 0.5
    points = torch.cat([image[None], torch.where(upwards, box.upper, box.lower)])
    logits = run(points.numpy())
    margins = np.delete(logits[:, label : label + 1] - logits, label, axis=1).min(axis=1)
    violated = ~(margins > 0)  # also where a margin is not a number
    if violated.any():
        k = int(violated.argmax())
        raise Contradiction(
            f"sample {index} is claimed certified for class {label} at eps={eps:g}, but "
            f"{'a corner of its box' if k else 'the image itself'} has margin {margins[k]:.6g} in onnxruntime"
        )


def _write_folder(
    folder: Path,
    model: onnx.ModelProto,
    model_path: str,
    properties: dict[str, RobustnessProperty],
    eps: float,
    timeout: float,
) -> None:
    """Write everything, and read everything back."""
    seconds = format(Decimal(repr(float(timeout))).normalize(), "f")
    with whole_folder(folder) as building:
        for part in ("onnx", "vnnlib"):
            (building / part).mkdir()
        data = model.SerializeToString(deterministic=True)
        write_bytes(building / model_path, data)
        for path, prop in properties.items():
            write_text(building / path, write_vnnlib(prop, eps=eps))
        write_text(building / "instances.csv", "".join(f"{model_path},{path},{seconds}\n" for path in properties))
        if (building / model_path).read_bytes() != data:
            raise RunFailed(f"{model_path} does not read back as it was written")
        for path, prop in properties.items():
            if not read_vnnlib((building / path).read_bytes().decode()).identical(prop):
                raise RunFailed(f"{path} does not read back as the box that was certified")
