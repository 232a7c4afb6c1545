# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Plots of one run's results: accuracies over eps, what settled the samples, radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctkd.certify.radii import Radii
from ctkd.report.results import Result
from ctkd.report.svg import COLOURS, Picture, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"natural": "D", "adversarial": "s", "certified": "o"}
BINS = 40
CLASSES = 20
"""Up to so many classes have a row of their own."""


def percent(value: float | None) -> str:
    """A fraction as text; a missing one is a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def radius(value: float | None) -> str:
    """A radius as text, also in 255ths where it is one."""
    if value is None:
        return "–"
    scaled = value * 255
    whole = f" ({round(scaled)}/255)" if value > 0 and abs(scaled - round(scaled)) < 1e-6 else ""
    return f"{value:.4g}{whole}"


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Fractions 0 to 1, written as percent."""
    from matplotlib.ticker import PercentFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def accuracy_curves(name: str, results: Sequence[Result], radii: Radii | None, own: float | None) -> Picture | None:
    """Natural, adversarial and certified accuracy over eps: single radii as points, a search for radii as lines.

    None where there is one radius at most.
    """
    if len(results) < 2 and radii is None:
        return None
    from matplotlib.lines import Line2D

    said = [
        f"at eps {r.eps:g} natural {percent(a['natural'])}, adversarial {percent(a['adversarial'])}, "
        f"certified {percent(a['certified'])}"
        for r in results
        for a in [r.accuracies]
    ]
    caption = "Accuracy over the radius. The share between the lower two curves is undecided."
    if radii is not None:
        caption += f" Steps: from the radii of {len(radii.brackets)} samples; each step is at a radius that was tried."
    if any(r.complete is not True for r in results):
        caption += " Bars: one binomial standard error."
    with sheet(f"{name}-curves", f"Accuracy over eps: {'; '.join(said) or 'from radii'}.", caption) as drawing:
        axes = drawing.axes
        if radii is not None:
            steps = radii.steps()
            # A certificate holds up to its radius, a broken sample is broken from its radius on.
            certified = [radii.certified_accuracy(eps) for eps in steps]
            adversarial = [radii.adversarial_accuracy(eps) for eps in steps]
            axes.step(steps, certified, where="pre", color=COLOURS["certified"])
            axes.step(steps, adversarial, where="post", color=COLOURS["adversarial"])
            axes.fill_between(steps, 0, certified, step="pre", color=COLOURS["certified"], alpha=0.1, linewidth=0)
        for kind, marker in MARKERS.items():
            line = "-" if radii is None or kind == "natural" else "none"
            eps = [r.eps for r in results]
            values = [r.accuracies[kind] for r in results]
            errors = [r.error(value) or 0.0 for r, value in zip(results, values, strict=True)]
            axes.errorbar(
                eps,
                values,
                errors if any(errors) else None,
                color=COLOURS[kind],
                marker=marker,
                linestyle=line,
                markersize=5,
                capsize=2,
            )
        if own is not None:
            axes.axvline(own, color=COLOURS["faint"], linestyle=":", linewidth=1.2)
            axes.text(own, 1.03, " eps of training", fontsize=8.5)
        axes.set(xlabel="eps (L-infinity radius, pixel units)", ylabel="accuracy", ylim=(0, 1.08))
        axes.set_xlim(left=0)
        percent_axis(axes)
        shown = [Line2D([], [], color=COLOURS[k], marker=m, markersize=5, label=k) for k, m in MARKERS.items()]
        axes.legend(handles=shown, loc="best")
    return drawing.picture


def stage_bars(name: str, results: Sequence[Result]) -> Picture | None:
    """What settled the samples, a bar for each radius."""
    if not results:
        return None
    stages = list(dict.fromkeys(stage for r in results for stage in [*r.stages, *r.certificate.stages]))
    parts: list[tuple[str, str, list[float]]] = []
    for i, stage in enumerate(stages):
        shares = [r.certificate.stages.get(stage, 0) / len(r.rows) for r in results]
        parts.append((stage, f"stage-{min(i, 5)}", shares))
    parts.append(("undecided", "undecided", [r.certificate.undecided / len(r.rows) for r in results]))
    broken = [(r.certificate.broken - (len(r.rows) - r.certificate.natural)) / len(r.rows) for r in results]
    parts.append(("broken", "broken", broken))
    wrong = [1 - r.certificate.natural / len(r.rows) for r in results]
    parts.append(("misclassified", "misclassified", wrong))
    said = [
        f"eps {r.eps:g}: " + ", ".join(f"{label} {percent(shares[i])}" for label, _, shares in parts)
        for i, r in enumerate(results)
    ]
    height = 1.3 + 0.34 * len(results)
    caption = (
        "What settled the samples: certified by the stage named, undecided, broken by a point found, or misclassified."
    )
    with sheet(f"{name}-stages", f"Share of samples by stage. {'; '.join(said)}.", caption, (5.0, height)) as drawing:
        axes, left = drawing.axes, [0.0] * len(results)
        rows = range(len(results))
        for label, colour, shares in parts:
            axes.barh(rows, shares, 0.72, left=left, color=COLOURS[colour], label=label, ec=COLOURS["paper"], lw=0.8)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set(xlim=(0, 1), ylabel="eps", xlabel="share of samples")
        axes.set_yticks(rows, [f"{r.eps:.4g}" for r in results])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        percent_axis(axes, "x")
        drawing.figure.legend(loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2)
    return drawing.picture


def radius_distribution(name: str, radii: Radii) -> Picture | None:
    """Histograms of the certified radii and of those that break."""
    certified = [b.certified for b in radii.brackets.values() if b.certified is not None]
    broken = [b.broken for b in radii.brackets.values() if b.broken is not None]
    if not certified and not broken:
        return None
    top = max([*certified, *broken]) or 1.0
    # Whole multiples of the tolerance, so that each bin holds as many of the radii that were tried.
    width = radii.tolerance * max(1, math.ceil(top / BINS / radii.tolerance)) if radii.tolerance else top / BINS
    edges = [(k - 0.01) * width for k in range(int(top / width) + 3)]
    missing = len(radii.brackets) - len(certified)
    alt = f"Radii of {len(radii.brackets)} samples: average certified {radii.average():.4g}, {missing} have none."
    caption = (
        f"Radii of single samples, in bins of {width:.3g}. The true radius of a sample lies between the two: "
        f"certified up to the one, broken at the other. {missing} of {len(radii.brackets)} samples have none certified."
    )
    with sheet(f"{name}-radii", alt, caption) as drawing:
        axes = drawing.axes
        axes.hist(certified, edges, color=COLOURS["certified"], alpha=0.55, label="certified up to")
        axes.hist(broken, edges, color=COLOURS["adversarial"], histtype="step", linewidth=1.8, label="broken at")
        axes.set(xlabel="eps (L-infinity radius, pixel units)", ylabel="samples")
        axes.set_xlim(left=0)
        axes.legend(loc="best")
    return drawing.picture


def radius_by_class(name: str, radii: Radii) -> Picture | None:
    """Quartiles of the certified radius for each class; a sample without one counts as 0."""
    classes = sorted(set(radii.labels.values()))
    if len(classes) > CLASSES:
        return None
    found = [[b.certified or 0.0 for i, b in radii.brackets.items() if radii.labels[i] == label] for label in classes]
    medians = ", ".join(
        f"{label} {sorted(part)[len(part) // 2]:.3g}" for label, part in zip(classes, found, strict=True)
    )
    caption = "Certified radius by class: median, quartiles and range. A sample without a certified radius counts as 0."
    with sheet(f"{name}-classes", f"Median certified radius by class: {medians}.", caption) as drawing:
        for row, part in enumerate(found):
            low, first, median, third, high = _quartiles(part)
            drawing.axes.hlines(row, low, high, color=COLOURS["certified"], linewidth=1.2)
            drawing.axes.hlines(row, first, third, color=COLOURS["certified"], linewidth=6, alpha=0.55)
            drawing.axes.plot(median, row, "|", color=COLOURS["ink"], markersize=11, markeredgewidth=2.2)
        drawing.axes.set_yticks(range(len(classes)), [str(label) for label in classes])
        drawing.axes.set(ylabel="class", xlabel="certified radius (pixel units)")
        drawing.axes.set_xlim(left=0)
        drawing.axes.grid(visible=False, axis="y")
        drawing.axes.invert_yaxis()
    return drawing.picture


def _quartiles(values: Sequence[float]) -> list[float]:
    """Least value, first quartile, median, third quartile and greatest: members of the values, not between them."""
    ordered = sorted(values)
    return [ordered[round(share * (len(ordered) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
