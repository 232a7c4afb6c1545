# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd weak``: rank, choose, write."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ctkd.attribution import attributed
from ctkd.config import resolve
from ctkd.errors import BadInput, RunFailed, nearest
from ctkd.runfolder import RunFolder
from ctkd.session import load_data, split_digest
from ctkd.storage import check_new_file
from ctkd.weak.dataset import check_storable, with_validation, write_archive
from ctkd.weak.ranking import Combination, Measure, Place, Standings, check_comparable, ranked, read_standings

ENDINGS = (".npz",)
WORST = 20
"""How many samples, unless said otherwise."""
SPLITS = ("test", "validation", "train")
TEST = "the samples are of the test split: a model that is chosen on them has no honest figure on that split any more"


@attributed()
def weak(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    by: str = "margin",
    worst: int | None = None,
    eps: float | str | None = None,
    split: str | None = None,
    rank: str = "mean",
    correct: bool = False,
    data_dir: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Find the samples that runs certify least, and make a validation set of them: what ``ctkd weak`` does.

    Run folders are only read.

    Args:
        runs: run folders; one named twice counts once.
        out: an ``.npz`` file to write: the runs' data set with these samples for validation, which
            ``--dataset FILE.npz`` reads; None writes nothing.
        by: ``margin``, the certified margin at ``eps``, or ``radius``, the certified radius that ``radii`` found.
        worst: how many samples; None is 20, or all where there are fewer.
        eps: radius of the margins, in pixel units, also as ``"2/255"``; None is the runs'.
        split: ``test``, ``validation`` or ``train``; None is the one that the runs' configurations name.
        rank: how a sample's ranks in several runs are combined: their ``mean``, or the ``worst`` of them.
        correct: whether to leave out samples that some run misclassifies.
        data_dir: where the data set's files lie, if not where the runs found them; only ``out`` needs them.
        force: whether to replace ``out``.

    Returns:
        ``samples``, weakest first: ``sample`` (number in the split), ``label``, ``rank``, and for each of ``runs``
        ``value`` (margin or radius, or None), ``broken`` (margin that the attack found, or radius that breaks it),
        ``verdict``, ``stage``, ``prediction``; also ``by``, ``eps``, ``split``, ``ranked`` (how many there were),
        ``notes``, ``out``.

    Raises:
        BadInput: a folder is no certified run, the runs are not comparable, there are not so many samples, or ``out``
            is not to be written.
        Contradiction: a run's results contradict each other.
        RunFailed: the file cannot be written; one that was there stays.
    """
    _check(by, worst, eps, split, rank)
    if not runs:
        raise BadInput("name at least one run folder")
    if out is not None:
        check_new_file(out, ENDINGS, "weak.npz", force=force)
    folders = list({path.resolve(): path for path in runs}.values())
    measure: Measure = "radius" if by == "radius" else "margin"
    combination: Combination = "worst" if rank == "worst" else "mean"
    found = [read_standings(path, measure, eps, split) for path in folders]
    check_comparable(found)
    places = ranked(found, combination, correct=correct)
    if worst is not None and worst > len(places):
        kind = "correctly classified samples" if correct else "samples"
        raise BadInput(f"--worst {worst}: there are results of {len(places)} {kind}; ask for so many at most")
    chosen = places[: worst or WORST]
    notes = _notes(found, places, correct=correct)
    facts: dict[str, Any] = {"by": by, "eps": found[0].eps, "split": found[0].split, "rank": rank}
    if out is not None:
        notes += _write(out, found, chosen, facts, data_dir, force)
    return {
        **facts,
        "runs": [str(run.path) for run in found],
        "ranked": len(places),
        "samples": [
            {"sample": p.sample, "label": p.label, "rank": p.rank, "runs": [asdict(s) for s in p.standings]}
            for p in chosen
        ],
        "notes": notes,
        "out": None if out is None else str(out),
    }


def _check(by: str, worst: int | None, eps: float | str | None, split: str | None, rank: str) -> None:
    problems = [
        f"{name} {value}: {nearest(value, accepted)}"
        for name, value, accepted in (
            ("--by", by, get_args(Measure)),
            ("--split", split or SPLITS[0], SPLITS),
            ("--rank", rank, get_args(Combination)),
        )
        if value not in accepted
    ]
    if worst is not None and worst < 1:
        problems.append(f"--worst {worst}: must be 1 or more")
    if by == "radius" and eps is not None:
        problems.append("--eps says at which radius margins are compared; leave it out with --by radius")
    if problems:
        raise BadInput(*problems)


def _notes(runs: Sequence[Standings], places: Sequence[Place], *, correct: bool) -> list[str]:
    notes = [note for run in runs for note in run.notes]
    most = max(len(run.samples) for run in runs)
    if len(runs) > 1 and not correct and len(places) < most:
        notes.append(f"ranked are the {len(places)} samples that all runs have results of, of {most}")
    if any(_plain(run) != _plain(runs[0]) for run in runs[1:]):
        notes.append("the runs were certified with different stages or attacks; a margin is what these could prove")
    return notes


def _plain(run: Standings) -> set[str]:
    return {str(sorted(settings.items())) for settings in run.settings}


def _write(
    out: Path,
    runs: Sequence[Standings],
    chosen: Sequence[Place],
    facts: dict[str, Any],
    data_dir: Path | None,
    force: bool,
) -> list[str]:
    """Write the file; returns what a reader should know about it."""
    first = runs[0]
    given = {} if data_dir is None else {"data.dir": str(data_dir)}
    data = load_data(resolve(given, RunFolder.open(first.path).config, trained=True))
    if split_digest(getattr(data, first.split)) != first.data:
        raise BadInput(
            f"{first.path}: data set {data.name!r} is no longer the one that was certified, so nothing is written"
        )
    check_storable(data)
    samples = [place.sample for place in chosen]
    made = with_validation(data, first.split, samples)
    about = {
        **facts,
        "data": {"name": data.name, "digest": first.data},
        "runs": [{"run": str(run.path), "network": run.network, "settings": run.settings} for run in runs],
        "ctkd": importlib.metadata.version("ctkd"),
        "format": 1,
    }
    values = [[math.nan if s.value is None else s.value for s in place.standings] for place in chosen]
    check_new_file(out, ENDINGS, "weak.npz", force=force)  # reading took a while
    try:
        write_archive(out, made, samples, about, np.array(values, dtype=np.float64).T)
    except OSError as error:
        raise RunFailed(f"{out} cannot be written, name another file with --out: {error.strerror or error}") from None
    notes = [TEST] if first.split == "test" else []
    if data.augment is not None:
        notes.append(f"the changes of training images that {data.name} makes (data.*) do not belong to the file")
    if 1 + max(int(getattr(made, part).labels.max()) for part in ("train", "validation", "test")) != data.classes:
        notes.append(f"not every class has an image; read it with --set data.classes={data.classes}")
    return notes
