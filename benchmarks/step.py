# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``python -m benchmarks step``: one training step beside auto_LiRPA's, and beside what the machine can do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import agreement, floor, output, timing
from benchmarks.cases import Case
from benchmarks.process import Entrant, Worker

UNCHECKED = ("ctrain",)
"""Contenders whose loss cannot be compared; their ratios are marked."""


def run(
    case: Case,
    ours: Sequence[Entrant],
    peers: Sequence[Entrant],
    rounds: int,
    threads: int,
    *,
    check: bool = True,
    guard: bool = True,
) -> dict[str, Any]:
    """One row: agreement, then samples in turn, floor, memory. ``ratios`` holds only peers that agree."""
    output.say(f"{case.step}, {case.model}, {case.size}, eps {case.eps:.4g}")
    checks = [
        agreement.check(case, ours[0], peer, threads, output.say)
        for peer in peers
        if check and peer.contender not in UNCHECKED
    ]
    refused = {c["against"] for c in checks if not c["agree"]}
    entrants = [*ours, *peers]
    with contextlib.ExitStack() as stack:
        workers = {e.label: stack.enter_context(Worker(e, case, threads)) for e in entrants}
        things = {label: worker.step for label, worker in workers.items()}
        least = 0.0 if rounds == 1 else timing.LEAST
        pids = [worker.process.pid for worker in workers.values()]
        samples = timing.interleave(things, rounds, pids, least=least, guard=guard, say=output.say)
        facts = {label: worker.facts for label, worker in workers.items()}
        memory = {label: {**worker.end(), "before": worker.memory_before} for label, worker in workers.items()}
    ratios = {
        mine.label: {
            peer.label: timing.ratio(samples[peer.label], samples[mine.label])
            for peer in peers
            if peer.label not in refused
        }
        for mine in ours
    }
    return {
        "case": asdict(case),
        "facts": facts,
        "agreement": checks,
        "refused": sorted(refused),
        "samples": samples,
        "seconds": {label: timing.summary(found) for label, found in samples.items()},
        "ratios": ratios,
        "memory": memory,
    }


def add_floor(result: dict[str, Any], case: Case, ours: Sequence[Entrant], threads: int) -> None:
    """The floor of each of ctkd's precisions, and the part of it that was reached."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fp32 = floor.measure(case, torch.float32)
        bf16 = floor.measure(case, torch.bfloat16) if any(e.precision != "fp32" for e in ours) else fp32
    finally:
        torch.set_num_threads(before)
    found = {}
    for entrant in ours:
        layers = bf16 if entrant.precision == "bf16" else fp32
        found[entrant.label] = floor.floor(case, layers, bf16 if entrant.precision == "mixed" else None)
        found[entrant.label]["reached"] = found[entrant.label]["seconds"] / result["seconds"][entrant.label]["median"]
    result["floor"] = found
    result["rates"] = {"fp32": [asdict(layer) for layer in fp32], "bf16": [asdict(layer) for layer in bf16]}


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        case = Case(**result["case"])
        rows = []
        for label, seconds in result["seconds"].items():
            low, high = seconds["quartiles"]
            limit = result.get("floor", {}).get(label)
            rows.append(
                (
                    label,
                    output.seconds(seconds["median"]),
                    f"{output.seconds(low)} - {output.seconds(high)}",
                    f"{seconds['rounds']}, {seconds['taken_again']}, {seconds['disturbed']}",
                    f"{output.seconds(limit['seconds'])}, {100 * limit['reached']:.0f} %" if limit else "-",
                    output.megabytes(result["memory"][label]["peak"]),
                )
            )
        columns = ("", "median", "quartiles", "rounds, again, disturbed", "floor, reached", "memory")
        output.table(f"{case.step}, {case.model}, {case.size}", columns, rows, list(_notes(result)))


def _notes(result: dict[str, Any]) -> list[str]:
    lines = []
    for mine, against in result["ratios"].items():
        for peer, ratio in against.items():
            low, high = ratio["quartiles"]
            unchecked = "" if any(c["against"] == peer for c in result["agreement"]) else "; losses were not compared"
            lines.append(
                f"{mine} is {ratio['of_medians']:.2f} times as fast as {peer} "
                f"(round by round {ratio['median']:.2f}, quartiles {low:.2f} - {high:.2f}{unchecked})"
            )
    for found in result["agreement"]:
        worst = max(found["checks"], key=lambda c: (c["dtype"] == "float64", c["gradient_difference"]))
        verdict = "agrees with" if found["agree"] else "DOES NOT AGREE with"
        lines.append(
            f"ctkd {verdict} {found['against']}: in float64 loss within {worst['loss_difference']:.1e}, "
            f"gradients within {worst['gradient_difference']:.1e}"
        )
    broken = [label for label, memory in result["memory"].items() if not memory["finite"]]
    lines += [f"{label} ended with weights that are not finite" for label in broken]
    lines += [f"no ratio to {peer}: it computes something else" for peer in result["refused"]]
    versions = {
        f"{k} {v}" for facts in result["facts"].values() for k, v in facts.items() if k in ("auto_LiRPA", "CTRAIN")
    }
    return [*lines, *sorted(versions)]
