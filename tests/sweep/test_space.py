# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What ``--over`` takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.errors import BadInput
from ctkd.sweep.samplers import Grid, Random, Tpe
from ctkd.sweep.space import Choices, Range, cells_of, parse, space_of


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bound.alpha=0.1:0.9", Range("bound.alpha", 0.1, 0.9, log=False)),
        ("train.l1=1e-7:1e-4:log", Range("train.l1", 1e-7, 1e-4, log=True)),
        ("attack.step_size=1/255:8/255", Range("attack.step_size", 1 / 255, 8 / 255, log=False)),
        ("distill.name=none, features", Choices("distill.name", ("none", "features"))),
        ("train.compile=true,false", Choices("train.compile", (True, False))),
        ("train.epochs=4,8", Choices("train.epochs", (4, 8))),
        ("model.name=cnn-small,pkg.nets:factory", Choices("model.name", ("cnn-small", "pkg.nets:factory"))),
    ],
)
def test_forms(text: str, wanted: Any) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alpha=0:1", "write bound.alpha"),
        ("bound.alpha", "write bound.alpha"),
        ("bound.alpha=", "write bound.alpha"),
        ("bound.alpha=0.5", "two different values"),
        ("bound.alpha=0.5,0.5", "0.5 comes twice; name different values"),
        ("train.l1=1e-5,0.00001,1", "1e-05 comes twice"),
        ("bound.alpha=0.1:nan", "two different values, or a range of numbers"),
        ("bound.alpha=0.5:0.1", "below the second"),
        ("bound.alpha=0:1:log", "begins above 0"),
        ("bound.alpha=0:1:sqrt", "two different values"),
        ("bound.alpha=1/0:1", "is not a finite number"),
        ("bound.alpha=0:1e999", "is not a finite number"),
        ("train.eps=0.1:0.2", "different radii"),
        ("train.seed=1,2", "--seeds"),
        ("certify.samples=10,20", "same way"),
        ("data.name=mnist,digits", "cannot be compared"),
        ("data.validation=1000,5000", "cannot be compared"),
        ("data.size=32:64", "cannot be compared"),
        ("teacher.seed=0,1", "--seeds 0 1 2 trains teachers"),
        ("train.final=true,false", "validation images"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse(text)


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.booleans(), st.integers(0, 2**31), st.integers(0, 50))
def test_proposals_stay_inside_and_depend_on_seed_and_trial_only(
    a: float, b: float, log: bool, seed: int, trial: int
) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    low, high = sorted((a, b))
    if low == high:
        return
    parameter = Range("train.l1", low, high, log)
    drawn = []
    for _ in range(2):
        drawn.append(Random({"x": parameter}).propose(optuna.create_study(), seed, trial)["x"])
    assert drawn[0] == drawn[1]
    assert low <= drawn[0] <= high


@pytest.mark.parametrize("kind", [Tpe, Random])
def test_no_trial_is_proposed_twice(kind: Any) -> None:
    """The estimator soon proposes what it knows to be best; then what is left is drawn."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "a.b": Choices("a.b", (1, 2, 3, 4)),
        "c.d": Range("c.d", 4, 11, log=False, integer=True),
        "e.f": Choices("e.f", ("x", True)),
    }
    assert cells_of(space) == 64
    assert cells_of({**space, "g": Range("g", 0, 1, log=False)}) == math.inf
    kinds = {key: parameter.distribution() for key, parameter in space.items()}
    study = optuna.create_study()
    for trial in range(64):
        study.enqueue_trial(kind(space).propose(study, 5, trial))
        asked = study.ask(kinds)
        if trial == 3:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, float(asked.params["a.b"]))
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 64


def test_a_grid_has_every_cell_once() -> None:
    import optuna

    space = {"a.b": Choices("a.b", (1, 2, 3)), "c.d": Choices("c.d", ("x", True))}
    grid, found = Grid(space), []
    study = optuna.create_study()
    kinds = {key: parameter.distribution() for key, parameter in space.items()}
    for trial in range(int(cells_of(space))):
        study.enqueue_trial(grid.propose(study, 5, trial))
        params = study.ask(kinds).params
        found.append(tuple(space[key].value(params[key]) for key in space))
    assert found == [(1, "x"), (1, True), (2, "x"), (2, True), (3, "x"), (3, True)]


def test_whole_numbers_where_the_option_is_one() -> None:
    found = space_of(["train.batch_size=64:256", "train.lr=1e-4:1", "bound.alpha=0:1"], {"bound.name": "cc-ibp"}, None)
    assert [part.integer for part in found.values() if isinstance(part, Range)] == [True, False, False]


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        space_of(
            ["bound.alpha=0:2", "bound.beta=0:1", "distill.name=none,featurs", "train.lr=0.1,0.2"],
            {"bound.name": "cc-ibp"},
            None,
        )
    text = "\n".join(caught.value.messages)
    assert "bound.alpha=2" in text
    assert "bound.beta is not an option" in text
    assert "did you mean 'features'" in text
    with pytest.raises(BadInput, match="both set and varied"):
        space_of(["train.lr=0.1,0.2"], {"train.lr": 0.1}, None)
    with pytest.raises(BadInput, match="given twice"):
        space_of(["train.lr=0.1,0.2", "train.lr=0.3,0.2"], {}, None)
    with pytest.raises(BadInput, match="at least one parameter"):
        space_of([], {}, None)
