# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Citations: of exactly what is used, as BibTeX that parses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctkd.cite import bibtex, papers
from ctkd.cli.main import run as cli
from ctkd.config import resolve
from ctkd.hookspecs import Paper
from ctkd.plugins import registry


def keys(**settings: Any) -> set[str]:
    text = bibtex(papers(resolve({name.replace("__", "."): value for name, value in settings.items()})))
    return set(re.findall(r"@\w+\{(\w+),", text))


def test_a_configuration_cites_its_methods_and_no_others() -> None:
    found = keys(bound__name="cc-ibp", teacher__name="pgd", distill__name="features")
    assert {"ctkd", "depalma2024expressive", "depalma2026learning", "madry2018deep", "gowal2018effectiveness"} <= found
    assert "muller2023certified" not in found
    without = keys(bound__name="sabr", teacher__name="none")
    assert "muller2023certified" in without
    assert "depalma2026learning" not in without


def test_stages_and_initialisation_count_only_where_they_are_used() -> None:
    name = "shi2021fast"
    assert name in keys(train__init="shi")
    assert name not in keys(bound__name="crown-ibp", train__init="default", train__shi_weight=0)
    crown = "zhang2018efficient"
    assert crown in keys(teacher__name="none")
    assert crown not in keys(teacher__name="none", certify__stages=["ibp"])


def test_every_bound_method_and_objective_has_a_paper_or_is_ours() -> None:
    for entry in registry().entries.values():
        assert all(isinstance(paper, Paper) for paper in entry.papers)
        if entry.kind == "bound":
            assert entry.papers, entry.name


def test_two_papers_never_share_a_key() -> None:
    first = Paper(("Doe, Jane",), "On Bounds", 2026, arxiv="1")
    second = Paper(("Doe, John",), "Bounds for All", 2026, arxiv="2")
    assert len(set(re.findall(r"@\w+\{(\w+),", bibtex([first, second])))) == 3


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="{}\\"), min_size=1))
def test_entries_are_well_formed_whatever_the_title(title: str) -> None:
    (entry,) = bibtex([Paper(("Doe, Jane",), title, 2026, "A & B 3(4)")]).split("\n\n@")[1:]
    assert entry.count("{") == entry.count("}")
    assert re.match(r"article\{doe2026\w*,\n", entry)
    assert r"journal = {A \& B 3(4)}" in entry
    assert not re.search(r"(?<!\\)[&%$#_]", entry)


def test_the_command_takes_options_or_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert cli(["cite", "--bound", "taps", "--teacher", "none"]) == 0
    assert "@inproceedings{mao2023connecting," in capsys.readouterr().out
    assert cli(["cite", str(tmp_path / "absent")]) == 2
    assert cli(["cite", str(tmp_path), "--bound", "ibp"]) == 2
    assert "not both" in capsys.readouterr().err


def test_how_a_paper_is_named() -> None:
    assert str(Paper(("Doe, Jane",), "T", 2026, arxiv="2601.00001")) == "Doe 2026, arXiv 2601.00001"
    assert str(Paper(("Doe, Jane", "Roe, R."), "T", 2026, url="https://x.org/y")) == "Doe and Roe 2026, x.org/y"
    assert str(Paper(("A, B", "C, D", "E, F"), "T", 2026, "Journal")) == "A et al. 2026, Journal"
