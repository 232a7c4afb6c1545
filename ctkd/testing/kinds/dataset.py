# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Data sets (``ctkd.api.DataSource``)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Data
from ctkd.data.checks import check_data
from ctkd.errors import BadInput
from ctkd.randomness import Noise
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.runs import sandbox
from ctkd.testing.state import seed_everything
from ctkd.testing.steps import check_repeats
from ctkd.testing.subject import NotApplicable, Subject

SPLITS = ("train", "validation", "test")
REPEATED = 0.01
"""Part of a split's images that may be in another: real collections hold a few pictures twice."""
AUGMENTED = 16
"""Images that augmentation is tried on."""


def _load(subject: Subject) -> Data:
    try:
        found = subject.create().load(subject.data_dir)
    except BadInput as problem:
        where = f"data_dir={str(subject.data_dir)!r}" if subject.data_dir else "no data_dir"
        subject.reject(
            f"with {where}, load raised BadInput: {problem}",
            "DataSource.load(data_dir) returns the data; the test says where its files are",
            f'give a folder with its files, or with a few of the same form: conformance("dataset", "{subject.name}", '
            "data_dir=...)",
        )
    if not isinstance(found, Data):
        subject.reject(
            f"load returned {type(found).__name__}", "DataSource.load returns a ctkd.api.Data", "return Data(...)"
        )
    return found


def _data(subject: Subject) -> Data:
    """The data, loaded once for all checks of one test."""
    memory: dict[str, Any] = subject.__dict__
    if "data" not in memory:
        memory["data"] = _load(subject)
    return memory["data"]  # type: ignore[no-any-return]


def exercise(subject: Subject) -> list[Tensor]:
    """Load it, and augment a batch."""
    data = _load(subject)
    return [getattr(data, name).images for name in SPLITS] + _augmented(data)


def _augmented(data: Data) -> list[Tensor]:
    if data.augment is None:
        return []
    x = data.train.images[:AUGMENTED].clone()
    return [data.augment(x, _noise(len(x)))]


def _noise(count: int) -> Noise:
    return Noise(0, "conformance-augmentation", samples=torch.arange(count))


def loads_checked_data(subject: Subject) -> None:
    """Images are float32 in [0, 1], labels int64 below ``classes``, and every split has both."""
    data = _data(subject)
    try:
        check_data(data)
    except BadInput as problem:
        subject.reject(
            str(problem),
            "ctkd.api.Split: images (count, *input_shape), float32 in [0, 1], and labels (count,), int64",
            "convert once in load; normalisation belongs into the model",
        )
    missing = sorted(set(range(data.classes)) - set(data.train.labels.tolist()))
    if missing:
        subject.reject(
            f"classes is {data.classes}, and the train split has no image of class {missing[0]}",
            "Data.classes is the number of classes, and each of them can be learned",
            "correct classes, or the division into splits: shuffle before cutting",
        )


def loads_the_same_twice(subject: Subject) -> None:
    """Two loads give equal splits, in equal order, whatever the global random numbers."""
    first = _data(subject)
    seed_everything(5)
    second = _load(subject)
    for name in SPLITS:
        a, b = getattr(first, name), getattr(second, name)
        if not (a.images.equal(b.images) and a.labels.equal(b.labels)):
            subject.reject(
                f"two loads differ in the {name} split",
                "a data set is fixed: a run that is resumed, or certified later, sees the same images",
                "divide with ctkd.data's fixed order or a torch.Generator with a fixed seed, and sort names of files",
            )


def keeps_its_splits_apart(subject: Subject) -> None:
    """Hardly any image of one split is in another."""
    data = _data(subject)
    prints = {
        name: [hashlib.sha256(image.numpy().tobytes()).digest() for image in getattr(data, name).images]
        for name in SPLITS
    }
    for one, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
        known = set(prints[other])
        repeated = sum(each in known for each in prints[one])
        if repeated > REPEATED * len(prints[one]):
            subject.reject(
                f"{repeated} of {len(prints[one])} images of the {one} split are in the {other} split, too",
                "Data: models are selected on validation, and test is for reported numbers only",
                "cut one shuffled order into parts that do not overlap",
            )


def names_the_folder_where_files_are_missing(subject: Subject) -> None:
    """In a folder without its files, ``load`` raises BadInput that names the folder, or needs no files."""
    with sandbox() as folder:
        empty = folder / "without-files"
        empty.mkdir()
        try:
            subject.create().load(empty)
        except BadInput as problem:
            if str(empty) not in str(problem):
                subject.reject(
                    f"for an empty folder load raised BadInput: {problem}",
                    "DataSource.load raises BadInput naming the folder looked in",
                    "write the folder into the message, and which files it should hold",
                )
        except Exception as error:  # a foreign plugin: anything may come out of it
            subject.reject(
                f"for an empty folder load raised {type(error).__name__}: {error}",
                "DataSource.load raises ctkd.errors.BadInput naming the folder looked in",
                "catch what reading a file raises, and say in one line what is missing where",
            )


def augments_within_the_contract(subject: Subject) -> None:
    """``augment`` keeps shape, dtype and range, writes to no input, and draws from its noise alone."""
    data = _data(subject)
    if data.augment is None:
        raise NotApplicable("augment is None")
    contract = "Data.augment(batch, noise) returns (batch, *input_shape), float32 in [0, 1]"
    for size in (AUGMENTED, 1):
        x = data.train.images[:size].clone()
        before = x.clone()
        found = data.augment(x, _noise(len(x)))
        if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != x.dtype:
            what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            subject.reject(f"augment returned {what} for {tuple(x.shape)}, {x.dtype}", contract, "keep the shape")
        if not bool(found.isfinite().all()) or float(found.min()) < 0 or float(found.max()) > 1:
            subject.reject(
                f"augment returned pixels from {float(found.min()):g} to {float(found.max()):g}",
                contract,
                "clamp to [0, 1] after noise or changes of contrast",
            )
        if not x.equal(before):
            subject.reject(
                "augment wrote to its input",
                "a batch may be a view of the data: what is written there stays",
                "work on a copy, or with operations that return new tensors",
            )
    check_repeats(subject, lambda: _augmented(data), "what augment returns", "noise", "noise.uniform(x)")


CHECKS = (
    *COMMON,
    loads_checked_data,
    loads_the_same_twice,
    keeps_its_splits_apart,
    names_the_folder_where_files_are_missing,
    augments_within_the_contract,
    leaves_global_state_alone(exercise),
)
