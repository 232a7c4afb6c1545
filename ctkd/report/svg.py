# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Matplotlib figures as SVG that belongs to the page: its fonts, its colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    name: f"#0a0b{number:02x}"
    for number, name in enumerate(
        ["ink", "faint", "grid", "natural", "adversarial", "certified", "undecided", "broken", "misclassified", "paper"]
        + [f"stage-{i}" for i in range(6)]
        + [f"series-{i}" for i in range(8)]
    )
}
"""Colours by meaning: stand-ins that ``drawn`` replaces by variables of ``style.css``."""
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["faint"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": COLOURS["ink"],
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a dollar sign in a run's name is one
    "xtick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.color": COLOURS["faint"],
    "ytick.labelcolor": COLOURS["ink"],
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: inline SVG and what stands below it. The SVG's label says the same to a screen reader."""

    svg: Markup
    caption: str


class Sheet:
    """One figure while it is drawn; ``picture`` is there after the ``with`` block of ``sheet``."""

    figure: Figure
    axes: Axes
    picture: Picture


@contextmanager
def sheet(name: str, alt: str, caption: str, size: tuple[float, float] = (5.0, 3.1)) -> Iterator[Sheet]:
    """Axes to draw on, in the page's style.

    Args:
        name: unique in the page; part of the SVG's identifiers.
        alt: what the figure shows, in words and figures.
        size: in inches of 72 pixels.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        drawing = Sheet()
        drawing.figure = Figure(figsize=size)
        FigureCanvasSVG(drawing.figure)
        drawing.axes = drawing.figure.subplots()
        yield drawing
        drawing.picture = Picture(_inline(drawing.figure, alt), caption)


def _inline(figure: Figure, alt: str) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # HTML knows these names
    # The size is the page's affair, and so are fonts.
    text = re.sub(r'(<svg\b[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]+", _font, text)
    for meaning, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{meaning})")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))  # noqa: S704


def _font(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1]}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}px"
