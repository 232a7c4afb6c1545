# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Two statements that cannot both be true stop everything, and the evidence for both stays."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ctkd.export.benchmark.witness import read_witness_1
from ctkd.verify import asking
from ctkd.verify.conflicts import conflict
from ctkd.verify.instances import Sample
from ctkd.verify.model import Model
from ctkd.verify.store import Reason, Result, Stored
from ctkd.verifying import Verdict
from ctkd.vnnlib import read_specification

Verify = Callable[..., tuple[int, Any, str]]


def test_a_violation_inside_a_verified_box(bench: Path, verify: Verify) -> None:
    code, found, err = verify(bench, "--verifier", "Verifies")
    folder = bench / "contradictions" / "instance-3"
    assert (code, found) == (3, None)
    assert "vnnlib/fails_2.vnnlib: Verifies (fake 1.0, fakes 1.0) says verified, and onnxruntime finds a" in err
    assert str(folder) in err
    with sqlite3.connect(bench / "verification.sqlite") as connection:
        answers = connection.execute("SELECT verdict, said, reason FROM verification_answers").fetchall()
        kept = connection.execute("SELECT instance, folder FROM contradictions").fetchall()
    assert answers == [("verified", "verified", "")] * 2 + [("error", "verified", "refuted")]
    assert kept == [(3, str(folder))]


def test_opposite_verdicts_of_two_tools(bench: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "challenge", lambda *ignored: None)  # the box is not easily broken
    assert verify(bench, "--verifier", "Verifies")[0] == 0
    code, found, err = verify(bench, "--verifier", "Honest")
    assert (code, found) == (3, None)
    assert "Verifies (fake 1.0, fakes 1.0) says verified, and Honest (fake 1.0, fakes 1.0) has a witness" in err
    folder = bench / "contradictions" / "instance-3"
    facts = json.loads((folder / "contradiction.json").read_text())
    assert [(each["verifier"], each["verdict"]) for each in facts["answers"]] == [
        ("Verifies", "verified"),
        ("Honest", "falsified"),
    ]
    # The folder alone proves the point.
    x, y = read_witness_1((folder / "2-Honest.counterexample").read_text())
    found = Model(folder / "model.onnx")(x)
    assert (found == y).all()
    assert read_specification(folder / "specification.vnnlib").violated(x, found)
    assert (folder / "specification.vnnlib").read_text() == (bench / "vnnlib" / "fails_2.vnnlib").read_text()
    assert (folder / "2-Honest.log").read_text() == "looked at the centre"
    # It stops every further attempt, until the tool at fault is taken back.
    shutil.rmtree(bench / "contradictions")
    assert verify(bench, "--verifier", "Second")[0] == 3
    assert (folder / "contradiction.json").exists()
    code, found, _ = verify(bench, "--verifier", "Honest,Second", "--forget", "Verifies")
    assert (code, found["verified"], found["falsified"]) == (0, 2, 2)
    with sqlite3.connect(bench / "verification.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM contradictions").fetchone() == (1,)


def test_evidence_that_cannot_be_written_does_not_hide_it(bench: Path, verify: Verify) -> None:
    (bench / "contradictions").write_text("in the way")
    code, _, err = verify(bench, "--verifier", "Verifies")
    assert code == 3
    assert "the evidence could not be written to" in err
    assert "says verified, and onnxruntime finds a violation" in err


def test_a_tie_at_one_corner_is_a_violation(tmp_path: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inputs, logits that meet in one corner of the box and nowhere else."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "corner",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array([[0, 0], [0.5, 0.25]], np.float32), "w"),
            numpy_helper.from_array(np.array([0.75, 0], np.float32), "b"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "net.onnx")
    names = [f"(declare-const {letter}_{i} Real)\n" for letter in "XY" for i in range(2)]
    box = [f"(assert (>= X_{i} 0.5))\n(assert (<= X_{i} 1.0))\n" for i in range(2)]
    (tmp_path / "spec.vnnlib").write_text("".join([*names, *box, "(assert (>= Y_1 Y_0))\n"]))
    code, _, err = verify(tmp_path / "net.onnx", "--spec", tmp_path / "spec.vnnlib", "--verifier", "Verifies")
    assert code == 3
    assert "onnxruntime finds a violation inside the box" in err


def stored(verdict: Verdict, name: str = "a", reason: Reason = "") -> Stored:
    result = Result(verdict, verdict, reason, "", 0.1, None, None, None, None, "", "now")
    return Stored(1, name, {name: "1"}, 60.0, result)


def sample(status: Any, settled_by: str = "") -> Sample:
    return Sample("net", 0.1, "test", "data", 7, status, settled_by)


@pytest.mark.parametrize(
    ("answers", "known", "words"),
    [
        (
            [stored("verified"), stored("unknown"), stored("falsified", "b")],
            None,
            "a (a 1) says verified, and b (b 1) has",
        ),
        ([stored("falsified")], sample("certified", "crown"), "ctkd's stage 'crown' certifies it, and a (a 1) has"),
        ([stored("verified")], sample("broken", "attack"), "a (a 1) says verified, and ctkd's 'attack' has a point"),
        ([stored("error", reason="refuted")], None, "a (a 1) says verified, and onnxruntime finds"),
    ],
)
def test_contradictions(answers: list[Stored], known: Sample | None, words: str) -> None:
    assert words in conflict(answers, known)


@pytest.mark.parametrize(
    ("answers", "known"),
    [
        ([stored("verified"), stored("verified", "b"), stored("timeout"), stored("error")], sample("certified", "ibp")),
        ([stored("falsified"), stored("falsified", "b"), stored("unknown")], sample("broken", "attack")),
        ([stored("verified")], sample("undecided")),
        ([stored("falsified")], sample(None)),
        ([stored("error"), stored("error", "b", "witness-outside")], sample("certified", "ibp")),
        ([], None),
    ],
)
def test_agreement(answers: list[Stored], known: Sample | None) -> None:
    assert conflict(answers, known) == ""
