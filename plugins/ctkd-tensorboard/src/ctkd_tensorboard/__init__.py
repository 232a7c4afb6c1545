# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Writes TensorBoard event files into the run folder.

They lie in ``RUN/tensorboard``, one folder for each network, and mirror ``metrics.jsonl``. Everything they need is in
the run folder: so a run that was killed, resumed or trained without this plugin is made whole as soon as the run goes
on, and several runs may take turns in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctkd import hookimpl

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    class RunFolder(Protocol):
        """What is used of ``ctkd.runfolder.RunFolder``."""

        @property
        def path(self) -> Path: ...


CTKD_INTERFACE = 1


@hookimpl
def ctkd_run_started(folder: RunFolder) -> None:
    from ctkd_tensorboard.mirror import MIRROR

    MIRROR.start(folder.path)


@hookimpl
def ctkd_epoch_finished(folder: RunFolder, network: str, metrics: Mapping[str, Any]) -> None:
    from ctkd_tensorboard.mirror import MIRROR

    MIRROR.epoch(folder.path, network, metrics)


@hookimpl
def ctkd_run_finished(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    from ctkd_tensorboard.mirror import MIRROR

    MIRROR.finish(folder.path, summary)
