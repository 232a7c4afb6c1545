# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ctkd's own attack and certification stages as a verifier, for any network that the import reads."""

from __future__ import annotations

import importlib.util
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ctkd.errors import BadInput
from ctkd.options import Count, Index, Options, PluginTables, Positive
from ctkd.verifying import Answer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ctkd.importing import Imported
    from ctkd.verifying import Query


class OwnOptions(Options):
    """Which stages, and how hard the attack tries before them."""

    stages: Annotated[PluginTables, Field(min_length=1)] = ("ibp", "crown-ibp", "crown")  # type: ignore[assignment]
    """Certification stages, cheap to tight, by name or as tables."""
    attack_steps: Count = 40
    """PGD steps of each restart."""
    attack_restarts: Count = 4
    """Random starting points of the attack."""
    attack_step_size: Positive = 0.1
    """Relative to the box's half-width."""
    seed: Index = 0
    """Of the starting points."""
    device: str = "cpu"
    """Where attack and bounds are computed, as PyTorch names devices; on a GPU one question at a time."""


class Own:
    """PGD, then the stages. It runs inside ctkd's own process: the time is looked at between stages only, and inside
    those that search.

    ``verified`` is proved about the real-valued network of the ONNX file, up to float64 rounding. It answers
    ``unknown`` where neither attack nor stages settle the question.
    """

    Options = OwnOptions

    def __init__(self, options: OwnOptions) -> None:
        self.options = options
        self.formats = ("1.0", "2.0") if importlib.util.find_spec("vnnlib") else ("1.0",)
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._read: tuple[tuple[Path, int, int], Imported] | None = None

    def check(self) -> dict[str, str]:
        import torch

        from ctkd.machine import certifying_problem, device_name
        from ctkd.plugins import create_from

        if (problem := certifying_problem(self.options.device)) is not None:
            raise BadInput(f"ctkd.device={self.options.device}: {problem}")
        for table in self.options.stages:  # one that there is not, or with wrong options, is a mistake and no answer
            create_from("stage", table)
        gpu = {} if self._on_cpu else {"device": device_name(self.options.device)}
        return {"torch": torch.__version__, **gpu}

    @property
    def _on_cpu(self) -> bool:
        return self.options.device == "cpu"

    def verify(self, query: Query) -> Answer:
        if self._on_cpu:
            return self._settled(query)
        from ctkd.machine import full_precision

        with self._turn, full_precision():  # settings of the whole process
            return self._settled(query)

    def _settled(self, query: Query) -> Answer:
        from ctkd.certify.specified import settle
        from ctkd.plugins import create_from
        from ctkd.vnnlib import read_specification

        end = time.monotonic() + query.timeout
        options = self.options
        pgd = {
            "name": "pgd",
            "objective": "margin",
            "steps": options.attack_steps,
            "restarts": options.attack_restarts,
            "step_size": options.attack_step_size,
        }
        try:
            network = self._import(query.model).network
            specification = read_specification(query.specification)
            stages = {table["name"]: create_from("stage", table) for table in options.stages}
            found = settle(
                network,
                specification,
                stages,
                create_from("attack", pgd),
                seed=options.seed,
                device=options.device,
                stop=lambda: time.monotonic() > end,
            )
        except BadInput as problem:
            return Answer("error", message=problem.messages[0])
        settled = f"settled by {found.stage}" if found.verdict in ("verified", "falsified") else "not settled"
        bound = "" if found.lower is None else f"; lower bound {found.lower:.6g}"
        refused = [f"{name} refuses it: {reason}" for name, reason in found.refused.items()]
        message = "; ".join(refused) if found.verdict in ("unknown", "timeout") else ""
        return Answer(found.verdict, found.witness, found.seconds, message, "\n".join([f"{settled}{bound}", *refused]))

    def outputs(self, model: Path, x: NDArray[np.float64]) -> NDArray[Any]:
        """The imported network's logits, in float64."""
        import torch

        network = self._import(model).network.to(torch.float64)
        with torch.no_grad():
            given = torch.from_numpy(x).reshape(1, *network.input_shape)
            return network(given)[0].numpy()

    def _import(self, path: Path) -> Imported:
        """The model; the last one is kept, since instances of one model follow each other."""
        from ctkd.importing import import_model

        status = path.stat()
        key = (path.resolve(), status.st_mtime_ns, status.st_size)
        with self._lock:
            if self._read is None or self._read[0] != key:
                self._read = (key, import_model(path))
            return self._read[1]
