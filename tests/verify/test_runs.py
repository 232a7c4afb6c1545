# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The samples of a run: those that ctkd left open, or all, held against its own results."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctkd.run import certify, report
from ctkd.verify import asking

Verify = Callable[..., tuple[int, Any, str]]
EPS = 0.1


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, quick_run: tuple[Path, dict[str, Any]]) -> tuple[Path, Any]:
    """A run that is certified at a radius where some samples of each kind are left. Do not change it."""
    run = tmp_path_factory.mktemp("wide") / "run"
    shutil.copytree(quick_run[0], run)
    return run, certify(run, eps=EPS)


@pytest.fixture
def run(tmp_path: Path, wide: tuple[Path, Any]) -> tuple[Path, Any]:
    shutil.copytree(wide[0], tmp_path / "run")
    return tmp_path / "run", wide[1]


@pytest.fixture
def credulous(monkeypatch: pytest.MonkeyPatch) -> None:
    """No claim of ``verified`` is tried at corners: the honest fakes are no provers."""
    monkeypatch.setattr(asking, "challenge", lambda *ignored: None)


@pytest.mark.usefixtures("credulous")
def test_what_ctkd_left_open_is_asked_about(run: tuple[Path, Any], verify: Verify) -> None:
    path, known = run
    counts = known["counts"]
    assert counts["undecided"] > 0
    code, found, _ = verify(path, "--verifier", "Honest", "--eps", EPS, "--samples", known["samples"])
    assert code == 0
    assert found["results"] == str(path / "certification.sqlite")
    assert found["asked"] == found["instances"] == found["verified"] == counts["undecided"]
    assert (found["eps"], found["split"], found["samples"]) == (EPS, "test", known["samples"])
    # Centres are classified correctly, so this one, which is no prover, calls all of them verified.
    assert found["counts"] == {
        "certified": counts["certified"] + counts["undecided"],
        "broken": counts["broken"],
        "undecided": 0,
    }
    low, high = found["robust_accuracy_interval"]
    assert low == high == (known["samples"] - counts["broken"]) / known["samples"]
    assert certify(path, eps=EPS)["counts"] == counts  # ctkd's own results stay its own
    # A tool that settles nothing does not make what another one has settled unknown again.
    quiet = verify(path, "--verifier", "KeepsQuiet", "--eps", EPS, "--samples", known["samples"])[1]
    assert (quiet["verified"], quiet["falsified"], quiet["counts"]) == (0, 0, found["counts"])


@pytest.mark.usefixtures("credulous")
def test_a_run_that_was_never_certified(run: tuple[Path, Any], verify: Verify, tmp_path: Path) -> None:
    path, known = run
    (path / "certification.sqlite").unlink()
    arguments = (path, "--verifier", "Honest", "--eps", EPS, "--samples", known["samples"], "--all")
    code, first, _ = verify(*arguments)
    assert code == 0
    code, again, _ = verify(*arguments)  # goes on, though the file has no table of certificates
    assert (code, again["asked"], again["counts"]) == (0, 0, first["counts"])
    notes = report([path], tmp_path / "r.html", pictures=0)["notes"][str(path)]
    assert not any("cannot be read" in note for note in notes)
    assert "Honest" in (tmp_path / "r.html").read_text()
    assert verify(*arguments[:-1])[0] == 2  # what is open is not known


@pytest.mark.usefixtures("credulous")
def test_a_part_of_the_open_samples(run: tuple[Path, Any], verify: Verify) -> None:
    path, known = run
    found = [
        verify(path, "--verifier", "Honest", "--eps", EPS, "--samples", known["samples"], "--shard", f"{k}/3")[1]
        for k in (1, 2, 3)
    ]
    assert sum(each["asked"] for each in found) == known["counts"]["undecided"]
    assert "robust_accuracy_interval" not in found[0]  # a part says nothing about the whole


def test_a_verdict_against_ctkds_own_attack_stops_it(run: tuple[Path, Any], verify: Verify) -> None:
    path, known = run
    code, found, err = verify(path, "--verifier", "Verifies", "--eps", EPS, "--samples", known["samples"], "--all")
    assert (code, found) == (3, None)
    assert "Verifies (fake 1.0, fakes 1.0) says verified, and" in err
    (folder,) = (path / "contradictions").iterdir()
    assert (folder / "model.onnx").exists()
    assert "sample " in err


def test_a_witness_against_ctkds_own_certificate_stops_it(run: tuple[Path, Any], verify: Verify) -> None:
    path, known = run
    with sqlite3.connect(path / "certification.sqlite") as connection:  # as a wrong stage would have written it
        connection.execute("UPDATE samples SET status = 'certified', stage = 'wrong' WHERE status != 'certified'")
    code, found, err = verify(path, "--verifier", "Corners", "--eps", EPS, "--samples", known["samples"], "--all")
    assert (code, found) == (3, None)
    assert "ctkd's stage 'wrong' certifies it, and Corners (fake 1.0, fakes 1.0) has a witness" in err


def test_settings_that_contradict_each_other_stop_it(run: tuple[Path, Any], verify: Verify) -> None:
    path, known = run
    certify(path, eps=EPS, settings={"certify.attack_steps": 6})
    with sqlite3.connect(path / "certification.sqlite") as connection:
        settings = "SELECT max(id) FROM settings"
        statement = f"UPDATE samples SET status = 'broken', stage = 'other' WHERE settings = ({settings})"  # noqa: S608
        connection.execute(statement + " AND status = 'certified'")
    code, found, err = verify(path, "--verifier", "Honest", "--eps", EPS, "--samples", known["samples"])
    assert (code, found) == (3, None)
    assert "and broken by 'other' under other settings; one of them is wrong, and nothing was asked" in err


@pytest.mark.usefixtures("credulous")
def test_a_radius_that_was_never_certified(run: tuple[Path, Any], verify: Verify) -> None:
    path, _ = run
    code, _, err = verify(path, "--verifier", "Honest", "--eps", "0.04")
    assert code == 2
    assert "has no results of ctkd certify for these samples at eps=0.04" in err
    assert "ask about all of them with --all" in err
    code, found, _ = verify(path, "--verifier", "Honest", "--eps", "0.04", "--samples", 20, "--all")
    assert code == 0
    assert found["verified"] == found["instances"] == found["counts"]["certified"]
    assert found["counts"]["broken"] == 20 - found["instances"]  # misclassified: there is nothing to ask


def test_mistakes(run: tuple[Path, Any], verify: Verify, tmp_path: Path) -> None:
    path, _ = run
    for arguments, words in (
        (["--spec", "x.vnnlib"], "is a run, which needs no specification"),
        (["--eps", "2"], "eps=2: outside [0, 1]"),
        (["--start", "9999"], "the test split has 360 samples"),
        (["--set", "certify.split=nothing"], "certify.split=nothing"),
        (["--set", "certify.seed=3"], "certify.seed: accepted are options of Honest and certify.split, samples, start"),
    ):
        code, _, err = verify(path, "--verifier", "Honest", *arguments)
        assert code == 2
        assert words in err
