# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One line each, exit code 2, and no file."""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctkd.run import certify

Command = Callable[..., tuple[int, str, str]]


def refused(found: tuple[int, str, str], message: str, code: int = 2) -> None:
    assert found == (code, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("RUN --by size", "--by size: accepted: margin, radius"),
        ("RUN --split tests", "--split tests: did you mean 'test'? accepted: test, train, validation"),
        ("RUN --rank best", "--rank best: accepted: mean, worst"),
        ("RUN --worst 0", "--worst 0: must be 1 or more"),
        ("RUN --worst 41", "--worst 41: there are results of 40 samples; ask for so many at most"),
        ("RUN --by radius --eps 0.1", "--eps says at which radius margins are compared; leave it out with --by radius"),
        ("RUN --eps 2", "eps=2: outside [0, 1]; radii are in raw pixel units, did you mean 2/255?"),
        (
            "RUN --eps 2/255",
            "RUN has no results of its student at eps=0.00784314 on the test split (found: test at eps=0.1, validation "
            "at eps=0.1): run `ctkd certify RUN --eps 0.00784313725490196` first",
        ),
        (
            "RUN --split train",
            "RUN has no results of its student at eps=0.1 on the train split (found: test at eps=0.1, validation at "
            "eps=0.1): run `ctkd certify RUN --set certify.split=train` first",
        ),
        (
            "OTHER --by radius",
            "OTHER has no certified radii on the test split: run `ctkd radii OTHER` first",
        ),
        (
            "RUN --by radius --split validation",
            "RUN has no certified radii on the validation split: run `ctkd radii RUN --set certify.split=validation` "
            "first",
        ),
        ("TMP/none", "TMP/none does not exist; name a folder that `ctkd train` made"),
        ("TMP", "TMP is not a run folder (it has no run.json); name a folder that `ctkd train` made"),
        ("RUN --out TMP/weak", "--out TMP/weak: name a file that ends in .npz, such as weak.npz"),
        ("RUN --out TMP/none/w.npz", "--out TMP/none/w.npz: there is no folder TMP/none"),
        ("RUN --out TMP/there.npz", "--out TMP/there.npz: it exists; name another file, or add --force"),
        (
            "RUN --out TMP/dir.npz --force",
            "--out TMP/dir.npz: it is a folder; name a file, such as TMP/dir.npz/weak.npz",
        ),
    ],
)
def test_what_is_asked_for_is_not_there(
    run: Path, other: Path, tmp_path: Path, ctkd_command: Command, arguments: str, message: str
) -> None:
    (tmp_path / "there.npz").write_text("mine")
    (tmp_path / "dir.npz").mkdir()
    places = {"RUN": run, "OTHER": other, "TMP": tmp_path}

    def spelled(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    refused(ctkd_command("weak", *shlex.split(spelled(arguments))), spelled(message))
    assert (tmp_path / "there.npz").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.npz", "there.npz"]


def test_never_trained_or_certified(copy: Path, ctkd_command: Command) -> None:
    (copy / "certification.sqlite").unlink()
    message = (
        f"{copy} has no results of its student at eps=0.1 on the test split (found: none): run `ctkd certify {copy}` "
    )
    refused(ctkd_command("weak", str(copy)), f"{message}first")
    (copy / "certification.sqlite").write_text("damaged, and longer than a header of SQLite would ever have to be" * 9)
    code, _, err = ctkd_command("weak", str(copy))
    assert (code, err.count("\n")) == (2, 1)
    assert "certification.sqlite cannot be read: file is not a database" in err
    (copy / "network.safetensors").unlink()
    refused(
        ctkd_command("weak", str(copy)),
        f"{copy} has no trained student yet; go on with `ctkd train --resume {copy}`",
    )


def test_runs_that_cannot_be_compared(run: Path, other: Path, copy: Path, ctkd_command: Command) -> None:
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute("""UPDATE settings SET details = replace(details, '"data": "', '"data": "other')""")
    both = f"{copy} and {other} were certified"
    refused(ctkd_command("weak", str(copy), str(other)), f"{both} on different images: rank them one by one")
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config.replace('split = "test"', 'split = "validation"'))
    refused(
        ctkd_command("weak", str(copy), str(other)),
        f"{both} on the validation and on the test split: choose one with --split",
    )
    (copy / "config.toml").write_text(config.replace("eps = 0.1", "eps = 0.05"))
    certify(copy, settings={"certify.stages": ["ibp"], "certify.samples": 3})
    refused(
        ctkd_command("weak", str(copy), str(run)),
        f"{copy} and {run} were certified at eps=0.05 and at eps=0.1: choose one with --eps, or rank --by radius",
    )


def test_runs_with_no_sample_in_common(run: Path, copy: Path, ctkd_command: Command) -> None:
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute("UPDATE samples SET sample = sample + 100")
        connection.execute("DELETE FROM radius_trials")
    refused(ctkd_command("weak", str(copy), str(run)), f"{copy}, {run} have no results of the same samples")


def test_results_that_contradict_each_other(copy: Path, ctkd_command: Command) -> None:
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute(
            "UPDATE radius_trials SET status = 'broken', stage = 'attack', attack_margin = -1, eps = 0.001 "
            "WHERE (search, sample, eps) IN (SELECT search, sample, min(eps) FROM radius_trials GROUP BY sample)"
        )
    code, out, err = ctkd_command("weak", str(copy))
    assert (code, out) == (3, "")
    assert err.endswith("one of them is wrong; nothing is ranked\n")


def test_other_data_under_the_same_name(copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute("""UPDATE settings SET details = replace(details, '"data": "', '"data": "other')""")
    assert ctkd_command("weak", str(copy))[0] == 0  # what is stored can be ranked
    refused(
        ctkd_command("weak", str(copy), "--out", str(tmp_path / "w.npz")),
        f"{copy}: data set 'digits' is no longer the one that was certified, so nothing is written",
    )
    assert not (tmp_path / "w.npz").exists()


def test_a_folder_that_cannot_be_written(
    run: Path, tmp_path: Path, ctkd_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    out = tmp_path / "w.npz"
    refused(ctkd_command("weak", str(run), "--out", str(out)), f"--out {out}: the folder {tmp_path} cannot be written")


def test_a_full_disk_leaves_what_was_there(
    run: Path, tmp_path: Path, ctkd_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    out = tmp_path / "w.npz"
    out.write_text("mine")
    refused(
        ctkd_command("weak", str(run), "--force", "--out", str(out)),
        f"{out} cannot be written, name another file with --out: No space left on device",
        1,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]
    assert out.read_text() == "mine"
