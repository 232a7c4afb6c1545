# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Recordings of NeuralSAT played back by a stand-in; the real one where CTKD_NEURALSAT_PYTHON names its Python."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from ctkd_neuralsat.options import NeuralSatOptions
from ctkd_neuralsat.verifier import NeuralSat

from ctkd.errors import BadInput
from ctkd.run import verify
from ctkd.testing import conformance, save_tiny_network, tiny_specification
from ctkd.verifying import Answer, Query

RECORDINGS = Path(__file__).parent / "recordings"
REAL = os.environ.get("CTKD_NEURALSAT_PYTHON")
REAL_PATH = [part for part in os.environ.get("CTKD_NEURALSAT_PATH", "").split(os.pathsep) if part]
needs_neuralsat = pytest.mark.skipif(REAL is None, reason="CTKD_NEURALSAT_PYTHON does not name NeuralSAT's Python")
real = {"python": REAL, "path": REAL_PATH} if REAL else {}

test_neuralsat_conforms = conformance("verifier", "neuralsat", options=real)


def stand_in(folder: Path, recording: str, code: str = "") -> NeuralSat:
    """A program in the place of the environment's Python, which writes and prints what the real one did."""
    path = folder / "python"
    path.write_text(
        f"""#!{sys.executable}
import pathlib, sys, time
if sys.argv[1] == "-c":
    print("0.2.17\\nFOLDER/main.py\\n2.13.0+cpu")
    sys.exit()
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "FOLDER/main.py" and given["--device"] == "cpu", sys.argv
{code}
source = pathlib.Path({str(RECORDINGS)!r})
for end, target in (("out", sys.stdout), ("err", sys.stderr)):
    target.write((source / f"{recording}.{{end}}").read_text())
if (source / "{recording}.txt").exists():
    pathlib.Path(given["--result_file"]).write_text((source / "{recording}.txt").read_text())
"""
    )
    path.chmod(0o755)
    return NeuralSat(NeuralSatOptions(python=path))


def ask(folder: Path, tool: NeuralSat, text: str, timeout: float = 60.0) -> Answer:
    (folder / "spec.vnnlib").write_text(text)
    scratch = folder / f"scratch-{time.monotonic_ns()}"
    scratch.mkdir()
    return tool.verify(Query(save_tiny_network(folder), folder / "spec.vnnlib", timeout, scratch))


def test_recorded_verdicts(tmp_path: Path) -> None:
    tool = stand_in(tmp_path, "unsat")
    assert tool.check() == {"NeuralSAT": "0.2.17", "torch": "2.13.0+cpu"}
    assert ask(tmp_path, tool, tiny_specification(0.2)).verdict == "verified"
    broken = ask(tmp_path, stand_in(tmp_path, "sat"), tiny_specification(1.0))
    assert broken.verdict == "falsified"
    assert broken.witness is not None
    assert broken.witness.tolist() == [0.8206203579902649, 0.11355942487716675, 0.6713690757751465]


def test_a_recorded_crash_ends_well_and_writes_nothing(tmp_path: Path) -> None:
    answer = ask(tmp_path, stand_in(tmp_path, "crash"), tiny_specification(1.0))
    assert answer.verdict == "error"
    assert answer.message.startswith("it wrote no results file: google.protobuf.message.DecodeError")


@pytest.mark.parametrize(
    ("code", "verdict", "says"),
    [
        ("sys.exit(1)", "error", "it ended with exit code 1: it printed nothing"),
        ("print('NotImplementedError'); sys.exit(1)", "error", "exit code 1: NotImplementedError"),
        ("open(given['--result_file'], 'w').write('maybe,1.0'); sys.exit()", "error", "begins with 'maybe,1.0'"),
        ("open(given['--result_file'], 'w').write('unsat,1.0'); sys.exit(2)", "error", "exit code 2"),
        ("open(given['--result_file'], 'w').write('unknown,1.0'); sys.exit()", "unknown", "it gave up"),
        ("open(given['--result_file'], 'w').write('timeout,1.0'); sys.exit()", "timeout", ""),
        ("time.sleep(60)", "timeout", ""),
    ],
)
def test_other_ends(tmp_path: Path, code: str, verdict: str, says: str) -> None:
    answer = ask(tmp_path, stand_in(tmp_path, "unsat", code), tiny_specification(0.2), timeout=3.0)
    assert answer.verdict == verdict
    assert says in answer.message


@pytest.mark.parametrize(
    "rest", ["", "((X_0 0.5)", "((X_0 0.5) (X_2 1.0))", "((X_0 nan))", "((Y_0 1.0))", "((X_0 0.5) rubbish)"]
)
def test_witnesses_are_read_whole_or_not_at_all(tmp_path: Path, rest: str) -> None:
    code = f"open(given['--result_file'], 'w').write('sat,1.0\\n{rest}'); sys.exit()"
    answer = ask(tmp_path, stand_in(tmp_path, "sat", code), tiny_specification(1.0))
    assert (answer.verdict, answer.witness) == ("falsified", None)


def test_through_ctkd(tmp_path: Path) -> None:
    """The recorded witness is confirmed by onnxruntime; the same one for a box that does not hold it is an error."""
    model = save_tiny_network(tmp_path)
    (tmp_path / "spec.vnnlib").write_text(tiny_specification(1.0))
    python = str(stand_in(tmp_path, "sat").options.python)
    found = verify(model, ("neuralsat",), specification=tmp_path / "spec.vnnlib", settings={"neuralsat.python": python})
    assert found["verifiers"]["neuralsat"]["falsified"] == 1
    (tmp_path / "other.vnnlib").write_text(tiny_specification(0.2))
    with pytest.warns(UserWarning, match="neuralsat"):
        found = verify(
            model, ("neuralsat",), specification=tmp_path / "other.vnnlib", settings={"neuralsat.python": python}
        )
    assert found["verifiers"]["neuralsat"]["error"] == 1


def test_forms_that_it_drops_are_rewritten_or_refused(tmp_path: Path) -> None:
    code = "assert '(and (<= Y_1 Y_0))' in open(given['--spec']).read()"
    for violation in ("(assert (or (>= Y_0 Y_1)))", "(assert (and (>= Y_0 Y_1)))"):
        answer = ask(tmp_path, stand_in(tmp_path, "unsat", code), tiny_specification(0.2, violation))
        assert answer.verdict == "verified"
    several = "(assert (or (and (<= X_0 0.25) (>= Y_0 Y_1)) (and (>= X_0 0.25) (>= Y_1 Y_0))))"
    answer = ask(tmp_path, stand_in(tmp_path, "unsat"), tiny_specification(0.5, several))
    assert answer.verdict == "error"
    assert "another property" in answer.message


def test_how_to_get_it_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "not").write_text("")
    for python, says in (
        (None, "must name the Python"),
        (tmp_path / "missing", "is no program"),
        (tmp_path / "not", "is no program"),
        (Path(sys.executable), "is ctkd's own"),
    ):
        with pytest.raises(BadInput, match=says) as caught:
            NeuralSat(NeuralSatOptions(python=python)).check()
        assert "\n" not in str(caught.value)
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho 'no module named neuralsat' >&2\nexit 1\n")
    path.chmod(0o755)
    with pytest.raises(BadInput, match="has no working NeuralSAT"):
        NeuralSat(NeuralSatOptions(python=path)).check()


@needs_neuralsat
def test_the_real_program(tmp_path: Path) -> None:
    tool = NeuralSat(NeuralSatOptions.model_validate(real))
    assert "NeuralSAT" in tool.check()
    for text in (tiny_specification(0.2), tiny_specification(0.2, "(assert (or (>= Y_0 Y_1)))")):
        assert ask(tmp_path, tool, text).verdict == "verified"
    broken = ask(tmp_path, tool, tiny_specification(1.0))
    assert broken.verdict == "falsified"
    assert broken.witness is not None
    x = broken.witness
    assert max(x[0] - x[1], 0) >= 0.25 + max(x[2], 0) / 4 - 1e-5
