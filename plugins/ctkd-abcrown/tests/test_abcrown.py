# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Recordings of alpha-beta-CROWN played back by a stand-in; the real one where CTKD_ABCROWN_ROOT names a checkout."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ctkd_abcrown.options import AbCrownOptions
from ctkd_abcrown.verifier import AbCrown

from ctkd.errors import BadInput, Contradiction, RunFailed
from ctkd.run import verify
from ctkd.testing import conformance, save_tiny_network, tiny_specification
from ctkd.verifying import Answer, Query

RECORDINGS = Path(__file__).parent / "recordings"
REAL = os.environ.get("CTKD_ABCROWN_ROOT")
needs_abcrown = pytest.mark.skipif(REAL is None, reason="CTKD_ABCROWN_ROOT does not name a checkout")
real: dict[str, Any] = {}
if REAL:
    folders = [part for part in os.environ.get("CTKD_ABCROWN_PATH", "").split(os.pathsep) if part]
    real = {"root": REAL, "python": os.environ.get("CTKD_ABCROWN_PYTHON"), "path": folders}

test_abcrown_conforms = conformance("verifier", "abcrown", options=real)
WITNESS = [0.7565145492553711, 0.2238936424255371, 0.3023461699485779]
SEVERAL = "(assert (or (and (<= X_0 0.25) (>= Y_0 Y_1)) (and (>= X_0 0.25) (>= Y_1 Y_0))))"


RIGHT = "[max(x[0] - x[1], 0), 0.25 + max(x[2], 0) / 4]"


def stand_in(
    folder: Path, recording: str, code: str = "", mode: str = "single", outputs: str = RIGHT, **options: Any
) -> AbCrown:
    """A program in the place of the environment's Python, which writes and prints what the real one did."""
    inside = folder / "checkout" / "complete_verifier"
    inside.mkdir(parents=True, exist_ok=True)
    (inside / "abcrown.py").write_text("")
    (inside / "__init__.py").write_text("__version__ = '0.7.0'\n")
    path = folder / "python"
    path.write_text(
        f"""#!{sys.executable}
import json, os, pathlib, sys, time, yaml
if sys.argv[1] == "-c":
    assert sys.argv[3] == {str(inside)!r}
    x = json.load(open("input.json")) if "load_model" in sys.argv[2] else None
    answer = {outputs} if x else {{"auto_LiRPA": "0.7.1", "torch": "2.13.0+cpu"}}
    pathlib.Path("answer.json").write_text(json.dumps(answer))
    sys.exit()
assert sys.argv[1:3] == [{str(inside / "abcrown.py")!r}, "--config"], sys.argv
given = yaml.safe_load(open(sys.argv[3]))
results, witness = (pathlib.Path(given[a][b]) for a, b in (("general", "results_file"), ("attack", "cex_path")))
{code}
source = pathlib.Path({str(RECORDINGS)!r})
for end, target in (("out", sys.stdout), ("err", sys.stderr)):
    if (source / f"{recording}.{{end}}").exists():
        target.write((source / f"{recording}.{{end}}").read_text())
for end, target in (("txt", results), ("pickle", results), ("witness", witness)):
    if (source / f"{recording}.{{end}}").exists():
        target.write_bytes((source / f"{recording}.{{end}}").read_bytes())
sys.exit("{recording}" == "crash")
"""
    )
    path.chmod(0o755)
    return AbCrown(AbCrownOptions(root=folder / "checkout", python=path, mode=mode, **options))


def ask(folder: Path, tool: AbCrown, text: str, timeout: float = 60.0) -> Answer:
    (folder / "spec.vnnlib").write_text(text)
    scratch = folder / f"scratch-{time.monotonic_ns()}"
    scratch.mkdir()
    return tool.verify(Query(save_tiny_network(folder), folder / "spec.vnnlib", timeout, scratch))


@pytest.mark.parametrize(("mode", "prefix"), [("single", ""), ("csv", "csv-")])
def test_recorded_verdicts(tmp_path: Path, mode: str, prefix: str) -> None:
    tool = stand_in(tmp_path, f"{prefix}unsat", mode=mode)
    assert tool.check() == {"alpha-beta-CROWN": "0.7.0", "auto_LiRPA": "0.7.1", "torch": "2.13.0+cpu"}
    robust = ask(tmp_path, tool, tiny_specification(0.2))
    assert (robust.verdict, robust.witness) == ("verified", None)
    broken = ask(tmp_path, stand_in(tmp_path, f"{prefix}sat", mode=mode), tiny_specification(1.0))
    assert broken.verdict == "falsified"
    assert broken.witness is not None
    assert broken.witness.tolist() == WITNESS
    for answer in (robust, broken):
        assert answer.seconds is not None
        assert 2 < answer.seconds < 4
        assert "Result: " in answer.log


def test_recorded_late_answers(tmp_path: Path) -> None:
    """Single mode writes ``timeout``; csv mode ``unknown`` and the seconds, and tensors behind it."""
    assert ask(tmp_path, stand_in(tmp_path, "late"), tiny_specification(0.2), timeout=6.0).verdict == "timeout"
    tool = stand_in(tmp_path, "csv-late", mode="csv")
    assert ask(tmp_path, tool, tiny_specification(0.2), timeout=6.0).verdict == "timeout"
    gave_up = ask(tmp_path, tool, tiny_specification(0.2), timeout=60.0)
    assert (gave_up.verdict, gave_up.message) == ("unknown", "it gave up")
    branched = ask(tmp_path, stand_in(tmp_path, "csv-hard", mode="csv"), tiny_specification(0.2))
    assert branched.verdict == "verified"


def test_a_recorded_crash(tmp_path: Path) -> None:
    answer = ask(tmp_path, stand_in(tmp_path, "crash"), tiny_specification(1.0))
    assert answer.verdict == "error"
    assert answer.message.startswith("it ended with exit code 1: google.protobuf.message.DecodeError: Error parsing")


def test_a_recorded_warning_that_the_network_differs_is_a_mismatch(tmp_path: Path) -> None:
    """Its exit code is 0 and its results file says sat."""
    answer = ask(tmp_path, stand_in(tmp_path, "mismatch"), tiny_specification(1.0))
    assert answer.verdict == "error"
    assert answer.message.startswith("network-mismatch: it says that its network differs from onnxruntime's by 39.47")


@pytest.mark.parametrize("mode", ["single", "csv"])
@pytest.mark.parametrize(
    ("code", "verdict", "says"),
    [
        ("sys.exit(1)", "error", "it ended with exit code 1: it printed nothing"),
        ("print('CUDA out of memory'); os.kill(os.getpid(), 9)", "error", "it ended with signal 9"),
        ("results.write_bytes(b'unsat'); sys.exit(2)", "error", "exit code 2"),
        ("print('bye'); sys.exit()", "error", "it wrote no results file: bye"),
        ("results.write_bytes(b''); sys.exit()", "error", "its results file"),
        ("results.write_bytes(bytes(range(256))); sys.exit()", "error", "its results file"),
        ("results.mkdir(); sys.exit()", "error", "it wrote no results file"),
        ("time.sleep(60)", "timeout", ""),
    ],
)
def test_other_ends(tmp_path: Path, mode: str, code: str, verdict: str, says: str) -> None:
    answer = ask(tmp_path, stand_in(tmp_path, "unsat", code, mode), tiny_specification(0.2), timeout=3.0)
    assert answer.verdict == verdict
    assert says in answer.message
    assert "\n" not in answer.message


def through_ctkd(folder: Path, tool: AbCrown, high: float) -> dict[str, Any]:
    (folder / "spec.vnnlib").write_text(tiny_specification(high))
    settings = {f"abcrown.{key}": value for key, value in tool.options.model_dump(mode="json").items() if value}
    model = save_tiny_network(folder)
    found: dict[str, Any] = verify(model, ("abcrown",), specification=folder / "spec.vnnlib", settings=settings)
    return dict(found["verifiers"]["abcrown"])


@pytest.mark.parametrize(("mode", "recording"), [("single", "sat"), ("csv", "csv-sat")])
def test_a_lie_about_the_witness_is_an_error(tmp_path: Path, mode: str, recording: str) -> None:
    """The recorded witness is confirmed by onnxruntime; the same one for a box that does not hold it is refused."""
    assert through_ctkd(tmp_path, stand_in(tmp_path, recording, mode=mode), 1.0)["falsified"] == 1
    with pytest.warns(UserWarning, match="abcrown"):
        found = through_ctkd(tmp_path, stand_in(tmp_path, recording, mode=mode), 0.2)
    assert found["errors"] == {"witness-outside": 1}


def test_a_false_proof_stops_everything(tmp_path: Path) -> None:
    tool = stand_in(tmp_path, "unsat")
    with (
        pytest.warns(UserWarning, match="it says verified, and onnxruntime finds a violation"),
        pytest.raises(Contradiction, match="says verified, and onnxruntime finds a violation inside the box"),
    ):
        through_ctkd(tmp_path, tool, 1.0)


def test_a_network_that_it_reads_differently_is_not_asked_about(tmp_path: Path) -> None:
    tool = stand_in(tmp_path, "unsat", "raise AssertionError", outputs="[x[0], x[1]]")
    with pytest.warns(UserWarning, match="network-mismatch: its logits differ"):
        found = through_ctkd(tmp_path, tool, 0.2)
    assert found["errors"] == {"network-mismatch": 1}
    tool = stand_in(tmp_path, "unsat", outputs="sys.exit('no such operator')")
    with pytest.raises(RunFailed, match=r"does not evaluate net\.onnx: it ended with exit code 1: no such operator"):
        tool.outputs(save_tiny_network(tmp_path), np.zeros(3))


def test_forms_that_it_cannot_read_are_rewritten_or_refused(tmp_path: Path) -> None:
    code = "assert '(and (<= Y_1 Y_0))' in open(given['specification']['vnnlib_path']).read()"
    tool = stand_in(tmp_path, "unsat", code)
    for violation in ("(assert (or (>= Y_0 Y_1)))", "(assert (and (>= Y_0 Y_1)))"):
        assert ask(tmp_path, tool, tiny_specification(0.2, violation)).verdict == "verified"
    answer = ask(tmp_path, tool, tiny_specification(0.5, SEVERAL))
    assert (answer.verdict, answer.message) == (
        "error",
        "it cannot read this specification: it has several input boxes",
    )
    assert ask(tmp_path, tool, "(this is nothing").verdict == "error"


def test_nothing_is_written_beside_the_specification(tmp_path: Path) -> None:
    """It leaves SPEC.compiled beside it, and unpickles one that lies there."""
    code = "spec = given['specification']['vnnlib_path']; open(spec + '.compiled', 'w').write('x')"
    (tmp_path / "question").mkdir()
    spec = tmp_path / "question" / "spec.vnnlib"
    spec.write_text(tiny_specification(0.2))
    (tmp_path / "scratch").mkdir()
    tool = stand_in(tmp_path, "unsat", code)
    answer = tool.verify(Query(save_tiny_network(tmp_path), spec, 60.0, tmp_path / "scratch"))
    assert answer.verdict == "verified"
    assert list(spec.parent.iterdir()) == [spec]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    good = stand_in(tmp_path, "unsat").options
    (tmp_path / "not").write_text("")
    for changed, says in (
        ({"root": None}, "must name a checkout"),
        ({"python": None}, "must name a checkout"),
        ({"root": tmp_path}, r"holds no complete_verifier/abcrown\.py: git clone --recursive https"),
        ({"python": tmp_path / "missing"}, "is no program: git clone"),
        ({"python": tmp_path / "not"}, "is no program"),
        ({"python": tmp_path}, "is no program"),
        ({"config": tmp_path / "missing"}, "cannot be read: No such file"),
        ({"config": tmp_path / "python"}, "is no YAML|must hold sections"),
        ({"device": "cuda"}, "finds no GPU: set cpu"),
    ):
        with pytest.raises(BadInput, match=says) as caught:
            AbCrown(good.model_copy(update=changed)).check()
        assert "\n" not in str(caught.value)
    path = tmp_path / "python"
    for content, says in (
        ("#!/bin/sh\necho 'No module named onnx2pytorch' >&2; exit 1\n", "exit code 1: No module named onnx2pytorch"),
        ("#!/bin/sh\n", "exit code 0: it printed nothing"),
        ("#!/bin/sh\necho rubbish > answer.json\n", "Expecting value"),
        ("no program\n", "cannot be started: Exec format error"),
    ):
        path.write_text(content)
        with pytest.raises(BadInput, match=rf"does not run with .*{says}.*git clone"):
            AbCrown(good).check()


@needs_abcrown
@pytest.mark.parametrize("mode", ["single", "csv"])
def test_the_real_program(tmp_path: Path, mode: str) -> None:
    tool = AbCrown(AbCrownOptions.model_validate({**real, "mode": mode}))
    assert "alpha-beta-CROWN" in tool.check()
    x = np.array([0.75, 0.25, 0.5])
    assert tool.outputs(save_tiny_network(tmp_path), x) == pytest.approx([0.5, 0.375], abs=1e-6)
    for violation in ("(assert (or (and (>= Y_0 Y_1))))", "(assert (or (>= Y_0 Y_1)))"):
        assert ask(tmp_path, tool, tiny_specification(0.2, violation)).verdict == "verified"
    broken = ask(tmp_path, tool, tiny_specification(1.0))
    assert broken.verdict == "falsified"
    assert broken.witness is not None
    x = broken.witness
    assert max(x[0] - x[1], 0) >= 0.25 + max(x[2], 0) / 4 - 1e-5
