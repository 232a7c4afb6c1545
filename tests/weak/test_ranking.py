# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Who is weakest: what the results say, and how ranks are made and combined."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.run import certify, radii, weak
from ctkd.weak.ranking import Measure, Standing, Standings, ranked, ranks

Command = Callable[..., tuple[int, str, str]]
VALUES = st.sampled_from([-math.inf, -1.5, 0.0, 0.5, 2.0])
KEYS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)


@given(KEYS)
def test_ranks_are_places_that_equals_share(keys: list[tuple[float, float]]) -> None:
    found = ranks(keys)
    assert sum(found) == len(keys) * (len(keys) + 1) / 2
    for one, rank in zip(keys, found, strict=True):
        below, equal = sum(key < one for key in keys), keys.count(one)
        assert rank == below + (equal + 1) / 2


def standings(by: Measure, values: dict[int, tuple[float | None, float | None]], wrong: tuple[int, ...] = ()) -> Any:
    samples = {
        i: Standing(0, value, broken, "", "natural" if i in wrong else "", 0) for i, (value, broken) in values.items()
    }
    config: Any = None
    return Standings(Path("r"), config, "", by, None, "test", "", samples, [])


def order(runs: list[Any], combination: Any = "mean", *, correct: bool = False) -> list[int]:
    return [place.sample for place in ranked(runs, combination, correct=correct)]


def test_a_margin_that_nothing_bounds_is_the_weakest() -> None:
    assert order([standings("margin", {0: (-2.0, -1.0), 1: (None, 3.0), 2: (0.5, 1.0), 3: (-2.0, -1.5)})]) == [
        1,
        3,
        0,
        2,
    ]


def test_no_radius_counts_as_zero_and_what_breaks_sooner_is_weaker() -> None:
    values = {0: (0.1, 0.2), 1: (None, 0.1), 2: (0.0, 0.05), 3: (0.1, None), 4: (None, 0.0)}
    assert order([standings("radius", values)]) == [4, 2, 1, 0, 3]


def test_ranks_of_runs_are_combined_over_the_samples_that_all_have() -> None:
    first = standings("margin", {i: (float(i), 0.0) for i in (0, 1, 2, 3)})
    second = standings("margin", {3: (-1.0, 0.0), 1: (0.0, 0.0), 2: (0.0, 0.0), 9: (-9.0, 0.0)})
    # Ranks of 1, 2, 3: first 1, 2, 3; second 2.5, 2.5, 1.
    assert [(p.sample, p.rank) for p in ranked([first, second], "mean", correct=False)] == [
        (1, 1.75),
        (3, 2.0),
        (2, 2.25),
    ]
    assert [(p.sample, p.rank) for p in ranked([first, second], "worst", correct=False)] == [
        (1, 1.0),
        (3, 1.0),
        (2, 2.0),
    ]


def test_correct_leaves_out_what_any_run_misclassifies() -> None:
    values: dict[int, tuple[float | None, float | None]] = {i: (float(i), 0.0) for i in range(4)}
    runs = [standings("margin", values, wrong=(0,)), standings("margin", values, wrong=(2,))]
    assert order(runs) == [0, 1, 2, 3]
    assert order(runs, correct=True) == [1, 3]


def test_margins_are_those_of_the_results(run: Path) -> None:
    found = weak([run], worst=40)
    with sqlite3.connect(run / "certification.sqlite") as connection:
        rows = connection.execute(
            "SELECT sample, label, prediction, lower_margin, attack_margin, status, stage FROM samples "
            "JOIN settings ON settings.id = settings WHERE split = 'test' AND eps = 0.1 "
            "ORDER BY lower_margin, attack_margin"
        ).fetchall()
    assert len(rows) == found["ranked"] == 40
    keys = ("prediction", "value", "broken", "verdict", "stage")
    assert [(s["sample"], s["label"], *(s["runs"][0][k] for k in keys)) for s in found["samples"]] == rows
    assert len({row[5] for row in rows}) > 1  # it is not all the same


def test_margins_of_several_settings_are_taken_together(copy: Path) -> None:
    before = {s["sample"]: s["runs"][0] for s in weak([copy], worst=40)["samples"]}
    certify(copy, settings={"certify.stages": ["ibp"], "certify.attack_steps": 1, "certify.samples": 40})
    assert {s["sample"]: s["runs"][0] for s in weak([copy], worst=40)["samples"]} == before
    chosen = next(sample for sample, one in before.items() if one["verdict"] == "undecided")
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute(  # as if another stage had found more
            "UPDATE samples SET lower_margin = 99, status = 'certified', stage = 'other', attack_margin = 100 "
            "WHERE sample = ? AND settings = (SELECT max(id) FROM settings)",
            (chosen,),
        )
    after = {s["sample"]: s["runs"][0] for s in weak([copy], worst=40)["samples"]}
    better = {"value": 99, "verdict": "certified", "stage": "other"}
    assert after == {**before, chosen: {**before[chosen], **better}}


def test_radii_are_those_of_the_search(run: Path) -> None:
    found = weak([run], by="radius", worst=20)
    searched = {one["sample"]: one for one in radii(run, tolerance=0.04, settings={"certify.samples": 20})["radii"]}
    assert found["ranked"] == len(searched) == 20
    for sample in found["samples"]:
        one = sample["runs"][0]
        assert (one["value"], one["broken"]) == tuple(
            searched[sample["sample"]][key] for key in ("certified", "broken")
        )
        assert sample["label"] == searched[sample["sample"]]["label"]
        assert one["prediction"] is not None
    ends = [(one["value"], one["broken"]) for s in found["samples"] for one in s["runs"]]
    shown = [(certified or 0, 2 if broken is None else broken) for certified, broken in ends]
    assert shown == sorted(shown)


def test_another_split_is_asked_for(run: Path) -> None:
    assert weak([run], split="validation", worst=30)["ranked"] == 30


def test_two_runs(run: Path, other: Path) -> None:
    found = weak([run, other, run], worst=5)
    assert found["runs"] == [str(run), str(other)]
    alone = [{s["sample"]: s["rank"] for s in weak([one], worst=40)["samples"]} for one in (run, other)]
    for sample in found["samples"]:
        assert sample["rank"] == sum(one[sample["sample"]] for one in alone) / 2
    assert found["samples"] != weak([run], worst=5)["samples"]


@pytest.mark.parametrize("rank", ["mean", "worst"])
def test_one_run_has_one_order(run: Path, rank: str) -> None:
    assert weak([run], rank=rank)["samples"] == weak([run])["samples"]
    assert len(weak([run])["samples"]) == 20


def test_the_command_prints_a_table_or_json(run: Path, other: Path, ctkd_command: Command) -> None:
    code, out, err = ctkd_command("weak", str(run), "--worst", "3")
    assert (code, err) == (0, "")
    first = weak([run], worst=3)["samples"]
    assert out.startswith("The weakest 3 of 40 test samples by certified margin at eps 0.1\n")
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    shown = [[str(s["sample"]), str(s["label"]), f"{s['runs'][0]['value']:.4g}"] for s in first]
    assert [[row[0], row[1], row[3]] for row in cells] == shown
    code, out, err = ctkd_command("weak", str(run), str(other), "--by", "margin", "--worst", "3")
    assert f"1: {run}\n2: {other}\n" in out
    code, out, err = ctkd_command("weak", str(run), str(other), "--json", "--correct")
    assert json.loads(out) == json.loads(json.dumps(weak([run, other], correct=True)))
    assert (code, err) == (0, "".join(f"warning: {note}\n" for note in json.loads(out)["notes"]))
