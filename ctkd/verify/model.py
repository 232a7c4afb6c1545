# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A network as onnxruntime computes it on the CPU: the reference that every witness is replayed with."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ctkd.errors import BadInput
from ctkd.vnnlib import Specification

TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


class Model:
    """One ONNX file.

    Attributes:
        path: the file.
        digest: SHA-256 of the file and of the data files that it names.
        dtype: of its input.
        shape: of its input; dimensions that it leaves open are 1.
        inputs, outputs: how many numbers go in and come out for one input.

    Raises:
        BadInput: onnxruntime refuses it, or it has several inputs or outputs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # results must not depend on the machine
        try:
            self.digest = _digest(path)
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # onnxruntime's and protobuf's exceptions share no base class of their own
            raise BadInput(f"{path} is refused by onnxruntime: {_first_line(error)}") from None
        needed, given = self._session.get_inputs(), self._session.get_outputs()
        if (len(needed), len(given)) != (1, 1):
            raise BadInput(f"{path} has {len(needed)} inputs and {len(given)} outputs; one of each is accepted")
        if needed[0].type not in TYPES:
            raise BadInput(f"{path} takes {needed[0].type}; accepted: {', '.join(TYPES)}")
        self._name, self.dtype = needed[0].name, TYPES[needed[0].type]
        self.shape = tuple(size if isinstance(size, int) and size > 0 else 1 for size in needed[0].shape)
        self.inputs = math.prod(self.shape)
        self.outputs = len(self(np.zeros(self.inputs)))

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The outputs (outputs,) at one input (inputs,), which is cast to ``dtype``.

        Raises: BadInput if onnxruntime fails.
        """
        try:
            found = self._session.run(None, {self._name: np.asarray(x, self.dtype).reshape(self.shape)})[0]
        except Exception as error:
            raise BadInput(f"{self.path} does not run in onnxruntime: {_first_line(error)}") from None
        return np.asarray(found, np.float64).reshape(-1)

    def check_fits(self, specification: Specification) -> None:
        """Raises: BadInput if the specification is about a network of other sizes."""
        wanted, found = (specification.inputs, specification.outputs), (self.inputs, self.outputs)
        if wanted != found:
            raise BadInput(
                f"the specification is for another network: it is about {wanted[0]} inputs and {wanted[1]} outputs, "
                f"{self.path.name} has {found[0]} and {found[1]}"
            )


def _digest(path: Path) -> str:
    data = path.read_bytes()
    value = hashlib.sha256(data)
    model = onnx.load_model_from_string(data)
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    for name in sorted({ExternalDataInfo(tensor).location for tensor in tensors}):
        value.update((path.parent / name).read_bytes())
    return value.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
