# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What stages that search settle stays true under attack, within time, and through a kill."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ctkd.accuracy import smallest_margin
from ctkd.certify.alpha_crown import AlphaCrownOptions, AlphaCrownStage
from ctkd.certify.bab import leaf, search
from ctkd.certify.bab.descent import descend
from ctkd.certify.complete import CompleteOptions, CompleteStage
from ctkd.certify.store import Row, Store
from ctkd.export import to_onnx
from ctkd.propagate.linear import rivals
from ctkd.run import certify
from ctkd.train.finish import finalise

from .nets import NAMES, least_margin, network, points_in, samples, wide

SMALL = {"root_iterations": 3, "iterations": 3, "attack_starts": 1, "attack_steps": 2}
"""A weak search for counterexamples, so that it is the bounds that must not certify what is broken."""


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6), st.floats(0.01, 0.3))
def test_nothing_breaks_a_certified_sample(name: str, seed: int, eps: float) -> None:
    net = network(name, seed)
    x, labels = samples(net, 4, seed)
    big, box = wide(net, x, eps)
    for stage in (CompleteStage(CompleteOptions(timeout=60, nodes=60, **SMALL)), AlphaCrownStage(AlphaCrownOptions())):
        found = stage.search(big, box, labels, lambda: False)
        for k in range(len(labels)):
            points = points_in(box[k : k + 1], 500, seed)
            others = rivals(labels[k : k + 1], big.classes)[0].repeat_interleave(8)
            _, reached = descend(big, box[k : k + 1], labels[k : k + 1], others, points[: len(others)], 20)
            sampled = least_margin(big, points, int(labels[k]))
            lower = float(smallest_margin(found.margins[k : k + 1], labels[k : k + 1]))
            assert bool((found.margins[k] <= sampled + 1e-9).all())
            assert lower <= float(reached) + 1e-9
            if found.proofs[k] is not None:
                assert 0 < lower <= float(smallest_margin(sampled[None], labels[k : k + 1])) + 1e-9


class Clock:
    """Every look at it takes a tenth of a second."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.looks / 10


def test_the_timeout_counts_everything_that_is_done_for_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("residual", 1)
    x, labels = samples(net, 30, 2)
    big, box = wide(net, x[18:19], 0.12)
    limits = {"batch_size": 2, "attack_starts": 1, "attack_steps": 1}
    whole = CompleteStage(CompleteOptions(timeout=60, **limits)).search(big, box, labels[18:19], lambda: False)
    assert whole.proofs[0] is not None
    clock = Clock()
    monkeypatch.setattr("ctkd.certify.bab.whole.time", clock)
    monkeypatch.setattr(search, "time", clock)
    cut = CompleteStage(CompleteOptions(timeout=2, **limits)).search(big, box, labels[18:19], lambda: False)
    assert cut.proofs == [None]
    assert clock.looks < 30  # twenty in two seconds, and a few to get out of loops
    assert bool((cut.margins <= whole.margins + 1e-6).all())


def test_no_linear_program_begins_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where many leaves wait for one in the same batch."""
    net = network("mlp", 1)
    x, labels = samples(net, 30, 2)
    big, box = wide(net, x[9:10], 0.12)
    solved, real = [], leaf.solve

    def watched(*given: Any) -> Any:
        solved.append(len(given))
        return real(*given)

    monkeypatch.setattr(leaf, "solve", watched)
    stage = CompleteStage(CompleteOptions(timeout=60, root_iterations=1, iterations=1, attack_starts=1))
    found = stage.search(big, box, labels[9:10], lambda: False)
    assert found.proofs[0] is not None
    assert len(solved) > 1
    solved.clear()
    cut = stage.search(big, box, labels[9:10], lambda: bool(solved))
    assert len(solved) == 1
    assert cut.proofs == [None]
    assert bool((cut.margins <= found.margins + 1e-6).all())


STAGES = ["alpha-crown", {"name": "complete", "timeout": 1000, "nodes": 60, "attack_starts": 1}]
SETTINGS = {"certify.proofs": True, "certify.stages": STAGES, "certify.samples": 60, "certify.batch_size": 20}
EPS = 0.05


def rows_of(run: Path) -> list[Row]:
    with contextlib.closing(sqlite3.connect(run / "certification.sqlite")) as connection:
        (key,) = connection.execute("SELECT id FROM settings WHERE eps = ?", (EPS,)).fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Store(run / "certification.sqlite") as store:
        return store.rows(key, range(60))


def test_a_kill_loses_no_settled_sample(
    quick_run: tuple[Path, dict[str, Any]], tmp_path: Path, ctkd_command: Callable[..., tuple[int, str, str]]
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for run in (killed, whole):
        shutil.copytree(quick_run[0], run)
    certify(whole, eps=EPS, settings=SETTINGS)
    call = f"from ctkd.run import certify; certify(Path({str(killed)!r}), eps={EPS}, settings={SETTINGS!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; {call}"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while process.poll() is None and not list((killed / "proofs").glob("*/*.safetensors")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = rows_of(killed)
    assert len(left) < 60
    stored = {int(path.stem) for path in (killed / "proofs").glob("*/*.safetensors")}
    for row in left:
        assert row.status != "certified" or row.sample in stored
    certify(killed, eps=EPS, settings=SETTINGS)
    got, wanted = (
        [(r.sample, r.status, r.stage, r.lower_margin, r.attack_margin) for r in rows_of(run)]
        for run in (killed, whole)
    )
    assert [row[:3] for row in got] == [row[:3] for row in wanted]
    assert {row[1] for row in got} >= {"certified", "broken"}
    for one, other in itertools.zip_longest(got, wanted):
        assert one[3:] == pytest.approx(other[3:], abs=1e-5)
    code, out, _ = ctkd_command("check-proofs", str(killed), "--json")
    assert (code, json.loads(out)["checked"]) == (0, sum(row[1] == "certified" for row in got))


def test_proofs_of_other_activations_are_refused_before_anything_is_done(
    tmp_path: Path, ctkd_command: Callable[..., tuple[int, str, str]]
) -> None:
    layers = nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 10)
    model, out = tmp_path / "model.onnx", tmp_path / "results"
    model.write_bytes(to_onnx(finalise(nn.Sequential(*layers), (1, 8, 8))).SerializeToString())
    asked = ("certify", str(model), "--samples", "4", "--eps", "0.01", "--out", str(out))
    stages = ("--set", 'certify.stages=["complete"]')
    code, _, err = ctkd_command(*asked, *stages, "--set", "certify.proofs=true")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "this one has MaxPool, Sigmoid" in line
    assert "leave certify.proofs out" in line
    with Store(out / "certification.sqlite") as store:
        assert store.connection.execute("SELECT count(*) FROM samples").fetchone() == (0,)
