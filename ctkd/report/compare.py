# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several runs beside each other: the front of natural and certified accuracy, curves, and what was configured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctkd.certify.radii import Radii
from ctkd.report.facts import Run
from ctkd.report.plots import percent, percent_axis
from ctkd.report.results import Result
from ctkd.report.svg import COLOURS, Picture, sheet

MARKERS = "osD^vP*X"
SERIES = 8
"""Colours, then they come again, with other markers."""


@dataclass(frozen=True)
class Group:
    """Runs that were certified on the same images at the same radius.

    Attributes:
        results: by the run's number, from 0 on.
        front: numbers of the runs that no other one of the group beats in natural and certified accuracy.
    """

    data: str
    split: str
    eps: float
    results: Mapping[int, Result]
    front: frozenset[int]

    @property
    def title(self) -> str:
        """What the group has in common."""
        return f"{self.data}, {self.split} split, eps {self.eps:g}"


def groups(runs: Sequence[Run]) -> list[Group]:
    """One for each data set and radius with more than one run; of a run's results at one radius the largest."""
    found: dict[tuple[str, str, float], dict[int, Result]] = {}
    for number, run in enumerate(runs):
        for result in run.results.found:
            members = found.setdefault((result.data, result.split, result.eps), {})
            if number not in members or len(result.rows) > len(members[number].rows):
                members[number] = result
    return [
        Group(runs[next(iter(members))].choice("data"), split, eps, members, front(members))
        for (_, split, eps), members in sorted(found.items(), key=lambda item: (item[0][:2], item[0][2]))
        if len(members) > 1
    ]


def front(results: Mapping[int, Result]) -> frozenset[int]:
    """Those that are not dominated: no other one is as good in both accuracies and better in one."""
    points = {n: (r.accuracies["natural"], r.accuracies["certified"]) for n, r in results.items()}
    return frozenset(
        n for n, (x, y) in points.items() if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    )


def series(number: int, colours: Mapping[str, str] = COLOURS) -> dict[str, Any]:
    """Colour and marker of a run in the plots."""
    marker = MARKERS[(number + number // SERIES) % len(MARKERS)]
    return {"color": colours[f"series-{number % SERIES}"], "marker": marker}


def label(number: int, name: str, length: int = 26) -> str:
    """A run in a legend: its number in the table, and its name."""
    return f"{number + 1}  {name if len(name) <= length else name[: length - 1] + '…'}"


def front_picture(name: str, group: Group, runs: Sequence[Run]) -> Picture:
    """Natural and certified accuracy of each run, and the front."""
    values = {number: result.accuracies for number, result in group.results.items()}
    on_front = sorted(group.front, key=lambda number: values[number]["natural"])
    said = "; ".join(
        f"{runs[n].name} natural {percent(v['natural'])}, certified {percent(v['certified'])}"
        + (" (on the front)" if n in group.front else "")
        for n, v in values.items()
    )
    caption = (
        f"{group.title}. The line is the front: no other run here is better in one accuracy and no worse in the other."
    )
    if any(result.complete is not True for result in group.results.values()):
        caption += " Bars: one binomial standard error of a subset."
    with sheet(name, f"Natural and certified accuracy, {group.title}: {said}.", caption) as drawing:
        axes = drawing.axes
        edge = [(values[n]["natural"], values[n]["certified"]) for n in on_front]
        axes.step([x for x, _ in edge], [y for _, y in edge], where="pre", color=COLOURS["faint"], zorder=1)
        for number, result in group.results.items():
            x, y = values[number]["natural"], values[number]["certified"]
            axes.errorbar(
                x,
                y,
                result.error(y),
                result.error(x),
                **series(number),
                markersize=8 if number in group.front else 6,
                fillstyle="full" if number in group.front else "none",
                linestyle="none",
                elinewidth=1,
                label=label(number, runs[number].name),
            )
            axes.annotate(str(number + 1), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
        axes.margins(0.15)
        axes.set(xlabel="natural accuracy", ylabel="certified accuracy")
        _finer(drawing.axes)
        drawing.figure.legend(loc="outside upper left", ncols=2 if len(values) > 1 else 1)
    return drawing.picture


def _finer(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def curves_picture(name: str, title: str, members: Mapping[int, Run]) -> Picture | None:
    """Certified and adversarial accuracy of runs on the same data over eps."""
    drawn = {n: run for n, run in members.items() if len(run.curve) > 1 or radii_of(run) is not None}
    if not drawn:
        return None
    caption = (
        f"{title}. Certified accuracy (solid) and adversarial accuracy (dashed) over the radius, as lower and upper "
    )
    caption += "bounds of the robust accuracy. Steps are from radii of single samples, points from single radii."
    alt = f"Certified accuracy over eps, {title}: " + "; ".join(
        f"{run.name} " + ", ".join(f"{percent(r.accuracies['certified'])} at {r.eps:g}" for r in run.curve)
        for run in drawn.values()
    )
    with sheet(name, f"{alt}.", caption, (5.0, 3.6)) as drawing:
        axes = drawing.axes
        for number, run in drawn.items():
            style = {**series(number), "markersize": 4.5}
            radii = radii_of(run)
            eps = [result.eps for result in run.curve]
            line = "none" if radii else None
            accuracies = {kind: [r.accuracies[kind] for r in run.curve] for kind in ("certified", "adversarial")}
            axes.plot(eps, accuracies["certified"], linestyle=line or "-", label=label(number, run.name), **style)
            axes.plot(eps, accuracies["adversarial"], linestyle=line or "--", fillstyle="none", **style)
            if radii is not None:
                steps = radii.steps()
                color = style["color"]
                axes.step(steps, [radii.certified_accuracy(e) for e in steps], where="pre", color=color, linewidth=1.5)
                upper = [radii.adversarial_accuracy(e) for e in steps]
                axes.step(steps, upper, where="post", color=color, linewidth=1.2, linestyle="--")
        axes.set(xlabel="eps (L-infinity radius, pixel units)", ylabel="accuracy", ylim=(0, 1.02))
        axes.set_xlim(left=0)
        percent_axis(axes)
        drawing.figure.legend(loc="outside upper left", ncols=2 if len(drawn) > 1 else 1)
    return drawing.picture


def radii_of(run: Run) -> Radii | None:
    """Radii under the protocol of the run's curve; of another one for the same images where that has none."""
    known = run.results.radii
    if not run.curve:
        return next(iter(known.values()), None)
    first = run.curve[0]
    others = [
        radii
        for (split, details), radii in known.items()
        if (split, json.loads(details).get("data", "")) == (first.split, first.data)
    ]
    return known.get((first.split, first.protocol)) or next(iter(others), None)


def by_data(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Runs on the same images, by a title of these."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for number, run in enumerate(runs):
        if run.curve:
            found.setdefault((run.curve[0].data, run.curve[0].split), {})[number] = run
    titles: dict[str, dict[int, Run]] = {}
    for (digest, split), members in found.items():
        title = f"{next(iter(members.values())).choice('data')}, {split} split"
        titles[title if title not in titles else f"{title} ({digest[:8]})"] = members
    return titles


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str | None]]]:
    """Keys of the configurations that are not the same in all runs, and each run's value; None where it has none."""
    flat = [_flat(run.tables) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [one.get(key) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(tables: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for role, content in tables.items():
        parts = content if isinstance(content, list) else [content]
        for i, table in enumerate(parts, start=1):
            for key, value in table.items() if isinstance(table, dict) else ():
                name = role if i == 1 else f"{role}.{i}"
                found[f"{name}.{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


# The table of all runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A run in the table of all."""

    number: int
    run: Run
    eps: float | None
    samples: int | None
    accuracies: dict[str, float | None]
    errors: dict[str, float | None]
    undecided: float | None
    average: float | None
    best: frozenset[str]
    on_front: bool


@dataclass(frozen=True)
class Comparison:
    """All runs beside each other."""

    rows: list[Line]
    notes: list[str]
    pictures: list[Picture]
    differences: list[tuple[str, list[str | None]]]

    @property
    def shared(self) -> list[tuple[str, list[str | None]]]:
        """Keys that all runs have."""
        return [(key, values) for key, values in self.differences if None not in values]

    @property
    def others(self) -> list[tuple[str, list[str | None]]]:
        """Keys that some have: options of plugins that others do not use."""
        return [(key, values) for key, values in self.differences if None in values]


def comparison(runs: Sequence[Run]) -> Comparison:
    """The table, by certified accuracy, and the plots."""
    found = groups(runs)
    rows = [_line(number, run, runs, found) for number, run in enumerate(runs)]
    rows.sort(
        key=lambda row: -1.0 if row.accuracies["certified"] is None else row.accuracies["certified"], reverse=True
    )
    fronts = [front_picture(f"front-{i}", group, runs) for i, group in enumerate(_foremost(found, runs))]
    curves = [curves_picture(f"curves-{i}", title, members) for i, (title, members) in enumerate(by_data(runs).items())]
    return Comparison(
        rows,
        _comparison_notes(runs, found),
        [*fronts, *(picture for picture in curves if picture is not None)],
        differences(runs),
    )


def _foremost(found: Sequence[Group], runs: Sequence[Run], most: int = 4) -> list[Group]:
    """The groups of most runs, those at a radius of training first."""
    own = {run.eps for run in runs}
    return sorted(found, key=lambda g: (-len(g.results), g.eps not in own))[:most]


def _line(number: int, run: Run, runs: Sequence[Run], found: Sequence[Group]) -> Line:
    result = run.main
    radii = radii_of(run)
    summary = run.summary or {}
    kinds = ("natural", "adversarial", "certified")
    if result is None:
        values = {kind: summary.get(f"{kind}_accuracy") for kind in kinds}
        missing = dict.fromkeys(kinds)
        average = None if radii is None else radii.average()
        return Line(
            number + 1, run, run.eps, summary.get("samples"), values, missing, None, average, frozenset(), False
        )
    accuracies: dict[str, float | None] = {**result.accuracies}
    group = next((g for g in found if g.results.get(number) is result), None)
    best = set()
    for kind in kinds if group is not None else ():
        if accuracies[kind] == max(member.accuracies[kind] for member in group.results.values()):  # type: ignore[union-attr]
            best.add(kind)
    return Line(
        number + 1,
        run,
        result.eps,
        len(result.rows),
        accuracies,
        {kind: result.error(value) for kind, value in result.accuracies.items()},
        result.certificate.undecided / len(result.rows),
        None if radii is None else radii.average(),
        frozenset(best),
        group is not None and number in group.front,
    )


def _comparison_notes(runs: Sequence[Run], found: Sequence[Group]) -> list[str]:
    notes = []
    certified = [run for run in runs if run.main is not None]
    if len({(run.main.data, run.main.split) for run in certified if run.main}) > 1:
        notes.append("The runs were certified on different images; figures of different images are not comparable.")
    if len({run.eps for run in runs}) > 1:
        notes.append("The runs were trained for different radii; the front is drawn where they were certified at one.")
    if len(certified) < len(runs):
        names = ", ".join(run.name for run in runs if run.main is None)
        notes.append(f"Not certified at the radius of training: {names}.")
    sizes = {len(run.main.rows) for run in certified if run.main}
    if len(sizes) > 1:
        notes.append("The runs were certified on different numbers of samples.")
    if not found:
        notes.append("No two runs were certified on the same images at the same radius, so there is no front.")
    return notes
