# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The page: the right figures, nothing from elsewhere, and one clear line or note for whatever is missing."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.boxes import perturbation_box
from ctkd.run import radii, report

from .page import Page

Command = Callable[..., tuple[int, str, str]]
SAMPLES = 40


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("page") / "report.html"
    report([run], out, pictures=3)
    return Page(out)


def rows_of(run: Path) -> Iterator[tuple[float, list[tuple[Any, ...]]]]:
    with sqlite3.connect(run / "certification.sqlite") as connection:
        for number, eps in connection.execute("SELECT id, eps FROM settings ORDER BY eps").fetchall():
            yield eps, connection.execute("SELECT status, stage FROM samples WHERE settings = ?", (number,)).fetchall()


def test_the_table_has_the_figures_of_the_results(page: Page, run: Path) -> None:
    header = next(row for row in page.rows if row[:2] == ["eps", "samples"])
    shown = {
        row[0]: dict(zip(header, row, strict=True)) for row in page.rows if len(row) == len(header) and row != header
    }
    seen = 0
    for eps, rows in rows_of(run):
        natural = sum(stage != "natural" for _, stage in rows) / SAMPLES
        certified = sum(status == "certified" for status, _ in rows) / SAMPLES
        robust = sum(status != "broken" for status, _ in rows) / SAMPLES
        row = shown[f"{eps:g}"]
        assert row["samples"] == "40 test"
        assert row["natural"].startswith(f"{100 * natural:.1f} %")
        assert row["adversarial"].startswith(f"{100 * robust:.1f} %")
        error = 100 * (certified * (1 - certified) / SAMPLES) ** 0.5
        assert row["certified"] == f"{100 * certified:.1f} %± {error:.1f}"
        for stage in ("ibp", "crown-ibp", "crown"):
            assert row[f"by {stage}"] == str(sum(found == ("certified", stage) for found in rows))
        seen += 1
    assert seen == len(shown) == 3


def test_the_curves_have_alternative_texts_with_the_same_figures(page: Page, run: Path) -> None:
    labels = page.values("svg", "aria-label")
    curve = next(label for label in labels if label.startswith("Accuracy over eps"))
    for eps, rows in rows_of(run):
        certified = sum(status == "certified" for status, _ in rows) / SAMPLES
        assert f"at eps {eps:g} natural" in curve
        assert f"certified {100 * certified:.1f} %" in curve
    assert all(labels)
    assert all(page.values("img", "alt"))
    assert len(page.values("svg", "role")) == page.source.count("<svg")


def test_radii_are_those_of_the_command(page: Page, run: Path) -> None:
    found = radii(run, tolerance=0.02)
    assert f"Average certified radius {found['average_certified_radius']:.4g} over 40 samples" in page.text
    assert "no stage succeeded at another one at most 0.02 larger" in page.text
    assert "Standard error, where they are a subset" in page.text


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    for name in ("src", "href", "data", "poster", "srcset", "action", "xlink:href"):
        targets = [value for _, attribute, value in page.attributes if attribute == name]
        assert all(value.startswith(("#", "data:image/png;base64,")) for value in targets), name
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, *_ in page.attributes}
    assert "<script" not in page.source
    assert not re.search(r"url\((?!#)", page.source)
    assert "@import" not in page.source
    without_citation = re.sub(r"<pre class=\"wrap\">.*?</pre>", "", page.source, flags=re.DOTALL)
    assert "http" not in without_citation


def test_identifiers_are_unique_and_links_lead_somewhere(page: Page) -> None:
    names = [value for _, name, value in page.attributes if name == "id"]
    anchors = page.values("a", "href")
    assert anchors
    assert all(anchors.count(a) == 1 and names.count(a[1:]) == 1 for a in anchors)
    used = [v[1:] for _, name, v in page.attributes if name == "xlink:href"] + re.findall(
        r"url\(#([^)]+)\)", page.source
    )
    assert set(used) <= set(names)


def test_configuration_environment_and_citation_are_there(page: Page, run: Path, quick_run: tuple[Path, Any]) -> None:
    assert html.escape((run / "config.toml").read_text(), quote=False).replace('"', "&#34;") in page.source
    for word in ("torch", quick_run[1]["student_sha256"], "@software{ctkd", "gowal2018"):
        assert word in page.text


def test_counterexamples_are_those_of_the_results(page: Page, run: Path) -> None:
    from ctkd.report.facts import read_run
    from ctkd.report.view import view_of

    facts = read_run(run, None, images=True)
    assert facts.split is not None
    view = view_of(facts, "r", 3)
    assert len(view.examples) == 3
    assert [one.eps for one in view.examples] == sorted(one.eps for one in view.examples)
    for one in view.examples:
        assert one.margin <= 0 < one.natural_margin
        assert one.note == ""
        assert f"Sample {one.sample}" in page.text
        assert one.certified is None or one.certified < one.eps
        shown = decoded(one.adversarial)[:1]
        box = perturbation_box(facts.split.images[[one.sample]], one.eps)
        assert bool((shown >= box.lower[0] - 1 / 255).all())
        assert bool((shown <= box.upper[0] + 1 / 255).all())
        image = facts.split.images[one.sample]
        assert torch.allclose(decoded(one.image)[:1], image, atol=1 / 255)
    assert page.source.count("data:image/png") == 9


def decoded(uri: str) -> torch.Tensor:
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])), format="png")
    return torch.tensor(pixels[..., :3]).permute(2, 0, 1)


def test_margins_at_one_radius_are_repeated(quick: Path) -> None:
    """Without radii: at the run's own, where results have the margins."""
    from ctkd.report.facts import read_run
    from ctkd.report.view import view_of

    view = view_of(read_run(quick, None, images=True), "r", 5)
    assert view.radii is None
    assert view.examples
    for one in view.examples:
        assert one.recorded == pytest.approx(one.margin, abs=1e-4)
        assert one.note == ""


def test_the_same_facts_make_the_same_page_and_the_folder_is_only_read(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for name in ("a.html", "b.html"):
        report([run], tmp_path / name, pictures=2)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


# Several runs --------------------------------------------------------------------------------------------


def test_several_runs_are_compared(run: Path, quick: Path, tmp_path: Path, ctkd_command: Command) -> None:
    out = tmp_path / "both.html"
    code, printed, err = ctkd_command(
        "report", str(run), str(quick), str(run), "--out", str(out), "--pictures", "0", "--json"
    )
    assert code == 0, err
    assert json.loads(printed) == {"report": str(out), "notes": {str(run): [], str(quick): []}}
    page = Page(out)
    assert "2 runs compared" in page.text
    header = next(row for row in page.rows if "front" in row)
    table = [dict(zip(header, row, strict=True)) for row in page.rows if len(row) == len(header) and row != header]
    assert [row["run"] for row in table] == ["first", "quick"]
    assert {row["front"] for row in table} == {"●"}  # the same network twice
    assert table[0]["averageradius"] != "–"
    assert table[1]["averageradius"] == "–"
    assert any(
        label.startswith("Natural and certified accuracy, digits, test split, eps 0.1: ") for label in page.labels
    )
    assert any(label.startswith("Certified accuracy over eps, digits, test split") for label in page.labels)
    assert "data:image/png" not in page.source
    names = [value for _, name, value in page.attributes if name == "id" and value.startswith("run-")]
    assert len(names) == len(set(names))


def test_runs_on_other_data_or_at_other_radii_are_told_apart(quick: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(quick, other)
    with sqlite3.connect(other / "certification.sqlite") as connection:
        connection.execute("""UPDATE settings SET details = replace(details, '"data": "', '"data": "other')""")
    report([quick, other], tmp_path / "data.html", pictures=0)
    text = Page(tmp_path / "data.html").text
    assert "certified on different images; figures of different images are not comparable" in text
    assert "there is no front" in text
    text = (quick / "config.toml").read_text().replace("[train]\neps = 0.1", "[train]\neps = 0.05")
    (other / "config.toml").write_text(text)
    report([quick, other], tmp_path / "eps.html", pictures=0)
    page = Page(tmp_path / "eps.html")
    assert "The runs were trained for different radii" in page.text
    assert "Not certified at the radius of training: other." in page.text
    assert ["train.eps", "0.1", "0.05"] in page.rows
