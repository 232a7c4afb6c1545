# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Curves of several runs in one picture: the right figures, and one clear line for what cannot be drawn."""

from __future__ import annotations

import io
import shutil
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from ctkd.run import certify_each, curves, radii

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def points(quick: Path) -> Path:
    """A run with results at two radii, and no radii of single samples."""
    certify_each(quick, [0.05])
    return quick


def test_the_figures_are_those_of_the_results(run: Path, points: Path, tmp_path: Path) -> None:
    drawn = curves([run, points], tmp_path / "c.png")
    assert drawn["curves"] == str(tmp_path / "c.png")
    steps, single = drawn["runs"]
    assert (steps["stepwise"], single["stepwise"]) == (True, False)
    assert (steps["label"], single["label"]) == ("first", "quick")
    assert {(one["split"], one["samples"]) for one in drawn["runs"]} == {("test", 40)}
    for row in radii(run, tolerance=0.02)["curve"]:
        k = steps["eps"].index(row["eps"])
        assert steps["certified"][k] == row["certified_accuracy"]
        assert steps["adversarial"][k] == row["adversarial_accuracy"]
    assert single["eps"] == (0.0, 0.05, 0.1)
    with sqlite3.connect(points / "certification.sqlite") as connection:
        for k, eps in enumerate(single["eps"]):
            of = "SELECT status, stage FROM samples JOIN settings ON settings.id = settings WHERE eps = ?"
            rows = connection.execute(of, (eps or 0.05,)).fetchall()
            natural = sum(stage != "natural" for _, stage in rows) / 40
            certified = sum(status == "certified" for status, _ in rows) / 40
            robust = sum(status != "broken" for status, _ in rows) / 40
            assert (single["certified"][k], single["adversarial"][k]) == (
                (certified, robust) if eps else (natural,) * 2
            )


def test_png_svg_and_pdf(run: Path, points: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    for form in ("png", "svg", "pdf"):
        curves([run, points], tmp_path / f"c.{form}", labels=["IBP <&> $x$", "other"])
    picture = imread(io.BytesIO((tmp_path / "c.png").read_bytes()), format="png")
    assert picture.shape[1] == 1280
    colours = {tuple(round(255 * float(c)) for c in pixel[:3]) for pixel in picture.reshape(-1, picture.shape[-1])}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (255, 255, 255)} <= colours  # a line each, on white
    source = (tmp_path / "c.svg").read_text()
    ElementTree.fromstring(source)  # noqa: S314
    assert "#0a0b" not in source  # the page's stand-ins for colours
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_runs_make_the_same_file(run: Path, tmp_path: Path) -> None:
    for form in ("png", "svg", "pdf"):
        curves([run], tmp_path / f"one.{form}")
        curves([run], tmp_path / f"two.{form}")
        assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_names_tell_runs_apart(run: Path, tmp_path: Path) -> None:
    places = [tmp_path / trial / "seed-0" for trial in ("0000", "0001")]
    for place in places:
        shutil.copytree(run, place)
    drawn = curves(places, tmp_path / "c.png")
    assert [one["label"] for one in drawn["runs"]] == ["0000/seed-0", "0001/seed-0"]


def test_radii_of_another_split_are_not_drawn_with_the_results(points: Path, tmp_path: Path) -> None:
    radii(points, tolerance=0.1, settings={"certify.split": "validation", "certify.samples": 5})
    (drawn,) = curves([points], tmp_path / "c.png")["runs"]
    assert (drawn["split"], drawn["stepwise"]) == ("test", False)


def refused(found: tuple[int, str, str], message: str) -> None:
    assert found == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "c.gif"], "--out c.gif: name a file that ends in .png, .svg, .pdf, such as curves.png"),
        (["--out", "none/c.png"], "--out none/c.png: there is no folder none"),
        (["--out", "there.png"], "--out there.png: it exists; name another file, or add --force"),
        (["--out", "dir.png", "--force"], "--out dir.png: it is a folder; name a file, such as dir.png/curves.png"),
        (
            ["--out", "c.png", "--label", "a", "--label", "b"],
            "there are 1 runs and 2 labels; give one for each run, in their order",
        ),
    ],
)
def test_what_cannot_be_written(
    run: Path,
    tmp_path: Path,
    ctkd_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.png").write_text("mine")
    Path("dir.png").mkdir()
    refused(ctkd_command("curves", str(run), *arguments), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.png", "there.png"]
    assert Path("there.png").read_text() == "mine"


def test_runs_without_a_curve(run: Path, quick: Path, tmp_path: Path, ctkd_command: Command) -> None:
    out = ["--out", str(tmp_path / "c.png")]
    more = f"which makes no curve: run `ctkd radii {quick}`, or `ctkd certify {quick} --eps` with several radii"
    refused(ctkd_command("curves", str(run), str(quick), *out), f"{quick} has results at eps=0.1 only, {more}")
    none = f"{quick} makes no curve: "
    (quick / "certification.sqlite").write_text("damaged " * 200)
    code, _, err = ctkd_command("curves", str(run), str(quick), *out)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {none}No results are shown: results in ")
    (quick / "certification.sqlite").unlink()
    nothing = f"{none}Nothing was certified yet; `ctkd certify {quick}` does it."
    refused(ctkd_command("curves", str(run), str(quick), *out), nothing)
    (quick / "network.safetensors").unlink()
    untrained = f"{none}There is no trained student yet; `ctkd train --resume {quick}` goes on."
    refused(ctkd_command("curves", str(run), str(quick), *out), untrained)
    assert not (tmp_path / "c.png").exists()


def test_runs_on_different_images(run: Path, copy: Path, tmp_path: Path, ctkd_command: Command) -> None:
    out = ["--out", str(tmp_path / "c.png")]
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        for statement in (
            """UPDATE settings SET details = replace(details, '"data": "', '"data": "other')""",
            """UPDATE radius_searches SET details = replace(details, '"data": "', '"data": "other')""",
        ):
            connection.execute(statement)
    both = f"{run} and {copy} were certified"
    end = "draw them in pictures of their own"
    refused(ctkd_command("curves", str(run), str(copy), *out), f"{both} on different images: {end}")
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        connection.execute("UPDATE settings SET split = 'validation'")
        connection.execute("UPDATE radius_searches SET split = 'validation'")
    refused(ctkd_command("curves", str(run), str(copy), *out), f"{both} on the test and on the validation split: {end}")
