# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Event files: one record per step, on disk when the call returns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

PATTERN = "events.out.tfevents.*"


def scalars(step: int, values: Mapping[str, Any]) -> Event:
    """All numbers of the (nested) values as one record: it is written whole or not at all."""
    found = [Summary.Value(tag=tag, simple_value=value) for tag, value in _numbers(values)]
    return Event(step=step, summary=Summary(value=found))


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


class EventFile:
    """A new event file that takes the place of all others in its folder: they are emptied once it is written.

    Emptied, not removed: a TensorBoard that looks on would wait for a removed file for ever. The next time it goes.
    """

    def __init__(self, folder: Path, events: Iterable[Event]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        others = list(folder.glob(PATTERN))
        # Names hold the time in seconds; this tells files of one second apart, in order.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        with ExitStack() as failing:
            failing.callback(self._writer.close)
            # A TensorBoard that looks on has the records of the other files in memory: it forgets them here.
            self.add(Event(step=0, session_log=SessionLog(status=SessionLog.START)), *events)
            for other in others:
                if other.stat().st_size:
                    other.write_bytes(b"")
                else:
                    other.unlink()
            failing.pop_all()

    def add(self, *events: Event) -> None:
        for event in events:
            event.wall_time = time.time()
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
