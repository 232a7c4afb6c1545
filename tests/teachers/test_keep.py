# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Keeping the best epoch, and stopping when none is better."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ctkd.certify.attack import evaluation_attack
from ctkd.config import resolve
from ctkd.errors import Interrupted
from ctkd.interrupt import StopRequest
from ctkd.progress import Silent
from ctkd.session import load_data
from ctkd.train.finish import finalise
from ctkd.train.loop import Plugins, Trainer

from ..conftest import QUICK

KEEP = {
    **QUICK,
    "teacher.name": "none",
    "bound.name": "adversarial",
    "train.epochs": 6,
    "train.keep": "best-adversarial",
    "train.lr": 1e-2,
}


class Heard(Silent):
    """Sets the stop after some steps; remembers what was said, and how far the bar came."""

    def __init__(self, stop: StopRequest, after: int | None = None) -> None:
        self.stop, self.after, self.said, self.done, self.total = stop, after, [], 0, 0  # type: ignore[var-annotated]

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        if self.done == self.after:
            self.stop.signal_number = 2

    def say(self, message: str) -> None:
        self.said.append(message)


class Recorded(Trainer):
    """Validation accuracies as given, and the weights after each epoch."""

    values: Sequence[float] = ()
    weights: list[str]

    def _metrics(self, epoch: int, norms: dict[str, float]) -> dict[str, Any]:
        self.__dict__.setdefault("weights", []).append(finalise(self.module, self.data.input_shape).sha256())
        return super()._metrics(epoch, norms)

    def _attacked(self, network: Any) -> float:
        if not self.values:
            return super()._attacked(network)
        return self.values[self.step // self.steps_per_epoch - 1]


def trainer(
    folder: Path, values: Sequence[float] = (), after: int | None = None, **settings: Any
) -> tuple[Recorded, Heard, list[dict[str, Any]]]:
    config = resolve({**KEEP, **settings})
    evaluation = evaluation_attack(config.certify)
    choices = (config.bound, config.distill, config.attack, config.propagation)
    plugins = Plugins(*(choice.create() for choice in choices), evaluation)
    data = load_data(config)
    module = config.model.create().build(data.input_shape, data.classes)
    folder.mkdir(exist_ok=True)
    stop = StopRequest()
    heard, rows = Heard(stop, after), list[dict[str, Any]]()
    made = Recorded("teacher", "teacher", module, data, plugins, config.train, (), folder, heard, stop, "")
    made.values, made.on_epoch = values, lambda row: rows.append(copy.deepcopy(row))
    return made, heard, rows


def test_the_best_epoch_becomes_the_network(tmp_path: Path) -> None:
    """Epoch 1 has the highest figure and does not count: its radius is not the full one. Of equals the first wins."""
    run, heard, rows = trainer(tmp_path, (0.9, 0.2, 0.7, 0.7, 0.1, 0.6))
    network = run.run()
    assert len(set(run.weights)) == 6
    assert network.sha256() == run.weights[2]
    assert [row["phase"] for row in rows][:2] == ["ramp", "full"]
    assert [row["best_epoch"] for row in rows] == [None, 2, 3, 3, 3, 3]
    assert (heard.done, heard.said) == (heard.total, [])


def test_the_last_epoch_without_keep(tmp_path: Path) -> None:
    run, _, rows = trainer(tmp_path, (0.9,) * 6, **{"train.keep": "last"})
    assert run.run().sha256() == run.weights[-1]
    assert all("best_epoch" not in row and "adversarial_accuracy" not in row["validation"] for row in rows)


@pytest.mark.parametrize(
    ("patience", "epochs"),
    [(1, 4), (2, 6), (5, 6)],
)
def test_patience_stops_early(patience: int, epochs: int, tmp_path: Path) -> None:
    values = (0.9, 0.2, 0.7, 0.3, 0.8, 0.8)
    run, heard, rows = trainer(tmp_path, values, **{"train.patience": patience})
    network = run.run()
    best = 3 if patience == 1 else 5
    assert len(rows) == epochs
    assert network.sha256() == run.weights[best - 1]
    assert heard.done == epochs * run.steps_per_epoch
    said = [f"the teacher stops after epoch 4 of 6: none was better than {best}"] if epochs < 6 else []
    assert heard.said == said


def test_the_figure_is_the_accuracy_under_attack(tmp_path: Path) -> None:
    run, _, rows = trainer(tmp_path, **{"train.epochs": 4})
    run.run()
    figures = [row["validation"]["adversarial_accuracy"] for row in rows]
    assert all(0 <= row["validation"]["adversarial_accuracy"] < row["validation"]["natural_accuracy"] for row in rows)
    counted = figures[1:]
    assert rows[-1]["best_epoch"] == 2 + counted.index(max(counted))


def test_the_best_interval_accuracy(tmp_path: Path) -> None:
    run, _, rows = trainer(tmp_path, **{"train.keep": "best-interval", "bound.name": "ibp", "train.epochs": 4})
    network = run.run()
    figures = [row["validation"]["interval_certified_accuracy"] for row in rows][1:]
    best = 2 + figures.index(max(figures))
    assert rows[-1]["best_epoch"] == best
    assert network.sha256() == run.weights[best - 1]


@pytest.mark.parametrize("patience", [None, 2])
def test_interrupted_anywhere_and_resumed(patience: int | None, tmp_path: Path) -> None:
    """In the ramp, in the best epoch, right after it, in a worse one, and at the step that uses up the patience."""
    values = (0.9, 0.2, 0.7, 0.3, 0.5, 0.6)
    settings = {} if patience is None else {"train.patience": patience}
    whole, _, rows = trainer(tmp_path / "whole", values, **settings)
    expected = whole.run().sha256()
    assert expected == whole.weights[2]
    steps, epochs = whole.steps_per_epoch, len(rows)
    assert epochs == (6 if patience is None else 5)
    # An interruption at the very last step comes too late: everything is done, unless patience ended it.
    for after in (steps // 2, 2 * steps + 1, 3 * steps, 3 * steps + 2, 5 * steps - 1, 5 * steps):
        folder = tmp_path / str(after)
        first, _, _ = trainer(folder, values, after, **settings)
        with pytest.raises(Interrupted):
            first.run()
        second, heard, seen = trainer(folder, values, **settings)
        assert second.run().sha256() == expected
        assert heard.done == epochs * steps
        assert [row["epoch"] for row in seen] == list(range(after // steps + 1, epochs + 1))


def test_a_resumed_training_compares_with_what_was_measured_before(tmp_path: Path) -> None:
    """With real figures: the weights are those of the uninterrupted training."""
    whole, _, rows = trainer(tmp_path / "whole", **{"train.epochs": 4})
    expected = whole.run().sha256()
    first, _, _ = trainer(tmp_path / "parts", (), 2 * whole.steps_per_epoch + 3, **{"train.epochs": 4})
    with pytest.raises(Interrupted):
        first.run()
    second, _, seen = trainer(tmp_path / "parts", **{"train.epochs": 4})
    assert second.run().sha256() == expected
    assert seen[-1]["best_epoch"] == rows[-1]["best_epoch"]
    assert seen[-1]["validation"] == rows[-1]["validation"]
