# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""`ctkd export`: a benchmark out of a run's results, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctkd.api import Found
from ctkd.boxes import Box
from ctkd.certify import attack
from ctkd.certify.store import Row
from ctkd.competition import Record, outcome_of
from ctkd.errors import Interrupted
from ctkd.progress import Silent
from ctkd.propagate import Network, margins_of
from ctkd.run import certify, export_benchmark

Command = Callable[..., tuple[int, str, str]]

EPS = 0.03
SETTINGS = {"certify.samples": 150, "certify.attack_steps": 10, "certify.attack_restarts": 1}


@pytest.fixture(scope="module")
def certified(quick_run: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with results at a radius where its student is certified here and broken there. Copy it to change it."""
    run = tmp_path_factory.mktemp("certified") / "run"
    shutil.copytree(quick_run[0], run)
    certify(run, eps=EPS, settings=SETTINGS)
    return run


@pytest.fixture
def copy(certified: Path, tmp_path: Path) -> Path:
    shutil.copytree(certified, tmp_path / "run")
    return tmp_path / "run"


def rows_of(run: Path) -> dict[int, tuple[str, str]]:
    with sqlite3.connect(run / "certification.sqlite") as connection:
        found = connection.execute(
            "SELECT sample, status, stage FROM samples JOIN settings ON settings.id = samples.settings WHERE eps = ?",
            (EPS,),
        )
        return {sample: (status, stage) for sample, status, stage in found}


def change(run: Path, statement: str) -> int:
    with sqlite3.connect(run / "certification.sqlite") as connection:
        return connection.execute(statement).rowcount


def test_a_benchmark_of_a_run(certified: Path, tmp_path: Path, ctkd_command: Command) -> None:
    options = ["--format", "vnncomp", "--seed", "7", "--samples", "6", "--budget", "600", "--eps", EPS, "--json"]
    code, out, err = ctkd_command("export", certified, tmp_path / "bench", *options)
    assert code == 0, err
    report = json.loads(out)
    recorded = rows_of(certified)
    assert sum(report["pool"].values()) == sum(stage != "natural" for _, stage in recorded.values())
    assert (report["instances"], report["without_witness"], report["seed"]) == (6, 0, 7)
    assert 590 < report["total_timeout"] <= 600
    with (tmp_path / "bench" / "data" / "outcomes.csv").open(newline="") as file:
        pool = {int(row["sample"]): row for row in csv.DictReader(file)}
    assert {sample for sample, (_, stage) in recorded.items() if stage != "natural"} == set(pool)
    for sample, row in pool.items():
        status, stage = recorded[sample]
        cheap = "cheap" if stage in ("ibp", "crown-ibp") else "tight"
        assert row["outcome"] == (cheap if status == "certified" else status)
    broken = sum(status == "broken" and stage == "attack" for status, stage in recorded.values())
    assert broken >= 1
    assert len(np.load(tmp_path / "bench" / "data" / "witnesses.npy")) == broken
    text = (tmp_path / "bench" / "README.md").read_text()
    assert (
        "trained on digits by `ibp` at an L-infinity radius of 0.1, with a teacher from `pgd` and the objective" in text
    )
    bib = (tmp_path / "bench" / "CITATION.bib").read_text()
    assert "Effectiveness of Interval Bound Propagation" in bib
    assert "Empirically-Robust Teachers" in bib


def test_what_people_are_told(certified: Path, tmp_path: Path, ctkd_command: Command) -> None:
    options = ["--format", "vnncomp", "--mix", "cheap=4,broken=1", "--budget", "180", "--eps", EPS, "--name", "net"]
    code, out, err = ctkd_command("export", certified, tmp_path / "bench", *options)
    assert code == 0, err
    assert out.startswith("5 instances at eps 0.03 in ")
    assert "4 cheap (30 s each, of " in out
    assert "1 broken (60 s each, of " in out
    assert "timeouts: 180 s in all" in out
    assert "README.md is a draft" in out
    assert (tmp_path / "bench" / "onnx" / "net.onnx").is_file()


def test_the_same_call_gives_the_same_repository(certified: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_benchmark(certified, tmp_path / name, eps=EPS, samples=5, seed=1)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)


def test_a_small_pool(certified: Path, tmp_path: Path) -> None:
    """Drawn over the whole split, not its first images."""
    report = export_benchmark(certified, tmp_path / "bench", eps=EPS, samples=4, pool=12)
    assert max(report["pool"].values()) == 12
    with (tmp_path / "bench" / "data" / "outcomes.csv").open(newline="") as file:
        samples = [int(row["sample"]) for row in csv.DictReader(file) if row["outcome"] == "cheap"]
    assert samples == sorted(samples)
    assert max(samples) > 60


def test_which_stages_are_cheap(certified: Path, tmp_path: Path, ctkd_command: Command) -> None:
    options = ["--format", "vnncomp", "--samples", "4", "--eps", EPS, "--cheap", "none-of-them", "--json"]
    code, out, err = ctkd_command("export", certified, tmp_path / "bench", *options)
    assert code == 0, err
    assert json.loads(out)["pool"]["cheap"] == 0
    assert "certified by ibp or crown-ibp or crown only" in (tmp_path / "bench" / "README.md").read_text()


# Refusals ------------------------------------------------------------------------------------------------


def refused(ctkd_command: Command, *arguments: object) -> str:
    code, out, err = ctkd_command("export", *arguments)
    assert (code, out) == (2, "")
    return err


def test_without_results(certified: Path, tmp_path: Path, ctkd_command: Command) -> None:
    """At this radius; on other data; in a run that has none at all."""
    wanted = "has no results of this student at eps=0.07; run `ctkd certify"
    error = refused(ctkd_command, certified, tmp_path / "bench", "--format", "vnncomp", "--eps", "0.07")
    assert wanted in error
    assert f"{certified} --eps 0.07` first" in error
    assert not (tmp_path / "bench").exists()


def test_a_run_without_a_results_file(copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    (copy / "certification.sqlite").unlink()
    error = refused(ctkd_command, copy, tmp_path / "bench", "--format", "vnncomp")
    assert "has no results of this student at eps=0.1; run `ctkd certify" in error
    assert not (copy / "certification.sqlite").exists()


def test_results_of_other_images_do_not_count(copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    assert change(copy, "UPDATE settings SET details = json_set(details, '$.data', 'other')") >= 1
    assert "has no results" in refused(ctkd_command, copy, tmp_path / "bench", "--format", "vnncomp", "--eps", EPS)


def test_too_few_images(certified: Path, tmp_path: Path, ctkd_command: Command) -> None:
    arguments = [certified, tmp_path / "bench", "--format", "vnncomp", "--eps", EPS]
    error = refused(ctkd_command, *arguments, "--mix", "broken=149,cheap=1")
    assert "too few images that are broken; possible are at most cheap=" in error
    assert f"`ctkd certify {certified} --eps 0.03` with more samples or other stages finds more" in error
    assert "samples=149: a mix of at most half" in refused(ctkd_command, *arguments, "--samples", "149")
    assert not (tmp_path / "bench").exists()


def test_no_image_is_classified_correctly(copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    change(copy, "UPDATE samples SET status = 'broken', stage = 'natural'")
    error = refused(ctkd_command, copy, tmp_path / "bench", "--format", "vnncomp", "--eps", EPS)
    assert "none of the 150 images with results is classified correctly" in error


def test_options_that_cannot_be(certified: Path, tmp_path: Path, ctkd_command: Command) -> None:
    arguments = [certified, tmp_path / "bench", "--format", "vnncomp", "--eps", EPS]
    for given, message in {
        ("--budget", "21601"): "budget=21601: the timeouts of a benchmark may add up to 21600 seconds at most",
        ("--budget", "1"): "budget=1 is too small for",
        ("--mix", "easy=1"): "'easy=1' is not a count of images",
        ("--pool", "0"): "pool=0: must be greater than or equal to 1",
        ("--seed", "-1"): "seed=-1: must be greater than or equal to 0",
        ("--name", "a/b"): "name 'a/b' is not usable in instances.csv",
        ("--timeout", "60"): "--timeout belongs to --format folder; this is --format vnncomp",
    }.items():
        extra = () if "--mix" in given else ("--samples", "4")
        assert message in refused(ctkd_command, *arguments, *given, *extra), given
    both = refused(ctkd_command, certified, tmp_path / "bench", "--mix", "cheap=1", "--pool", "9")
    assert "--mix belongs to --format vnncomp; this is --format folder" in both
    assert "--pool belongs to --format vnncomp; this is --format folder" in both
    assert not (tmp_path / "bench").exists()


def test_a_contradiction_between_settings(copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    """The same sample certified under one attack, broken under another."""
    certify(copy, eps=EPS, settings={**SETTINGS, "certify.seed": 1, "certify.samples": 20})
    only = "UPDATE samples SET status = 'broken', stage = 'attack' WHERE settings = (SELECT max(id) FROM settings)"
    assert change(copy, only) == 20
    code, out, err = ctkd_command("export", copy, tmp_path / "bench", "--format", "vnncomp", "--eps", EPS)
    assert (code, out) == (3, "")
    assert "is certified at eps=0.03 under some settings of `ctkd certify` and broken under others" in err
    assert not (tmp_path / "bench").exists()


def test_what_is_recorded_as_broken_and_is_not(copy: Path, tmp_path: Path) -> None:
    """No counterexample is found again: nothing is claimed."""
    count = change(
        copy, "UPDATE samples SET status = 'broken', stage = 'attack' WHERE status = 'certified' AND sample < 60"
    )
    assert count > 10
    report = export_benchmark(copy, tmp_path / "bench", eps=EPS, samples=3)
    assert report["without_witness"] >= 10


def test_counterexamples_that_a_stage_found(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage searches once more; a point that it does not find again is not claimed."""
    change(copy, "UPDATE samples SET stage = 'searching' WHERE status = 'broken' AND stage = 'attack'")
    broken = sum(stage == "searching" for _, stage in rows_of(copy).values())
    change(copy, "UPDATE settings SET details = json_set(details, '$.stages[0]', json('{\"name\": \"searching\"}'))")
    assert broken >= 2
    asked = []

    class Searching:
        def search(self, network: Network, box: Box, labels: Tensor, stop: Callable[[], bool]) -> Found:
            """Signed gradient steps; nothing in the first call."""
            asked.append(box.lower.dtype)
            point = (box.lower + box.upper) / 2
            for _ in range(20):
                point = point.detach().requires_grad_()
                margins = margins_of(network(point), labels).scatter(1, labels[:, None], torch.inf)
                (gradient,) = torch.autograd.grad(margins.amin(), point)
                point = box.clamp(point - 0.01 * gradient.sign())
            return Found(margins, None if len(asked) == 1 else point.detach())

    create = attack.create_from
    monkeypatch.setattr(
        attack, "create_from", lambda kind, table: Searching() if table["name"] == "searching" else create(kind, table)
    )
    report = export_benchmark(copy, tmp_path / "bench", eps=EPS, samples=4)
    assert asked == [torch.float64] * broken
    assert report["pool"]["broken"] >= 1
    assert report["without_witness"] == broken - report["pool"]["broken"] >= 1


def test_several_settings_count_together(copy: Path, tmp_path: Path) -> None:
    """What one of them left open, another one certified."""
    only = {**SETTINGS, "certify.stages": ["ibp"], "certify.seed": 2}
    assert change(copy, "UPDATE samples SET status = 'undecided', stage = '' WHERE status = 'certified'") > 10
    certify(copy, eps=EPS, settings=only)
    report = export_benchmark(copy, tmp_path / "bench", eps=EPS, samples=4)
    assert report["pool"]["cheap"] >= 10


def test_a_plugin_that_is_gone(copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    """The network is there, and its results; only how it was trained cannot be told."""
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config.replace('name = "ibp"', 'name = "gone"', 1))
    options = ["--format", "vnncomp", "--samples", "4", "--eps", EPS]
    code, _, err = ctkd_command("export", copy, tmp_path / "bench", *options)
    assert code == 0
    assert "warning: README.md and CITATION.bib do not say how the network was trained: " in err
    assert "trained on digits as its own configuration says." in (tmp_path / "bench" / "README.md").read_text()


def test_an_interrupted_export_leaves_nothing(certified: Path, tmp_path: Path) -> None:
    """Ctrl-C while counterexamples are found again."""

    class Impatient(Silent):
        def advance(self, steps: int = 1, note: str = "") -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="interrupted; nothing was written") as caught:
        export_benchmark(certified, tmp_path / "bench", eps=EPS, samples=4, reporter=Impatient())
    assert caught.value.exit_code == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "stage", "outcome"),
    [
        ("certified", "ibp", "cheap"),
        ("certified", "crown", "tight"),
        ("broken", "attack", "broken"),
        ("broken", "natural", "misclassified"),
        ("undecided", "", "undecided"),
    ],
)
def test_outcomes(status: Any, stage: str, outcome: str) -> None:
    row = Row(3, 1, 1, status, stage, None, 0.5, 0.1)
    assert outcome_of(row, ("ibp",)) == outcome
    assert Record(row, outcome, {}).candidate().sample == 3
