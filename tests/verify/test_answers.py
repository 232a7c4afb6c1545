# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What tools answer, and what ctkd makes of it: nothing is believed, nothing is lost, no error is undecided."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ctkd.verifying import Answer

from .fakes import Returns

Verify = Callable[..., tuple[int, Any, str]]
VERDICTS = ("verified", "falsified", "unknown", "timeout", "error")


def counts(found: Any, name: str) -> tuple[int, ...]:
    return tuple(found["verifiers"][name][verdict] for verdict in VERDICTS)


def rows(path: Path, columns: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path / "verification.sqlite") as connection:
        statement = f"SELECT {columns} FROM verification_answers ORDER BY instance, verifier"  # noqa: S608
        return connection.execute(statement).fetchall()


def test_two_honest_tools_agree(bench: Path, verify: Verify) -> None:
    code, found, err = verify(bench, "--verifier", "Honest,Second", "--jobs", 3, "--results", bench / "out")
    assert (code, found["asked"], found["instances"]) == (0, 8, 4)
    assert (found["verified"], found["falsified"], found["open"], found["settled_by_several"]) == (2, 2, 0, 4)
    assert counts(found, "Honest") == counts(found, "Second") == (2, 2, 0, 0, 0)
    assert "warning" not in err
    table = (bench / "out" / "Second" / "results.csv").read_text().splitlines()
    fields = [line.split(",") for line in table]
    assert [row[:4] for row in fields] == [
        ["bench", "onnx/net.onnx", f"vnnlib/{name}.vnnlib", "0"]
        for name in ("holds_0", "holds_1", "fails_2", "fails_3")
    ]
    assert [row[4] for row in fields] == ["unsat", "unsat", "sat", "sat"]
    assert all(float(row[5]) >= 0 for row in fields)


def test_labels_make_several_tools_of_one_plugin(bench: Path, verify: Verify, tmp_path: Path) -> None:
    both = ("--verifier", "Patient:a,Patient:b", "--set", "Patient:a.seconds=2", "--results", tmp_path / "out")
    code, found, _ = verify(bench, *both)
    assert (code, found["asked"], found["settled_by_several"]) == (0, 8, 4)
    options = {name: tool["options"]["seconds"] for name, tool in found["verifiers"].items()}
    assert options == {"Patient:a": 2.0, "Patient:b": 1.0}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Patient-a", "Patient-b"]
    code, found, err = verify(bench, *both, "--forget", "Patient:b")
    assert (code, found["asked"]) == (0, 4)
    assert "Patient:b: 4 answers forgotten" in err
    for wrong, words in (("Patient:", "behind the colon goes a label"), ("No:a", "'No'"), ("Patient:a.b", "a label")):
        code, _, err = verify(bench, "--verifier", wrong)
        assert code == 2
        assert words in err


def test_the_same_command_asks_nothing_twice(bench: Path, verify: Verify) -> None:
    first = verify(bench, "--verifier", "Honest")[1]
    again = verify(bench, "--verifier", "Honest")[1]
    assert (first.pop("asked"), again.pop("asked")) == (4, 0)
    assert first == again
    assert verify(bench, "--verifier", "Honest", "--timeout", 5)[1]["asked"] == 4  # another question


def test_a_witness_is_stored_as_it_was_replayed(bench: Path, verify: Verify) -> None:
    verify(bench, "--verifier", "Honest")
    found = rows(bench, "verdict, witness, outputs, log")
    assert [row[0] for row in found] == ["verified"] * 2 + ["falsified"] * 2
    assert [len(row[1] or b"") // 8 for row in found] == [0, 0, 36, 36]
    assert [len(row[2] or b"") // 8 for row in found] == [0, 0, 4, 4]
    assert found[2][3] == "looked at the centre"


def test_a_table_for_people(bench: Path, ctkd_command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = ctkd_command("verify", str(bench), "--verifier", "Honest,LiesOutside")
    assert code == 0
    assert "instances asked about: 4, of" in out
    assert "LiesOutside: errors, which settle nothing: witness-outside 4" in out
    assert "verified 2, falsified with a replayed witness 2; open 0" in out


@pytest.mark.parametrize(
    ("tool", "reason", "words"),
    [
        ("LiesOutside", "witness-outside", "its witness is outside of the box by 2"),
        ("LiesInside", "witness-holds", "its witness violates nothing, by "),
        ("KeepsQuiet", "no-witness", "it gives no witness"),
    ],
)
def test_a_lie_about_a_witness_is_an_error(bench: Path, verify: Verify, tool: str, reason: str, words: str) -> None:
    code, found, err = verify(bench, "--verifier", tool)
    true = 2 if tool == "LiesInside" else 0
    assert code == (0 if true else 1)  # nothing but errors: the tool or the question is broken
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert all(line.startswith(f"error: all answers of {tool} are errors ({reason}); what") for line in lines)
    assert len(lines) == code
    assert counts(found, tool) == (0, true, 0, 0, 4 - true)
    assert found["verifiers"][tool]["errors"] == {reason: 4 - true}
    assert f"warning: {tool}, onnx/net.onnx vnnlib/holds_0.vnnlib: it says falsified, and {words}" in err
    wrong = [row for row in rows(bench, "verdict, said, reason") if row[2]]
    assert wrong == [("error", "falsified", reason)] * (4 - true)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the plugin returned NoneType"),
        ("verified", "the plugin returned str"),
        (Answer("unsat"), "the plugin returned the verdict 'unsat'"),  # type: ignore[arg-type]
        (Answer("falsified", np.zeros(35)), "its witness has 35 numbers, not 36"),
        (Answer("falsified", np.full(36, np.nan)), "or some are not finite"),
        (Answer("falsified", "rubbish"), "its witness is a str"),  # type: ignore[arg-type]
        (Answer("error", message="two\nlines", log="\0" * 9), "two lines"),
        (Answer("error", message="\x1b[31mred"), "?[31mred"),
    ],
)
def test_rubbish_is_an_error(
    bench: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch, answer: Any, words: str
) -> None:
    monkeypatch.setattr(Returns, "answer", answer)
    code, found, _ = verify(bench, "--verifier", "Returns,Honest")
    assert code == 0
    assert counts(found, "Returns") == (0, 0, 0, 0, 4)
    assert counts(found, "Honest") == (2, 2, 0, 0, 0)  # the other tool is asked all the same
    assert all(words in row[1] for row in rows(bench, "verdict, message") if row[0] == "error")


def test_a_plugin_that_raises_and_a_program_that_crashes(bench: Path, verify: Verify) -> None:
    code, found, err = verify(bench, "--verifier", "Raises,Crashes")
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: all answers of Raises, Crashes are errors (said-error); what they printed is in "
        f"{bench / 'verification.sqlite'}, and --retry asks again"
    )
    # Why is said once for each tool, and not for each instance: it may be the same for all.
    assert [line.partition(" says error: ")[2] for line in err.splitlines() if "says error" in line] == [
        "the plugin raised ZeroDivisionError: division by zero second line",
        "it ended with signal 11",
    ]
    assert "warning: Raises, among others onnx/net.onnx vnnlib/holds_0.vnnlib: it says error: the plugin raised" in err
    assert counts(found, "Raises") == counts(found, "Crashes") == (0, 0, 0, 0, 4)
    assert set(rows(bench, "message, log")) == {
        ("the plugin raised ZeroDivisionError: division by zero second line", ""),
        ("it ended with signal 11", "half a\n"),
    }
    assert found["open"] == 4


def test_errors_are_asked_again_when_the_user_says_so(bench: Path, verify: Verify, monkeypatch: Any) -> None:
    monkeypatch.setattr(Returns, "answer", None)
    verify(bench, "--verifier", "Returns")
    monkeypatch.setattr(Returns, "answer", Answer("unknown", message="it gave up"))
    assert counts(verify(bench, "--verifier", "Returns")[1], "Returns") == (0, 0, 0, 0, 4)
    assert counts(verify(bench, "--verifier", "Returns", "--retry")[1], "Returns") == (0, 0, 4, 0, 0)
    err = verify(bench, "--verifier", "Honest", "--forget", "Returns")[2]
    assert "Returns: 4 answers forgotten" in err
    assert {row[0] for row in rows(bench, "verdict")} == {"verified", "falsified"}


def test_a_tool_that_hangs_is_ended_with_its_children(bench: Path, verify: Verify, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code, found, _ = verify(
        bench, "--verifier", "Hangs", "--set", f"Hangs.pids='{pids}'", "--timeout", 1.5, "--jobs", 2, "--shard", "1/2"
    )
    assert code == 0
    assert counts(found, "Hangs") == (0, 0, 0, 2, 0)
    numbers = [int(word) for word in pids.read_text().split()]
    assert len(numbers) == 4
    alive = [n for n in numbers if psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE]
    assert not alive


def test_a_tool_that_computes_another_network_is_not_asked(bench: Path, verify: Verify) -> None:
    code, found, err = verify(bench, "--verifier", "Misreads,Asked")
    assert code == 0
    assert counts(found, "Misreads") == (0, 0, 0, 0, 4)
    assert found["verifiers"]["Misreads"]["errors"] == {"network-mismatch": 4}
    assert err.count("network-mismatch: its logits differ from onnxruntime's by 0.1") == 1  # loud, once for the model
    assert counts(found, "Asked") == (2, 2, 0, 0, 0)
    assert found["verifiers"]["Asked"]["compared"] == 4
    assert 5e-7 < found["verifiers"]["Asked"]["largest_difference"] < 2e-6


def test_a_format_that_a_tool_does_not_read_is_an_error(bench: Path, verify: Verify) -> None:
    found = verify(bench, "--verifier", "ModernOnly")[1]
    assert counts(found, "ModernOnly") == (0, 0, 0, 0, 4)
    assert "it reads VNN-LIB 2.0, and the specification is VNN-LIB 1.0" in rows(bench, "message")[0][0]


def test_tools_that_write_beside_the_specification_change_nothing(bench: Path, verify: Verify) -> None:
    before = sorted(bench.rglob("*"))
    assert verify(bench, "--verifier", "WritesNearby", "--out", bench.parent / "results.sqlite")[0] == 0
    assert sorted(bench.rglob("*")) == before


def test_packed_files(bench: Path, verify: Verify) -> None:
    for path in [*bench.glob("*/*.onnx"), *bench.glob("*/*.vnnlib")]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    code, found, _ = verify(bench, "--verifier", "Honest")
    assert code == 0
    assert counts(found, "Honest") == (2, 2, 0, 0, 0)


def test_one_instance(bench: Path, verify: Verify) -> None:
    spec = bench / "vnnlib" / "fails_3.vnnlib"
    code, found, _ = verify(bench / "onnx" / "net.onnx", "--spec", spec, "--verifier", "Honest")
    assert (code, found["falsified"]) == (0, 1)
    assert found["results"] == str(bench / "vnnlib" / "verification.sqlite")
