# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the page shows of one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ctkd.attribution import attributed
from ctkd.certify.radii import Radii
from ctkd.certify.rounding import described
from ctkd.errors import CtkdError
from ctkd.report import compare, plots
from ctkd.report.counterexamples import Counterexample, counterexamples, drawable, weakest
from ctkd.report.facts import Run, one_line
from ctkd.report.results import Result
from ctkd.report.svg import Picture
from ctkd.report.training import training_pictures
from ctkd.report.verifiers import Answered, together


@dataclass(frozen=True)
class Card:
    """A figure at the top."""

    kind: str
    title: str
    value: str
    note: str


@dataclass
class View:
    """One run as the template shows it."""

    run: Run
    lead: str
    cards: list[Card]
    results: list[Result]
    stage_names: list[str]
    unknown_size: bool
    curves: Picture | None
    stages: Picture | None
    radii: Radii | None
    radii_text: str
    distribution: Picture | None
    classes: Picture | None
    answers: list[Answered]
    answers_text: str
    training: list[tuple[str, list[Picture]]]
    facts: list[tuple[str, str]]
    examples: list[Counterexample] = field(default_factory=list)
    examples_text: str = ""
    aspect: str = "1"

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchors and titles of the parts that are there."""
        parts = [
            ("results", "Accuracy", self.results),
            ("radii", "Radii", self.radii),
            ("verifiers", "External verifiers", self.answers),
            ("weakest", "Weakest samples", self.examples),
            ("training", "Training", self.training),
            ("provenance", "Where it comes from", True),
            ("cite", "How to cite", self.run.citation),
        ]
        return [(anchor, text) for anchor, text, there in parts if there]


def view_of(run: Run, name: str, pictures: int) -> View:
    radii = compare.radii_of(run)
    found = list(run.results.found)
    view = View(
        run=run,
        lead=_lead(run),
        cards=_cards(run, radii),
        results=found,
        stage_names=list(dict.fromkeys(s for r in found for s in [*r.stages, *r.certificate.stages])),
        unknown_size=any(result.complete is None for result in found),
        curves=plots.accuracy_curves(name, run.curve, radii, run.eps),
        stages=plots.stage_bars(name, run.curve),
        radii=radii,
        radii_text="" if radii is None else _radii_text(radii),
        distribution=None if radii is None else plots.radius_distribution(name, radii),
        classes=None if radii is None else plots.radius_by_class(name, radii),
        answers=list(run.results.answers),
        answers_text=_answers_text(run),
        training=[
            (network, training_pictures(name, network, rows))
            for network, rows in sorted(run.metrics.items(), key=lambda item: (item[0] != "student", item[0]))
        ],
        facts=_facts(run),
    )
    if pictures:
        _add_examples(view, pictures)
    return view


def _add_examples(view: View, pictures: int) -> None:
    run, radii = view.run, view.radii
    result = run.main or next(iter(run.curve), None)
    if run.split is None or run.network is None or result is None or result.split != run.split_name:
        return
    if not drawable(run.split):
        run.notes.append("The samples are no images with one or three channels, so there are no pictures.")
        return
    chosen = weakest(result, radii, pictures)
    try:
        with attributed():
            view.examples = counterexamples(run.network, run.split, result, radii, chosen)
    except (CtkdError, LookupError, TypeError, ValueError) as problem:  # also: recorded by another version
        run.notes.append(f"There are no pictures, for the attack could not be run again: {one_line(problem)}.")
        return
    height, width = run.split.images.shape[-2:]
    view.aspect = f"{width} / {height}"
    order = "smallest radius that breaks them" if radii is not None else "smallest margin that the attack found"
    view.examples_text = (
        f"Correctly classified images, by the {order}. Results keep margins, not points: the attack ({result.attack}) "
        "was run again from each sample's own noise, and the margins are those of the points shown. The difference "
        "goes from −eps (purple) to eps (orange)."
    )


def _lead(run: Run) -> str:
    if not run.tables:
        return "configuration not known"
    parts = [run.choice("bound"), f"teacher {run.choice('teacher')}", f"objective {run.choice('distill')}"]
    parts += [run.choice("model"), run.choice("data")]
    if run.eps is not None:
        parts.append(f"eps {plots.radius(run.eps)}")
    return " · ".join(part for part in parts if part)


def _cards(run: Run, radii: Radii | None) -> list[Card]:
    result = run.main
    summary = run.summary or {}
    cards = []
    for kind in ("natural", "adversarial", "certified"):
        value = result.accuracies[kind] if result is not None else summary.get(f"{kind}_accuracy")
        error = result.error(value) if result is not None and value is not None else None
        spread = "" if error is None else f" ± {100 * error:.1f}"
        text = "not computed" if value is None else plots.percent(value).replace(" %", f"{spread} %")
        cards.append(Card(kind, f"{kind} accuracy", text, _card_note(kind, result, run)))
    if radii is not None:
        note = f"mean of {len(radii.brackets)} samples"
        cards.append(Card("", "average certified radius", f"{radii.average():.4f}", note))
    return cards


def _card_note(kind: str, result: Result | None, run: Run) -> str:
    if result is None:
        return "" if run.summary is None or kind != "natural" else f"{run.summary.get('samples', '?')} samples"
    counts = result.certificate
    part = f"{counts.samples} {result.split} samples"
    if kind == "natural":
        return part
    if kind == "adversarial":
        return f"{counts.broken} broken at eps {plots.radius(result.eps)}"
    return f"{counts.certified} certified, {counts.undecided} undecided"


def _answers_text(run: Run) -> str:
    found = None if run.main is None else together(run.main, run.results.found, run.results.answers)
    if run.main is None or found is None:
        return ""
    size = len(run.main.rows)
    return (
        f"Of the {size} samples at eps {plots.radius(run.main.eps)}, ctkd and the verifiers together prove "
        f"{found['proved']} ({plots.percent(found['proved'] / size)}) and break {found['broke']}; {found['open']} are "
        "open."
    )


def _radii_text(radii: Radii) -> str:
    brackets = radii.brackets.values()
    open_ends = sum(b.refused is None and (b.certified is None or b.certified < 1) for b in brackets)
    text = (
        f"Average certified radius {radii.average():.4g} over {len(radii.brackets)} samples (0 for those without one). "
        f"Each radius was itself certified; no stage succeeded at another one at most {radii.tolerance:.3g} larger."
    )
    if radii.complete is False and len(radii.brackets) > 1:
        mean = radii.average()
        variance = sum(((b.certified or 0.0) - mean) ** 2 for b in brackets) / (len(radii.brackets) - 1)
        text += f" Standard error, where they are a subset: {(variance / len(radii.brackets)) ** 0.5:.2g}."
    if open_ends:
        text += f" The search was not finished for {open_ends} samples; `ctkd radii` goes on."
    return text


def _facts(run: Run) -> list[tuple[str, str]]:
    summary, environment = run.summary or {}, run.environment
    found: list[tuple[str, Any]] = [("created", run.created)]
    seconds = summary.get("seconds")
    if isinstance(seconds, int | float):
        found.append(("seconds of work", f"{seconds:.0f}"))
    if run.network is not None:
        found.append(("student (SHA-256)", run.network.sha256()))
    first = summary.get("teacher")
    for teacher in [first, *summary.get("further_teachers", [])] if isinstance(first, dict) else []:
        figures = [f"{k} {plots.percent(teacher.get(f'{k}_accuracy'))}" for k in ("natural", "adversarial")]
        found.append((f"teacher {teacher.get('name', '')}".strip(), ", ".join(figures)))
    found += [("float32", f"at the end of the run, {said}") for said in described(summary)]
    if summary.get("validation_seen_in_training"):
        found.append(("validation", "was trained on; its figures are optimistic"))
    versions = environment.get("versions")
    if isinstance(versions, dict):
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if environment.get("plugins"):
        found.append(("plugins", ", ".join(map(str, environment["plugins"]))))
    for key in ("platform", "processor", "cpus", "threads", "processes"):
        if key in environment:
            found.append((key, environment[key]))
    return [(key, str(value)) for key, value in found if value not in ("", None)]
