# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Results files: read whole or called an error, and nothing in a pickle is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ctkd_abcrown.results import read_table, read_text

RECORDINGS = Path(__file__).parent / "recordings"
WITNESS = "((X_0  0.5)\n(X_1  -1e-07)\n(Y_0  3.0))"


def table(status: Any, seconds: Any = 1.5, **more: Any) -> bytes:
    summary = defaultdict(list, {str(status): [0]})
    return pickle.dumps({"summary": summary, "results": [[status, seconds]], "bab_ret": [], **more})


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("safe", "verified"),
        ("safe-incomplete", "verified"),
        ("safe-incomplete-refined (timed out)", "verified"),
        ("unsafe", "falsified"),
        ("unsafe-pgd", "falsified"),
        ("unsafe-bab (timed out)", "falsified"),
        ("unknown", "unknown"),
        ("unknown-mip", "unknown"),
        ("", "error"),
        ("safety", "error"),
        ("not safe", "error"),
        ("timeout", "error"),
        (None, "error"),
        (1, "error"),
    ],
)
def test_every_status_of_csv_mode(status: Any, verdict: str) -> None:
    answer = read_table(table(status), WITNESS, 20.0)
    assert answer.verdict == verdict
    if verdict != "error":
        assert answer.seconds == 1.5
    if verdict == "falsified":
        assert answer.witness is not None
        assert answer.witness.tolist() == [0.5, -1e-07]


def test_unknown_is_late_from_its_timeout_on() -> None:
    assert read_table(table("unknown", 19.9), "", 20.0).verdict == "unknown"
    assert read_table(table("unknown", 20.0), "", 20.0).verdict == "timeout"


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"rubbish",
        table("safe")[:-20],
        pickle.dumps([]),
        pickle.dumps({"results": []}),
        pickle.dumps({"results": [["safe", 1.0], ["safe", 1.0]]}),
        pickle.dumps({"results": [["safe"]]}),
        pickle.dumps({"results": "ab"}),
        pickle.dumps({"results": None}),
        table("safe", float("nan")),
        table("safe", "soon"),
        table("safe", 10**400),
    ],
)
def test_a_damaged_table_is_an_error(contents: bytes) -> None:
    answer = read_table(contents, WITNESS, 20.0)
    assert answer.verdict == "error"
    assert answer.message.startswith("its results file ")
    assert "\n" not in answer.message


class Runs:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_table_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    note = tmp_path / "note"
    for function, arguments, name in (
        (os.system, (f"touch {note}",), "posix.system"),
        (eval, (f"open({str(note)!r}, 'w')",), "builtins.eval"),
        (getattr, (Path(), "touch"), "builtins.getattr"),
        (os.mkdir, (str(note),), "posix.mkdir"),
    ):
        answer = read_table(table("safe", bomb=Runs(function, *arguments)), "", 20.0)
        assert answer.verdict == "error"
        assert name in answer.message or "pathlib" in answer.message
        assert "which ctkd never does" in answer.message
        assert not note.exists()


def test_tensors_and_their_bytes_are_never_looked_into(tmp_path: Path) -> None:
    """The bytes of a tensor are a pickle of their own, which torch would run."""
    inner = pickle.dumps(Runs(os.system, f"touch {tmp_path / 'note'}"))
    contents = table("safe", tensor=Runs(torch.storage._load_from_bytes, inner))
    assert b"posix" in contents
    assert read_table(contents, "", 20.0).verdict == "verified"
    assert not (tmp_path / "note").exists()
    assert read_table((RECORDINGS / "csv-hard.pickle").read_bytes(), "", 60.0).verdict == "verified"
    assert read_table(table("safe", order=OrderedDict()), "", 20.0).verdict == "verified"


@pytest.mark.parametrize("rest", ["((X_0 0.5)", "((X_0 0.5) (X_2 1.0))", "((X_0 nan))", "((Y_0 1.0))", "rubbish"])
def test_a_witness_is_read_whole_or_not_at_all(rest: str) -> None:
    for answer in (read_text(f"sat\n{rest}"), read_table(table("unsafe-pgd"), rest, 20.0)):
        assert answer.verdict == "falsified"
        assert answer.witness is not None
        assert answer.witness.size == 0
        assert answer.message == "its witness cannot be read"


def test_a_missing_witness_is_none() -> None:
    for answer in (read_text("sat"), read_text("sat\n"), read_table(table("unsafe"), "", 20.0)):
        assert (answer.verdict, answer.witness) == ("falsified", None)


@pytest.mark.parametrize("text", ["", "unsat-ish", "UNSAT", "safe", "unknown", "\nunsat"])
def test_another_word_in_single_mode_is_an_error(text: str) -> None:
    assert read_text(text).verdict == "error"
