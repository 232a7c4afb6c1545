# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Terminals that are narrow, or whose encoding lacks a character."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from ctkd.cli.common import notes, print_table
from ctkd.cli.main import run
from ctkd.cli.plugins import registered


def test_every_plugin_is_described_where_only_ascii_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    assert {run(["plugins", "show", name]) for name in {entry.name for entry in registered()}} == {0}
    assert run(["cite", "--bound", "sabr"]) == 0
    printed = raw.getvalue().decode("ascii")
    assert "\\u03b1" in printed  # alpha, of cc-ibp


def test_a_narrow_terminal_cuts_no_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    table = Table()
    table.add_column("adversarial")
    table.add_row("22.50 %")
    assert print_table(table).width == 10
    printed = capsys.readouterr().out
    assert "adversarial" in printed
    assert "22.50 %" in printed


def test_a_part_of_the_split_that_is_all_alike_is_not_certain() -> None:
    summary = {"adversarial_accuracy": 1.0, "samples": 60, "certified_standard_error": 0.0}
    assert notes(summary) == [
        "a part of the split, all alike: fewer than 5.00 % of the split differ, with 95 % confidence"
    ]
