# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Answers of external verifiers, as `ctkd verify` stores them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctkd.run import report

from .page import Page

Command = Callable[..., tuple[int, str, str]]
SAMPLES = 40


def answered(run: Path, verdicts: dict[int, str]) -> None:
    """Answers of a verifier about samples at the run's radius."""
    from ctkd.verify.instances import Sample
    from ctkd.verify.store import Answers, Result

    with sqlite3.connect(run / "certification.sqlite") as connection:
        network, eps, split, details = connection.execute(
            "SELECT network, eps, split, details FROM settings WHERE eps = 0.1"
        ).fetchone()
    with Answers(run / "certification.sqlite") as answers:
        tool = answers.verifier("hammer", {}, {"hammer": "1.2 <beta>"})
        for index, verdict in verdicts.items():
            sample = Sample(network, eps, split, json.loads(details)["data"], index)
            instance = answers.instance("model", f"spec-{index}", f"sample {index}", sample)
            said = {
                "verdict": verdict,
                "said": verdict,
                "reason": "",
                "message": "",
                "seconds": 2.0,
                "own_seconds": None,
            }
            nothing: dict[str, Any] = {"difference": None, "witness": None, "outputs": None, "log": "", "asked": ""}
            answers.add(instance, tool, 60.0, Result(**said, **nothing))  # type: ignore[arg-type]


def samples_of(run: Path, status: str) -> list[int]:
    with sqlite3.connect(run / "certification.sqlite") as connection:
        found = connection.execute(
            "SELECT sample FROM samples JOIN settings ON id = settings WHERE eps = 0.1 AND status = ?", (status,)
        )
        return [sample for (sample,) in found]


def test_answers_of_verifiers_are_counted_with_ctkds_own(quick: Path, tmp_path: Path) -> None:
    open_ones, certified, broken = (samples_of(quick, kind) for kind in ("undecided", "certified", "broken"))
    assert len(open_ones) > 1
    answered(quick, {open_ones[0]: "verified", open_ones[1]: "timeout", certified[0]: "verified"})
    report([quick], tmp_path / "r.html", pictures=0)
    page = Page(tmp_path / "r.html")
    assert ["hammerhammer 1.2 <beta>", "0.1", "3 test", "2", "0", "0", "1", "0", "2.0"] in page.rows
    proved = len(certified) + 1
    assert (
        f"together prove {proved} ({100 * proved / SAMPLES:.1f} %) and break {len(broken)}; {len(open_ones) - 1} are"
        in (page.text)
    )


def test_what_ctkd_found_under_other_settings_counts_too(quick: Path, tmp_path: Path) -> None:
    open_ones, certified = samples_of(quick, "undecided"), samples_of(quick, "certified")
    with sqlite3.connect(quick / "certification.sqlite") as connection:
        network, split, details = connection.execute(
            "SELECT network, split, details FROM settings WHERE eps = 0.1"
        ).fetchone()
        for number, data in ((1001, json.loads(details)["data"]), (1002, "of other images")):
            other = json.dumps({**json.loads(details), "stages": [{"name": "tight"}], "data": data})
            connection.execute("INSERT INTO settings VALUES (?, ?, 0.1, ?, ?)", (number, network, split, other))
            connection.execute(
                "INSERT INTO samples VALUES (?, ?, 0, 0, 'certified', 'tight', 1.0, 1.0, 0.0, 'cpu')",
                (number, open_ones[number - 1001]),
            )
    answered(quick, {certified[0]: "verified"})
    report([quick], tmp_path / "r.html", pictures=0)
    assert f"together prove {len(certified) + 1} (" in Page(tmp_path / "r.html").text


def test_a_verifier_that_contradicts_makes_no_report(quick: Path, tmp_path: Path, ctkd_command: Command) -> None:
    answered(quick, {samples_of(quick, "certified")[0]: "falsified"})
    code, _, err = ctkd_command("report", str(quick), "--out", str(tmp_path / "r.html"))
    assert code == 3
    assert "broken at eps=0.1 by 'hammer'" in err
    assert not (tmp_path / "r.html").exists()
