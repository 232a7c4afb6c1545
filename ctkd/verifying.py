# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The contract of verifier plugins: what an external verifier is asked and what it answers.

A verifier gets an ONNX model and a VNN-LIB file, as they lie on the disk, and says whether the property holds. ctkd
believes no answer as it comes: a witness is replayed, a network is compared where the tool can be asked, verdicts are
held against each other and against ctkd's own certificates and attacks. So a plugin reports what its tool said,
and never repairs it. Plugins start programs by ``run_program``, which leaves none of their processes behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from ctkd.programs import Finished as Finished
from ctkd.programs import other_python as other_python
from ctkd.programs import run_program as run_program

Verdict = Literal["verified", "falsified", "unknown", "timeout", "error"]
"""``verified``: no input of the box violates the property (a tool's ``unsat``). ``falsified``: one does (``sat``).
``unknown``: the tool gave up by itself. ``timeout``: it ran out of time. ``error``: anything else, such as a model that
it cannot read or a crash; an error is never counted as undecided."""


@dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        model: the ONNX file: one input, one output, float32.
        specification: the VNN-LIB file; it describes the violation.
        timeout: seconds that the tool may use, its start included; whatever runs longer is ended and is a ``timeout``.
        scratch: an empty folder of this question's own, deleted afterwards; the tool's working directory, and the only
            place that it writes to.
    """

    model: Path
    specification: Path
    timeout: float
    scratch: Path


@dataclass(frozen=True)
class Answer:
    """What a tool said.

    Attributes:
        verdict: see ``Verdict``.
        witness: (inputs,), float64, in row-major order of the model's input: the violating input of ``falsified``;
            None where the tool gave none.
        seconds: the tool's own measure of its time, where it has one; ctkd takes the time of the call in any case.
        message: one line: why an ``error`` or ``unknown``; empty otherwise.
        log: what the tool printed.
    """

    verdict: Verdict
    witness: NDArray[Any] | None = None
    seconds: float | None = None
    message: str = ""
    log: str = ""


class Verifier(Protocol):
    """A tool that settles properties of networks; made from its validated options.

    Its methods may be called from several threads at once (``--jobs``).

    Optional members:
        ``formats``: the versions of VNN-LIB that it reads, best first; ``("1.0",)`` by default.
        ``witness_digits``: decimals to which it prints a witness; None, the default, if in full. A witness that is
            rounded may be moved by half a unit of the last decimal, into the box, before it is replayed.
        ``outputs(model, x)``: the tool's own logits at one input, (inputs,) to (outputs,), both float64; ctkd compares
            them with onnxruntime's before it asks anything about the model. For tools that can be asked. Raises
            RunFailed where it cannot be asked about this model.
    """

    def check(self) -> dict[str, str]:
        """Versions of the tool and of what it runs on, by name; stored with every answer.

        Raises:
            BadInput: it is not installed or cannot run here; the line says how to get it.
        """
        ...

    def verify(self, query: Query) -> Answer:
        """Ask the tool. Whatever the tool does wrong becomes an ``error``; raises only for a defect of the plugin."""
        ...
