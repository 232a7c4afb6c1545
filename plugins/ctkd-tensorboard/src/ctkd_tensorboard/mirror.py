# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Keeps the event files of a run equal to what the run folder records."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import hparams

from ctkd_tensorboard.events import EventFile, scalars

FIGURES = ("natural_accuracy", "adversarial_accuracy", "certified_accuracy")
"""What the tab HPARAMS compares runs by."""


@dataclass
class Mirror:
    """Holds the one event file that grows, if any; for another network or run a new one is made from its records."""

    place: Path | None = None
    file: EventFile | None = None

    def start(self, run: Path) -> None:
        """Mirror what is recorded: nothing for a new run. What a resume drops from it goes with the next epoch."""
        for network, epochs in _recorded(run).items():
            self._replace(_place(run, network), epochs)
        self.close()

    def epoch(self, run: Path, network: str, metrics: Mapping[str, Any]) -> None:
        """Add an epoch, which ``metrics.jsonl`` has by now."""
        place = _place(run, network)
        if self.file is None or self.place != place:
            self._replace(place, {**_recorded(run).get(network, {}), metrics["epoch"]: metrics})
        else:
            self.file.add(_event(metrics))

    def finish(self, run: Path, summary: Mapping[str, Any]) -> None:
        """Write the final figures, with the configuration beside them for the tab HPARAMS."""
        self.close()
        config = tomllib.loads((run / "config.toml").read_text())
        # The tab finds its metrics by their tags, which must be no other's.
        final = {"final": {name: summary[name] for name in FIGURES if summary.get(name) is not None}}
        tags = {f"final/{name}": value for name, value in final["final"].items()}
        told = [Event(summary=part) for part in hparams(dict(_options(config)), tags)]
        EventFile(run / "tensorboard" / "final", [*told, scalars(0, final), scalars(0, _rest(summary))]).close()

    def _replace(self, place: Path, epochs: Mapping[int, Mapping[str, Any]]) -> None:
        self.close()
        self.file = EventFile(place, [_event(epochs[number]) for number in sorted(epochs)])
        self.place = place

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None


MIRROR = Mirror()


def _place(run: Path, network: str) -> Path:
    return run / "tensorboard" / network


def _event(metrics: Mapping[str, Any]) -> Event:
    return scalars(int(metrics["epoch"]), {key: value for key, value in metrics.items() if key != "epoch"})


def _rest(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The other numbers of the summary, further teachers under ``teacher-2`` and so on."""
    further = {f"teacher-{i}": facts for i, facts in enumerate(summary.get("further_teachers", []), start=2)}
    return {key: value for key, value in {**summary, **further}.items() if key not in FIGURES}


def _recorded(run: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The lines of ``metrics.jsonl`` by network and epoch; a line that a kill cut short is none."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    path = run / "metrics.jsonl"
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            found.setdefault(line["network"], {})[line["epoch"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _options(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``role.key`` and value; what is neither number nor text is written as text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _options(value, f"{prefix}{key}.")
        elif isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            for i, part in enumerate(value, start=1):
                yield from _options(part, f"{prefix}{key}." if i == 1 else f"{prefix}{key}.{i}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)
