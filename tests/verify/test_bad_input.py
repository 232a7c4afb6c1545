# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The worst that users, tools and disks do: one line each, and nothing wrong is recorded."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctkd.errors import BadInput
from ctkd.verify import store
from ctkd.verify.instances import read_table

Verify = Callable[..., tuple[int, Any, str]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--verifier", "Missing"], "the program 'missing' is not installed: pip install missing"),
        (["--verifier", "ChecksBadly"], "verifier 'ChecksBadly' of fakes 1.0: check raised OSError: no such file"),
        (["--verifier", "marabou"], "verifier 'marabou' is not known"),
        (["--verifier", "neuralsat"], "verifiers are packages of their own: pip install plugins/ctkd-neuralsat"),
        (["--verifier", "Honest,"], "a name is missing beside a comma"),
        (["--verifier", "Honest", "--set", "Honest.speed=3"], "Honest.speed is not an option"),
        (["--verifier", "Hangs"], "Hangs.pids must be given"),
        (["--verifier", "ctkd", "--set", 'ctkd.stages=["nothing"]'], "stage 'nothing' is not known"),
        (["--verifier", "ctkd", "--set", 'ctkd.stages=[{name="complete",nodes=0}]'], "nodes=0: must be"),
        (["--verifier", "Honest", "--set", "Other.speed=3"], "Other.speed: accepted are options of Honest"),
        (["--verifier", "Honest", "--jobs", "0"], "jobs=0: must be an integer from 1 on"),
        (["--verifier", "Honest", "--timeout", "-1"], "timeout=-1: must be a finite number of seconds above 0"),
        (["--verifier", "Honest", "--timeout", "inf"], "timeout=inf: must be a finite number"),
        (["--verifier", "Honest", "--shard", "3/2"], "--shard 3/2: write PART/PARTS"),
        (["--verifier", "Honest", "--shard", "0/2"], "--shard 0/2: write PART/PARTS"),
        (["--verifier", "Honest", "--eps", "0.1"], "is no run: --eps, --all, --samples, --start"),
        (["--verifier", "Honest", "--all"], "is no run"),
        (["--verifier", "Honest", "--samples", "3"], "is no run"),
        (["--verifier", "Honest", "--spec", "x.vnnlib"], "is a folder; --spec goes with an ONNX file"),
        (["--verifier", "Honest", "--out", "/no/such/folder/r.sqlite"], "/no/such/folder is no folder"),
        ([], "Missing option '--verifier'"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(
    bench: Path, ctkd_command: Callable[..., tuple[int, str, str]], arguments: list[str], words: str
) -> None:
    before = sorted(bench.rglob("*"))
    code, out, err = ctkd_command("verify", str(bench), *arguments)
    assert (code, out) == (1 if "ChecksBadly" in arguments else 2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert sorted(bench.rglob("*")) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing", "does not exist; name a run, a folder with instances.csv, or an ONNX file with --spec"),
        ("bench/onnx/net.onnx", "needs a specification: give it by --spec FILE.vnnlib"),
        ("bench/onnx", "has no instances.csv: name a run, an ONNX file with --spec"),
        (".", "has no instances.csv: did you mean"),
        ("bench/vnnlib/holds_0.vnnlib", "columns; accepted: network,specification,timeout, without a header"),
    ],
)
def test_paths_that_are_nothing(bench: Path, verify: Verify, path: str, words: str) -> None:
    code, _, err = verify(bench.parent / path, "--verifier", "Honest")
    assert code == 2
    assert words in err


def test_a_folder_is_no_specification(bench: Path, verify: Verify) -> None:
    code, _, err = verify(bench / "onnx" / "net.onnx", "--verifier", "Honest", "--spec", bench / "vnnlib")
    assert (code, err) == (2, f"error: {bench / 'vnnlib'} is a folder; name a file\n")


def test_a_table_with_mistakes_reports_all_of_them_at_once(bench: Path, verify: Verify) -> None:
    lines = (bench / "instances.csv").read_text().splitlines()
    lines[1:1] = [
        "onnx/gone.onnx,vnnlib/gone.vnnlib,30",
        "onnx/net.onnx,vnnlib/holds_1.vnnlib,soon",
        "onnx/net.onnx,vnnlib/holds_1.vnnlib,-3",
        "onnx/net.onnx,vnnlib/holds_1.vnnlib",
        lines[0],
        '"[(""f"", ""onnx/net.onnx""), (""g"", ""onnx/net.onnx"")]",vnnlib/holds_1.vnnlib,30',
        "",
    ]
    (bench / "instances.csv").write_text("\n".join(lines))
    code, _, err = verify(bench, "--verifier", "Honest")
    assert code == 2
    for words in (
        "line 2: {}/onnx/gone.onnx does not exist",
        "line 2: {}/vnnlib/gone.vnnlib does not exist",
        "line 3: timeout 'soon' is not a number of seconds above 0",
        "line 4: timeout '-3' is not a number of seconds above 0",
        "line 5: 2 columns; accepted: network,specification,timeout, without a header",
        "line 6: the same network and specification as line 1",
        'line 7: \'[("f", "onnx/net.onnx"), ("g", "onnx/net.onnx")]\' names several networks',
    ):
        assert words.format(bench) in err
    assert len(err.splitlines()) == 7
    assert not (bench / "verification.sqlite").exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_tables_without_instances(bench: Path, content: bytes) -> None:
    (bench / "instances.csv").write_bytes(content)
    with pytest.raises(BadInput, match=r"lists no instances|is no table"):
        read_table(bench, None)


def test_a_table_of_one_named_network_is_read(bench: Path) -> None:
    (bench / "instances.csv").write_text('"[(""f"", ""onnx/net.onnx"")]",vnnlib/holds_0.vnnlib,30\n')
    assert read_table(bench, None)[0].model == bench / "onnx" / "net.onnx"


def test_instances_that_nobody_can_be_asked_about(bench: Path, verify: Verify) -> None:
    """The others are asked, and the end says which were not, and why."""
    text = (bench / "vnnlib" / "holds_0.vnnlib").read_text()
    (bench / "vnnlib" / "holds_0.vnnlib").write_text(text.replace("(assert (<= X_3 ", "(assert (< X_3 "))
    other = text.replace("(declare-const Y_3 Real)\n", "(declare-const Y_3 Real)\n(declare-const Y_4 Real)\n")
    (bench / "vnnlib" / "fails_2.vnnlib").write_text(other)
    (bench / "onnx" / "bad.onnx").write_bytes(b"nonsense")
    with (bench / "instances.csv").open("a") as file:
        file.write("onnx/bad.onnx,vnnlib/holds_1.vnnlib,30\n")
    code, found, err = verify(bench, "--verifier", "Honest,Second")
    assert code == 2
    assert (found["instances"], found["verified"], found["falsified"]) == (4, 1, 1)
    assert list(found["unusable"]) == [
        "onnx/net.onnx vnnlib/holds_0.vnnlib",
        "onnx/net.onnx vnnlib/fails_2.vnnlib",
        "onnx/bad.onnx vnnlib/holds_1.vnnlib",
    ]
    assert "error: onnx/net.onnx vnnlib/fails_2.vnnlib was not asked about: the specification is for another" in err
    assert "it is about 36 inputs and 5 outputs, net.onnx has 36 and 4" in err
    assert "bad.onnx is refused by onnxruntime" in err
    assert "< is strict" in err


def test_a_full_disk_loses_nothing_that_was_recorded(
    bench: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.executescript(store.SCHEMA)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        return connection

    monkeypatch.setattr("ctkd.verify.store.sqlite3.connect", small)
    monkeypatch.setattr("tests.verify.fakes.Returns.answer", _long_answer())
    code, found, err = verify(bench, "--verifier", "Honest,Returns")
    assert (code, found) == (1, None)
    assert (
        "verification.sqlite cannot be written (database or disk is full); all answers before this one are kept" in err
    )
    assert "Traceback" not in err
    monkeypatch.undo()
    with sqlite3.connect(bench / "verification.sqlite") as connection:
        (kept,) = connection.execute("SELECT count(*) FROM verification_answers").fetchone()
    assert kept >= 1
    code, found, _ = verify(bench, "--verifier", "Honest,Second")
    assert (code, found["verified"], found["falsified"]) == (0, 2, 2)


def _long_answer() -> Any:
    from ctkd.verifying import Answer

    return Answer("unknown", log="long " * 4000)


def test_a_temporary_folder_that_is_full_is_no_error_of_the_tool(
    bench: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*ignored: Any, **also: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = verify(bench, "--verifier", "Honest")
    assert code == 1
    assert "could not be written" in err
    assert "No space left on device" in err
    with sqlite3.connect(bench / "verification.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM verification_answers").fetchone() == (0,)


def test_a_results_file_that_is_none(bench: Path, verify: Verify) -> None:
    (bench / "verification.sqlite").write_text("not a database, but long enough to be mistaken for one" * 20)
    code, _, err = verify(bench, "--verifier", "Honest")
    assert code == 2
    assert "cannot be used (file is not a database); name another one with --out" in err
