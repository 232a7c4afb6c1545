# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The samples of a run, or of a data set and a model, as instances: a box around each, and what ctkd itself found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ctkd.accuracy import is_correct
from ctkd.api import Split
from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput
from ctkd.export import RobustnessProperty, write_onnx, write_vnnlib
from ctkd.export.vnnlib2 import write_vnnlib2
from ctkd.foreign import MARKER as MODEL
from ctkd.foreign import open_model, open_on_data
from ctkd.interrupt import StopRequest
from ctkd.progress import Reporter
from ctkd.propagate import Network, margins_of
from ctkd.session import sample_range, split_digest
from ctkd.trained import open_run, parse_radius
from ctkd.verify.instances import TIMEOUT, Instance, Sample
from ctkd.verify.store import settled


@dataclass(frozen=True, eq=False)
class RunInstances:
    """Instances of a run.

    Attributes:
        results: the run's results file.
        samples: how many were asked for.
        known: by sample, what ctkd found and by which stage.
    """

    instances: list[Instance]
    results: Path
    eps: float
    split: str
    samples: int
    known: Mapping[int, tuple[str, str]]


def run_instances(
    run: Path,
    folder: Path,
    *,
    eps: float | str | None,
    dataset: str | None,
    make: bool,
    everything: bool,
    timeout: float | None,
    data_dir: Path | None,
    settings: Mapping[str, Any],
    reporter: Reporter,
    stop: StopRequest,
) -> RunInstances:
    """The samples that ctkd's own attack and stages left open, or all that are classified correctly.

    Args:
        run: a run, a folder that ``ctkd certify MODEL.onnx`` made, or such a model.
        folder: gets the ONNX file of a run.
        dataset: of a model; None is ``digits``, as for ``ctkd certify``.
        make: whether a model gets a folder for its results where there is none yet.
        everything: whether settled samples are asked about, too, so that tools and ctkd are held against each other.
        settings: ``certify.split``, ``certify.samples`` and ``certify.start``, as for ``ctkd certify``.

    Raises:
        BadInput: no such run or samples, or none of them was ever certified and ``everything`` is False.
    """
    file: Path | None = None
    if run.is_file():
        session, network = open_on_data(run, eps, dataset, data_dir, settings, reporter, stop, make=make and everything)
        file = run
    elif (run / MODEL).is_file():
        session, network, file = open_model(run, data_dir, settings, reporter, stop)
    else:
        session, network = open_run(run, data_dir, settings, reporter, stop)
    options = session.config.certify
    radius = parse_radius(eps, session.config.train.eps)
    samples = sample_range(session.data, options)
    split: Split = getattr(session.data, options.split)
    digest, sha = split_digest(split), network.sha256()
    found = settled(session.folder.results, sha, radius, options.split, digest)
    known = {index: found[index] for index in samples if index in found}
    if not known and not everything:
        raise BadInput(
            f"{run} has no results of ctkd certify for these samples at eps={radius:g}: run "
            f"`{_certifying(run, file, session.config.data.table(), radius)}` with the same --start and --samples "
            "first, or ask about all of them with --all"
        )
    wanted = [i for i in samples if known.get(i, ("", ""))[1] != "natural"]
    if not everything:
        wanted = [i for i in wanted if known.get(i, ("undecided", ""))[0] == "undecided"]
    right = _classified(network, split, wanted)
    known |= dict.fromkeys(set(wanted).difference(right), ("broken", "natural"))
    wanted = right
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{session.data.name}-{file.stem if file else session.config.model.name}")
    model = file or folder / f"{name}.onnx"
    if wanted and file is None:
        write_onnx(network, model)
    shown = format(Decimal(repr(radius)), "f")
    instances = [
        Instance(
            (f"onnx/{model.name}", f"vnnlib/{name}_eps{shown}_idx{i}.vnnlib"),
            model,
            partial(_text, network, split, i, radius),
            timeout or TIMEOUT,
            Sample(sha, radius, options.split, digest, i, *known.get(i, (None, ""))),
        )
        for i in wanted
    ]
    return RunInstances(instances, session.folder.results, radius, options.split, len(samples), known)


def _certifying(run: Path, file: Path | None, data: Mapping[str, Any], eps: float) -> str:
    """The command that makes the results that are missing. The radius in full: another one has results of its own."""
    words = ["ctkd", "certify", str(file or run)]
    if file is not None:
        words += ["--dataset", str(data.get("path", data["name"]))]
    words += ["--eps", repr(eps)]
    if file is not None and run != file:
        words += ["--out", str(run)]
    return shlex.join(words)


def _classified(network: Network, split: Split, indices: list[int]) -> list[int]:
    """Those that are classified correctly: of the others there is nothing to verify."""
    kept = []
    for start in range(0, len(indices), 1000):
        part = indices[start : start + 1000]
        with torch.no_grad():
            margins = margins_of(network(split.images[part]), split.labels[part])
        right = is_correct(margins, split.labels[part]).tolist()
        kept += [i for i, correct in zip(part, right, strict=True) if correct]
    return kept


def _text(network: Network, split: Split, index: int, eps: float, version: str) -> str:
    box = perturbation_box(split.images[index : index + 1], eps)
    lower, upper = (bound.reshape(-1).numpy() for bound in (box.lower, box.upper))
    prop = RobustnessProperty(lower, upper, int(split.labels[index]), network.classes)
    if version == "2.0":
        return write_vnnlib2(prop, network.input_shape, eps=eps)
    return write_vnnlib(prop, eps=eps)
