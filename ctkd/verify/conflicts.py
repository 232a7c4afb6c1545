# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Contradictions: two statements about one instance that cannot both be true, and the evidence for both."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctkd.errors import Contradiction
from ctkd.storage import write_bytes, write_json, write_text
from ctkd.verify.instances import Instance, Sample
from ctkd.verify.store import Answers, Stored


def conflict(stored: Sequence[Stored], sample: Sample | None) -> str:
    """What contradicts what, or nothing. ``falsified`` stands for a witness that was replayed."""
    for each in stored:
        if each.result.reason == "refuted":
            return f"{_who(each)} says verified, and onnxruntime finds a violation inside the box"
    verified = [each for each in stored if each.result.verdict == "verified"]
    falsified = [each for each in stored if each.result.verdict == "falsified"]
    witness = "a witness that onnxruntime confirms"
    if verified and falsified:
        return f"{_who(verified[0])} says verified, and {_who(falsified[0])} has {witness}"
    if falsified and sample and sample.status == "certified":
        return f"ctkd's stage {sample.settled_by!r} certifies it, and {_who(falsified[0])} has {witness}"
    if verified and sample and sample.status == "broken":
        return f"{_who(verified[0])} says verified, and ctkd's {sample.settled_by!r} has a point that breaks it"
    return ""


def stop(
    description: str, instance: Instance, number: int, model: Path, text: bytes, answers: Answers, parent: Path
) -> Contradiction:
    """Keep the evidence, files and a row, and return the error that stops the work.

    Args:
        number: of the instance in the store.
        model: its ONNX file, unpacked.
        text: of its specification.
        parent: the folder that gets ``contradictions/instance-NUMBER``.
    """
    folder = parent / "contradictions" / f"instance-{number}"
    found = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stored = answers.answers(number)
    try:
        _write(folder, description, found, instance, model, text, stored)
        where = f"the evidence is in {folder}"
    except OSError as error:
        where = f"the evidence could not be written to {folder}: {error.strerror}"
    answers.contradiction(number, found, description, str(folder.resolve()))
    return Contradiction(
        f"{instance.name}: {description}; one of them is wrong, and nothing was reported; {where}. "
        "--forget NAME takes back the answers of a tool that is at fault"
    )


def _write(
    folder: Path, description: str, found: str, instance: Instance, model: Path, text: bytes, stored: list[Stored]
) -> None:
    """Beside the final place first, so that a folder is whole. One of an earlier time is replaced."""
    from ctkd.export.generate_properties import witness_1

    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        write_bytes(building / "model.onnx", model.read_bytes())
        write_bytes(building / "specification.vnnlib", text)
        answers = []
        for k, each in enumerate(stored, 1):
            prefix = f"{k}-{each.name}".replace(":", "-")
            answers.append({"file": prefix, **_facts(each)})
            write_text(building / f"{prefix}.log", each.result.log)
            if each.result.witness is not None and each.result.outputs is not None:
                witness = witness_1(each.result.witness.tolist(), each.result.outputs.tolist())
                write_text(building / f"{prefix}.counterexample", witness)
        sample = vars(instance.sample) if instance.sample else None
        facts = {"contradiction": description, "found": found, "instance": instance.name, "sample": sample}
        write_json(building / "contradiction.json", {**facts, "answers": answers})
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _facts(each: Stored) -> dict[str, Any]:
    result = each.result
    return {
        "verifier": each.name,
        "versions": dict(each.versions),
        "timeout": each.timeout,
        "verdict": result.verdict,
        "said": result.said,
        "reason": result.reason,
        "message": result.message,
        "seconds": result.seconds,
        "asked": result.asked,
    }


def _who(each: Stored) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in each.versions.items())
    return f"{each.name} ({versions})"
