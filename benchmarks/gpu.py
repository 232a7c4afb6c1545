# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``python -m benchmarks gpu``: everything that wants a GPU, in one go that can be cut off and started again.

Finished parts lie in the working folder and are not done twice; the output folder gets results only, no weights.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import output
from benchmarks import step as steps
from benchmarks.cases import BATCHES, RADII, SHAPES, STEPS, Case, model_layers
from benchmarks.contenders.ctkd import Ctkd
from benchmarks.process import ContenderFailed, Entrant
from benchmarks.worker import Unavailable

EPOCH = 50_000
"""Images of CIFAR-10's training set."""
LATE = "_refuse_non_finite"
"""The loop reads the flags of a step one step later, when the device has long finished it: not inside the step."""

TINY: dict[str, Any] = {
    "train.epochs": 4,
    "train.warmup": 0.5,
    "train.ramp": 2.0,
    "train.batch_size": 256,
    "teacher.epochs": 1,
    "certify.samples": 8,
    "certify.attack_steps": 2,
    "certify.attack_restarts": 1,
    "export.samples": 1,
    "model.hidden": 16,
    "model.channels": 4,
    "model.name": "cnn-small",
}
SHORT: dict[str, Any] = {"train.epochs": 30, "model.name": "cnn7", "certify.samples": 200}


def parts(
    device: str, tiny: bool, work: Path, settings: dict[str, Any], rounds: int, threads: int
) -> dict[str, Callable[[], Any]]:
    """What is to be done, in order of use."""
    rows: dict[str, Callable[[], Any]] = {}
    networks = (("cnn7", "cifar10"),) if tiny else (("cnn7", "cifar10"), ("cnn-small", "mnist"))
    for model, data in networks:
        for method in ("cc-ibp-8",) if tiny else STEPS:
            case = table_case(model, data, method, device, tiny)
            rows[f"step {model} {data} {method}"] = lambda case=case: row(case, tiny, rounds, threads)  # type: ignore[misc]
    case = table_case("cnn7", "cifar10", "cc-ibp-8", device, tiny)
    rows["synchronisation"] = lambda: synchronisation([replace(case, step=method) for method in STEPS])
    chosen = {**(TINY if tiny else SHORT), "train.device": device, **settings}
    rows["run"] = lambda: run(chosen, work / "run")
    return rows


def table_case(model: str, data: str, method: str, device: str, tiny: bool) -> Case:
    shape = SHAPES[data]
    layers = model_layers(model, shape, width=4 if tiny else None)
    return Case(method, model, layers, shape, 8 if tiny else BATCHES[data], RADII[data], device=device)


def row(case: Case, tiny: bool, rounds: int, threads: int) -> dict[str, Any]:
    """The step table's row, ctkd in each precision that it has, and seconds for an epoch of CIFAR-10's size."""
    precisions = ("fp32",) if tiny or not _has_precisions() else ("fp32", "mixed", "bf16")
    ours = [Entrant("ctkd", precision) for precision in precisions]
    try:
        result = steps.run(case, ours, [Entrant("autolirpa")], rounds, threads, guard=False)
    except (Unavailable, ContenderFailed) as problem:
        output.say(f"without auto_LiRPA: {problem}")
        result = {**steps.run(case, ours, [], rounds, threads, guard=False), "without_peer": str(problem)}
    if not tiny:
        steps.add_floor(result, case, ours, threads)
    result["epoch_seconds"] = {
        label: found["median"] * (EPOCH // case.batch) for label, found in result["seconds"].items()
    }
    return result


def _has_precisions() -> bool:
    from ctkd.train.options import TrainOptions

    return "precision" in TrainOptions.model_fields


def synchronisation(cases: list[Case]) -> dict[str, Any] | None:
    """Where a training step makes the host wait for the device, with how often in 4 steps; None on a CPU.

    ``ok``: nowhere but where the loop reads the flags of the step before.
    """
    if not cases[0].device.startswith("cuda"):
        return None
    found = {case.step: _synchronisations(case) for case in cases}
    return {"by_step": found, "ok": not any(places for places in found.values())}


def _synchronisations(case: Case, count: int = 4) -> dict[str, int]:
    contender = Ctkd(case, {"precision": "fp32"})
    for _ in range(3):
        contender.step()
    places: Counter[str] = Counter()

    def show(message: Any, *_: Any, **__: Any) -> None:
        stack = traceback.extract_stack()
        own = [
            frame
            for frame in stack
            if "/ctkd/" in frame.filename.replace("\\", "/") and "benchmarks" not in frame.filename
        ]
        if own and not any(frame.name == LATE for frame in own) and "synchroniz" in str(message):
            places[f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(count):
                contender.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(places)


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A PGD teacher and a CC-Dist student through ``ctkd.run``, certified and exported; goes on where it was cut."""
    from ctkd import run as api
    from ctkd.cli.common import Plain

    chosen = {
        "bound.name": "cc-ibp",
        "teacher.name": "pgd",
        "distill.name": "features",
        "export.samples": 10,
        **settings,
    }
    if (folder / "config.toml").exists():
        made, summary = api.resume(folder, reporter=Plain())
    else:
        made, summary = api.train(settings=chosen, out=folder, reporter=Plain())
    exported = sorted(str(path.relative_to(made.path)) for path in made.exports.rglob("*") if path.is_file())
    return {"settings": chosen, "summary": summary, "exported": exported}


def main(
    device: str, tiny: bool, work: Path, out: Path, settings: dict[str, Any], rounds: int, threads: int
) -> dict[str, Any]:
    """All parts; each is written to both folders as soon as it is there."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    for name, part in parts(device, tiny, work, settings, rounds, threads).items():
        stored = work / f"{name.replace(' ', '-')}.json"
        if stored.exists():
            done[name] = json.loads(stored.read_text("utf-8"))
            output.say(f"{name}: done before")
        else:
            output.say(name)
            done[name] = part()
            fresh = stored.with_suffix(".part")
            fresh.write_text(json.dumps(done[name]), "utf-8")
            fresh.replace(stored)
        document = output.document(
            [{"part": key, "result": value} for key, value in done.items()], device=device, tiny=tiny
        )
        (out / "gpu.json").write_text(json.dumps(document, indent=1), "utf-8")
    return document
