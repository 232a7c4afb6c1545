# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The folder that holds everything about one run."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctkd.errors import BadInput
from ctkd.storage import read_json, write_json, write_text

MARKER = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run. Only ``create`` and ``open`` make one.

    ``kept``: the folder was there, empty, before the run.
    """

    path: Path
    kept: bool = False

    @staticmethod
    def create(wanted: Path | None, label: str) -> RunFolder:
        """A new folder: ``wanted`` must be absent or empty; None makes ``runs/`` plus a readable unique name.

        Raises: BadInput if the folder is another run's, holds something else, or cannot be written.
        """
        path = wanted or _unique(Path("runs"), label)
        kept = path.is_dir()
        if wanted is not None and (path / MARKER).exists():
            made = read_json(path / MARKER).get("created", "an unknown time")
            raise BadInput(
                f"{path} already holds a run of {made}; go on with it by `ctkd train --resume {path}`, "
                "or name another folder"
            )
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file; name a new folder with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise BadInput(f"{path} exists and is not empty; name a new folder with --out")
            # Of two processes that come here together, one fails to make this folder.
            (path / "student").mkdir()
            (path / "teacher").mkdir()
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_json(path / MARKER, {"id": uuid.uuid4().hex, "created": created, "format": 1})
        except FileExistsError:
            raise BadInput(f"{path} is being used by another ctkd process; name a new folder with --out") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}") from None
        return RunFolder(path, kept)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Raises: BadInput if the folder is not a run."""
        if not (path / MARKER).is_file():
            what = "does not exist"
            if path.exists():
                what = "is not a run folder (it has no run.json)" if path.is_dir() else "is a file"
            raise BadInput(f"{path} {what}; name a folder that `ctkd train` made")
        return RunFolder(path)

    def tidy(self) -> None:
        """Make what a kill left behind whole again: sub-folders, and no temporary files."""
        for part in ("teacher", "student"):
            (self.path / part).mkdir(exist_ok=True)
        for left in self.path.rglob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def discard(self) -> None:
        """Take away what ``create`` made; a folder that the user had made stays, empty."""
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if not self.kept:
            self.path.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this run for as long as the block lasts; the lock dies with the process."""
        try:
            import fcntl
        except ImportError:  # no such locks on this platform
            yield
            return
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise BadInput(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise BadInput(f"{self.path} is in use by another ctkd process") from None
        try:
            yield
        finally:
            os.close(handle)

    def trained(self) -> bool:
        """Whether any training for this run has left a checkpoint or a network."""
        return any(self.path.glob("*/**/*.safetensors")) or self.network.exists()

    @property
    def config(self) -> Path:
        """The resolved configuration, TOML."""
        return self.path / "config.toml"

    @property
    def network(self) -> Path:
        """The student: folded, float32."""
        return self.path / "network.safetensors"

    @property
    def metrics(self) -> Path:
        """One line of JSON per epoch and network."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """Certification, one row per sample: SQLite."""
        return self.path / "certification.sqlite"

    @property
    def exports(self) -> Path:
        """ONNX, VNN-LIB and instances.csv."""
        return self.path / "export"

    @property
    def summary(self) -> Path:
        """The results, JSON; there once the run is finished."""
        return self.path / "summary.json"

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a line; the file only grows."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # a line that a kill cut short
                continue
        return [row for row in rows if isinstance(row, dict) and {"network", "epoch"} <= row.keys()]

    def forget_metrics(self, network: str, epochs_done: int) -> None:
        """Drop lines of epochs that a resumed training will run again."""
        rows = self.read_metrics()
        kept = [row for row in rows if row["network"] != network or row["epoch"] <= epochs_done]
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


def _unique(parent: Path, label: str) -> Path:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return parent / f"{label}-{stamp}-{uuid.uuid4().hex[:4]}"
