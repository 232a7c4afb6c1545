# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The draft of a benchmark's README, under the headings that the competition asks a benchmark's paper for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ctkd.export.benchmark.mix import BUDGET, OUTCOMES

if TYPE_CHECKING:
    from ctkd.propagate import Network


@dataclass(frozen=True)
class Text:
    """What a run says about itself.

    Attributes:
        data, split: name of the data set, and which part of it the images are from.
        training: how the network was trained, as the end of a sentence.
        cheap, tight: names of the certification stages that count as such.
        counts: over all images that were certified or tried: ``samples``, ``natural`` (classified correctly),
            ``certified``, ``undecided`` and ``broken`` (by the attack).
        bibtex: what to cite.
        version: of ctkd.
    """

    data: str
    split: str
    training: str
    cheap: Sequence[str]
    tight: Sequence[str]
    counts: Mapping[str, int]
    bibtex: str
    version: str


def readme(text: Text, network: Network, facts: Mapping[str, Any], pool: Mapping[str, int], seed: int) -> str:
    """Markdown. ``facts``: what the generator reads; ``pool``: images of each outcome."""
    template = Template(Path(__file__).with_name("readme.template.md").read_text(encoding="utf-8"))
    weights = [sum(tensor.numel() for _, tensor in node.op.tensors()) if node.op else 0 for node in network.nodes]
    mix, seconds = facts["mix"], facts["timeouts"]
    return template.substitute(
        name=facts["name"],
        version=text.version,
        data=text.data,
        split=text.split,
        training=text.training,
        samples=text.counts["samples"],
        eps=repr(facts["eps"]),
        accuracies=_accuracies(text.counts),
        parameters=sum(weights),
        neurons=sum(math.prod(network.nodes[i].shape) for i in network.activations),
        shape=", ".join(map(str, network.input_shape)),
        order="channel, row, column" if len(network.input_shape) == 3 else "of the features",
        classes=network.classes,
        layers=_layers(network, weights),
        instances=sum(mix.values()),
        seed=seed,
        mix=_mix(text, mix, seconds, pool),
        total=sum(mix[outcome] * seconds[outcome] for outcome in seconds),
        budget=BUDGET,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _accuracies(counts: Mapping[str, int]) -> str:
    columns = {"natural": "classified correctly", "certified": "certified", "undecided": "undecided"}
    columns["broken"] = "classified correctly, but broken by an attack"
    shares = [f"{100 * counts[name] / counts['samples']:.2f} %" for name in columns]
    return _table(list(columns.values()), [shares])


def _layers(network: Network, weights: Sequence[int]) -> str:
    nodes = list(zip(network.nodes, weights, strict=True))[1:]
    rows = [(type(node.op).__name__, "x".join(map(str, node.shape)), count or "") for node, count in nodes]
    return _table(("layer", "output", "parameters"), rows)


def _mix(text: Text, mix: Mapping[str, int], seconds: Mapping[str, int], pool: Mapping[str, int]) -> str:
    meanings = {
        "cheap": f"certified by {' or '.join(text.cheap)}",
        "tight": f"certified by {' or '.join(text.tight)} only",
        "undecided": "neither certified nor broken by ctkd",
        "broken": "broken by an attack: the counterexample is known",
    }
    rows = [
        (outcome, meanings[outcome], pool[outcome], mix[outcome], seconds[outcome], mix[outcome] * seconds[outcome])
        for outcome in OUTCOMES
        if mix[outcome]
    ]
    return _table(("outcome", "meaning", "images", "instances", "timeout in s", "sum in s"), rows)
