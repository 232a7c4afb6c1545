# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A trained student as a folder of instances for external verifiers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ctkd.accuracy import is_correct
from ctkd.attribution import attributed
from ctkd.certify.store import Store
from ctkd.errors import BadInput
from ctkd.export import export_instances
from ctkd.interrupt import stop_request
from ctkd.progress import Silent
from ctkd.propagate import Network, margins_of
from ctkd.randomness import generator
from ctkd.runfolder import RunFolder
from ctkd.session import Session, split_digest
from ctkd.trained import open_run, parse_radius


@attributed()
def export(
    run: Path,
    folder: Path,
    *,
    samples: int = 10,
    seed: int = 0,
    eps: float | str | None = None,
    timeout: float = 60.0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Write a student for external verifiers: what ``ctkd export`` does.

    Args:
        run: a run folder.
        folder: must be absent or empty; gets ``onnx/``, ``vnnlib/`` and ``instances.csv``.
        samples: how many correctly classified images.
        seed: which of them.
        eps: radius in pixel units; None is the run's.
        timeout: seconds per instance.

    Returns:
        What was written, and how many instances are certified by ctkd's own stages.
    """
    settings = {"export.samples": samples, "export.seed": seed, "export.timeout": timeout}
    with stop_request() as stop:
        session, network = open_run(run, data_dir, settings, Silent(), stop)
        radius = parse_radius(eps, session.config.train.eps)
        return _export(session, network, radius, folder, **session.config.export.model_dump())


def export_beside(session: Session, student: Network) -> None:
    """The export that belongs to a run; made again when a resumed run ends."""
    config = session.config
    shutil.rmtree(session.folder.exports, ignore_errors=True)
    _export(session, student, config.train.eps, session.folder.exports, **config.export.model_dump())


def _export(
    session: Session, network: Network, eps: float, folder: Path, *, samples: int, seed: int, timeout: float
) -> dict[str, Any]:
    split = getattr(session.data, session.config.certify.split)
    with torch.no_grad():
        logits = torch.cat([network(part) for part in split.images.split(1000)])
    correct = is_correct(margins_of(logits, split.labels), split.labels).nonzero().flatten()
    if samples > len(correct):
        raise BadInput(f"export.samples={samples}: only {len(correct)} images of the split are classified correctly")
    order = torch.randperm(len(correct), generator=generator(seed, "export"))
    indices = correct[order[:samples]].sort().values.tolist()
    known = certified_samples(session.folder, network, eps, session.config.certify.split, split_digest(split))
    report = export_instances(
        network,
        split.images[indices],
        split.labels[indices],
        indices,
        eps,
        folder,
        name=file_name(session),
        timeout=timeout,
        certified=known.intersection(indices),
    )
    return {
        "folder": str(folder),
        "model": report.model,
        "instances": len(indices),
        "indices": indices,
        "eps": eps,
        "certified": report.replayed,
        "largest_difference": report.difference,
    }


def file_name(session: Session) -> str:
    """Of the network's file: data set and model, in the few characters that competition folders allow."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{session.data.name}-{session.config.model.name}")


def certified_samples(folder: RunFolder, network: Network, eps: float, split: str, data: str) -> set[int]:
    """Samples of the split that the run's results record as certified at this radius."""
    if not folder.results.exists():
        return set()
    with Store(folder.results) as store:
        return store.certified(network.sha256(), eps, split, data)
