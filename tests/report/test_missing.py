# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Whatever is missing, damaged or strange: one clear line, or a note in the page."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctkd.run import report

from .page import Page

Command = Callable[..., tuple[int, str, str]]


def test_what_was_not_computed_is_not_zero(quick: Path, tmp_path: Path) -> None:
    (quick / "certification.sqlite").unlink()
    summary = json.loads((quick / "summary.json").read_text())
    missing = {"adversarial_accuracy": None, "certified_accuracy": None}
    (quick / "summary.json").write_text(json.dumps({**summary, **missing}))
    notes = report([quick], tmp_path / "r.html")["notes"][str(quick)]
    assert notes == [f"Nothing was certified yet; `ctkd certify {quick}` does it."]
    page = Page(tmp_path / "r.html")
    assert page.text.count("not computed") == 3  # two figures, and the legend
    assert f"{100 * summary['natural_accuracy']:.1f} %" in page.text
    assert " 0.0 %" not in page.text.replace("certified by intervals 0.0 %", "")
    assert notes[0] in page.text


def test_a_run_that_has_just_begun(quick: Path, tmp_path: Path) -> None:
    for left in ("config.toml", "summary.json", "environment.json", "metrics.jsonl", "network.safetensors"):
        (quick / left).unlink()
    notes = report([quick], tmp_path / "r.html")["notes"][str(quick)]
    assert notes == [
        "The run was stopped before its configuration was written.",
        f"There is no trained student yet; `ctkd train --resume {quick}` goes on.",
    ]
    assert "not computed" in Page(tmp_path / "r.html").text


def test_a_missing_data_set_leaves_the_pictures_out(copy: Path, tmp_path: Path) -> None:
    config = (
        (copy / "config.toml").read_text().replace('name = "digits"', f'name = "npz"\npath = "{tmp_path}/no.npz"', 1)
    )
    (copy / "config.toml").write_text(config)
    notes = report([copy], tmp_path / "r.html")["notes"][str(copy)]
    assert len(notes) == 1
    assert notes[0].startswith("The data set could not be loaded, so there are no pictures: ")
    page = Page(tmp_path / "r.html")
    assert "data:image/png" not in page.source
    assert "Accuracy by radius and stage" in page.text


def test_another_data_set_under_the_same_name_leaves_the_pictures_out(copy: Path, tmp_path: Path) -> None:
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute("""UPDATE settings SET details = replace(details, '"data": "', '"data": "other')""")
    notes = report([copy], tmp_path / "r.html")["notes"][str(copy)]
    assert notes == ["The data set is no longer the one that was certified, so there are no pictures."]


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("certification.sqlite", "not a database", "No results are shown: results in "),
        ("network.safetensors", "nothing", "The student cannot be read, so no results are shown: "),
        ("summary.json", "{", "summary.json is left out: "),
        ("environment.json", "[1]", "environment.json is left out: "),
        ("config.toml", "[data]\nname = 'gone'\n[train]\neps = 0.1\n", "What to cite is not known: "),
        ("config.toml", "= =", "config.toml cannot be read: "),
    ],
)
def test_damaged_files_are_noted(quick: Path, tmp_path: Path, file: str, content: str, note: str) -> None:
    (quick / file).write_text(content)
    notes = report([quick], tmp_path / "r.html", pictures=0)["notes"][str(quick)]
    assert any(text.startswith(note) for text in notes), notes
    assert all("\n" not in text for text in notes)
    Page(tmp_path / "r.html")


def test_odd_values_in_metrics_do_no_harm(quick: Path, tmp_path: Path) -> None:
    lines = [
        {"network": "student", "epoch": "x"},
        {"network": "student", "epoch": 1, "validation": None, "losses": 3, "phase": None},
        {"network": "student", "epoch": 2, "validation": {"layers": {"1": {}}}, "losses": {"loss": None, "a": "b"}},
        {"network": "<b>", "epoch": 1, "losses": {"loss": 1.0, "<i>": 2.0}},
    ]
    with (quick / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    report([quick], tmp_path / "r.html", pictures=0)
    page = Page(tmp_path / "r.html")
    assert not {"b", "i"} & {tag for tag, *_ in page.attributes} | {"b", "i"} & set(re.findall(r"<(\w+)>", page.source))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a$x^2$b", "\"'&amp;", "line\nbreak", "\udcff"])
def test_names_are_only_text(run: Path, quick: Path, tmp_path: Path, name: str) -> None:
    # A folder's name has no slash; the rest is allowed.
    odd = tmp_path / name.replace("/", "")
    shutil.move(quick, odd)
    report([odd, run], tmp_path / "r.html", pictures=0)
    page = Page(tmp_path / "r.html")
    assert "<script" not in page.source
    shown = name.replace("/", "").replace("\n", "?").replace("\udcff", "?")
    assert shown in page.text
    if shown != "?":  # safetensors opens no file whose path is not UTF-8, which the page then says
        assert any(shown in label for label in page.labels)


def test_configuration_values_are_only_text(quick: Path, run: Path, tmp_path: Path) -> None:
    config = (quick / "config.toml").read_text().replace('name = "ibp"', 'name = "<img src=x onerror=alert(1)>"')
    (quick / "config.toml").write_text(config)
    report([quick, run], tmp_path / "r.html", pictures=0)
    page = Page(tmp_path / "r.html")
    assert page.values("img", "src") == []
    assert "<img src=x onerror=alert(1)>" in page.text


@pytest.mark.parametrize("searched", [True, False])
def test_contradicting_results_make_no_report(
    copy: Path, tmp_path: Path, ctkd_command: Command, searched: bool
) -> None:
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        if not searched:
            connection.executescript("DROP TABLE radius_trials; DROP TABLE radius_searches")
        connection.execute(
            "UPDATE samples SET status = 'broken', stage = 'attack', attack_margin = -1 "
            "WHERE settings = (SELECT id FROM settings WHERE eps = 0.02) AND status = 'certified'"
        )
    code, out, err = ctkd_command("report", str(copy), "--out", str(tmp_path / "r.html"))
    assert (code, out) == (3, "")
    assert re.fullmatch(
        r"error: .*/run: sample \d+ is certified at eps=0.\d+ by '[a-z-]+' and broken at eps=0.02 by .*\n", err
    )
    assert not (tmp_path / "r.html").exists()


def test_only_a_report_is_replaced(quick: Path, ctkd_command: Command) -> None:
    assert ctkd_command("report", str(quick), "--pictures", "0")[:2] == (0, f"report: {quick / 'report.html'}\n")
    assert ctkd_command("report", str(quick), "--pictures", "0")[0] == 0
    mine = quick / "mine.html"
    mine.write_text("<html>my own page</html>")
    arguments = ("report", str(quick), "--out", str(mine), "--pictures", "0")
    code, out, err = ctkd_command(*arguments)
    assert (code, out) == (2, "")
    assert err == f"error: {mine} exists and is no report of ctkd; name another file with --out, or add --force\n"
    assert mine.read_text() == "<html>my own page</html>"
    assert ctkd_command(*arguments, "--force")[0] == 0
    Page(mine)


def test_mistakes_are_one_line(quick: Path, tmp_path: Path, ctkd_command: Command) -> None:
    def refused(*arguments: Any) -> str:
        code, out, err = ctkd_command("report", *map(str, arguments))
        assert (code, out, err.count("\n")) == (2, "", 1), err
        return err

    assert f"{tmp_path} is not a run folder" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "nowhere", quick)
    assert "is a folder; name a file" in refused(quick, "--out", tmp_path)
    assert "there is no folder" in refused(quick, "--out", tmp_path / "no" / "r.html")
    assert "pictures=-1: must be 0 or more" in refused(quick, "--pictures", "-1")
    assert "Missing argument 'RUN...'" in refused()
    marker = json.loads((quick / "run.json").read_text())
    for found in (0, 2, None):
        (quick / "run.json").write_text(json.dumps({**marker, "format": found}))
        assert f"is a run of format {found}; this ctkd reads format 1" in refused(quick)


def test_a_missing_extra_says_how_to_get_it(
    quick: Path, ctkd_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = ctkd_command("report", str(quick))
    assert (code, err) == (2, "error: a report needs jinja2 and matplotlib: pip install 'ctkd[report]'\n")


def test_a_full_disk_leaves_the_old_page(
    quick: Path, tmp_path: Path, ctkd_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.html"
    report([quick], out, pictures=0)
    before = out.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = ctkd_command("report", str(quick), "--out", str(out), "--pictures", "0")
    assert code == 1
    assert err == f"error: {out} cannot be written, name another file with --out: No space left on device\n"
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_results_of_another_network_are_left_out(quick: Path, tmp_path: Path) -> None:
    with sqlite3.connect(quick / "certification.sqlite") as connection:
        connection.execute("UPDATE settings SET network = 'another'")
    notes = report([quick], tmp_path / "r.html", pictures=0)["notes"][str(quick)]
    assert notes == ["Results of 1 other network(s) in this folder are left out."]
