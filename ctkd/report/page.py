# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The page: its template, filled in."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from ctkd.report.compare import comparison
from ctkd.report.facts import Run
from ctkd.report.plots import percent, radius
from ctkd.report.view import view_of

GENERATOR = "ctkd report"
"""By this name in its head a page is known as one that may be written again."""
FOLDER = Path(__file__).parent


def render(runs: Sequence[Run], pictures: int) -> str:
    """The whole page. ``pictures``: how many of the weakest samples are shown for each run."""
    views = [view_of(run, f"r{number}", pictures) for number, run in enumerate(runs, start=1)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "radius": radius, "margin": _margin}
    alone = len(runs) == 1
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        style=Markup((FOLDER / "style.css").read_text()),  # noqa: S704
        title=runs[0].name if alone else f"{len(runs)} runs compared",
        subtitle=views[0].lead if alone else ", ".join(run.name for run in runs),
        views=views,
        comparison=None if alone else comparison(runs),
        version=importlib.metadata.version("ctkd"),
    )


def _margin(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")
