# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the stored answers say, in numbers; and the competition's results.csv."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ctkd.errors import BadInput
from ctkd.storage import write_text
from ctkd.verify.asking import Tool
from ctkd.verify.instances import Instance
from ctkd.verify.store import Answers, Result
from ctkd.verifying import Verdict

WORDS = {"verified": "unsat", "falsified": "sat", "unknown": "unknown", "timeout": "timeout", "error": "error"}
"""Verdicts as the competition writes them."""

Found = Mapping[int, Mapping[str, Result]]
"""By instance and tool."""


def found_answers(answers: Answers, instances: Mapping[int, Instance], ids: Mapping[str, int]) -> Found:
    """The answers of these tools about these instances, at each instance's timeout."""
    names = {number: name for name, number in ids.items()}
    return {
        number: {
            names[each.verifier]: each.result
            for each in answers.answers(number)
            if each.verifier in names and each.timeout == instance.timeout
        }
        for number, instance in instances.items()
    }


def all_answers(answers: Answers, instances: Mapping[int, Instance]) -> Found:
    """Every answer about these instances, of whatever tool, version and timeout: none contradicts another."""
    return {number: {str(k): each.result for k, each in enumerate(answers.answers(number))} for number in instances}


def summarise(found: Found, tools: Sequence[Tool]) -> dict[str, Any]:
    """Counts and times by tool; how many instances are settled, and by how many tools."""
    verdicts = [[result.verdict for result in each.values()] for each in found.values()]
    settled = [[v for v in each if v in ("verified", "falsified")] for each in verdicts]
    return {
        "instances": len(found),
        "verified": sum("verified" in each for each in settled),
        "falsified": sum("falsified" in each for each in settled),
        "open": sum(not each for each in settled),
        "settled_by_several": sum(len(each) > 1 for each in settled),
        "verifiers": {
            tool.name: _tool(tool, [each[tool.name] for each in found.values() if tool.name in each]) for tool in tools
        },
    }


def _tool(tool: Tool, results: Sequence[Result]) -> dict[str, Any]:
    counts = Counter(result.verdict for result in results)
    seconds = [result.seconds for result in results]
    differences = [result.difference for result in results]
    return {
        "versions": dict(tool.versions),
        "options": tool.options.model_dump(mode="json"),
        **{verdict: counts[verdict] for verdict in get_args(Verdict)},
        "errors": dict(Counter(result.reason or "said-error" for result in results if result.verdict == "error")),
        "seconds": sum(seconds),
        "median_seconds": statistics.median(seconds) if seconds else None,
        "largest_difference": max((each for each in differences if each is not None), default=None),
        "compared": sum(each is not None for each in differences),
    }


def accuracy(
    found: Found, indices: Mapping[int, Sequence[int]], known: Mapping[int, tuple[str, str]], samples: int
) -> dict[str, Any]:
    """Of a run's samples, counts of ctkd's results and all tools' together, and the interval of the robust accuracy.

    Args:
        indices: by instance, the samples that it stands for.
        known: by sample, what ctkd found.
        samples: how many were asked for.
    """
    status = {index: kind for index, (kind, _) in known.items() if kind != "undecided"}
    for number, answers in found.items():
        verdicts = {result.verdict for result in answers.values()}
        if verdicts & {"verified", "falsified"}:
            status |= dict.fromkeys(indices[number], "certified" if "verified" in verdicts else "broken")
    counts = Counter(status.values())
    certified, broken = counts["certified"], counts["broken"]
    return {
        "samples": samples,
        "counts": {"certified": certified, "broken": broken, "undecided": samples - certified - broken},
        "robust_accuracy_interval": [certified / samples, (samples - broken) / samples],
    }


def write_results(
    folder: Path, category: str, found: Found, instances: Mapping[int, Instance], tools: Sequence[Tool]
) -> None:
    """``folder/TOOL/results.csv``: category, network, specification, preparation (0), verdict, seconds; no header.

    The colon of a tool ``NAME:LABEL`` becomes a hyphen.

    Raises: BadInput if the folder cannot be written.
    """
    for tool in tools:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for number, instance in instances.items():
            result = found[number].get(tool.name)
            if result is not None:
                writer.writerow([category, *instance.row, 0, WORDS[result.verdict], f"{result.seconds:.3f}"])
        try:
            own = folder / tool.name.replace(":", "-")
            own.mkdir(parents=True, exist_ok=True)
            write_text(own / "results.csv", text.getvalue())
        except OSError as error:
            raise BadInput(f"{folder} cannot be written: {error.strerror}") from None
