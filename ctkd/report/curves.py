# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd curves``: robustness curves of several runs in one picture, as a file."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.errors import BadInput, RunFailed
from ctkd.report.facts import Run, read_run
from ctkd.report.write import NEEDED
from ctkd.storage import check_new_file, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
LENGTH = 48
"""Of a name in the legend."""


@dataclass(frozen=True)
class Figures:
    """One run's curve.

    Attributes:
        samples: how many it is of.
        stepwise: whether it is from the radii of single samples, and ``eps`` all radii where an accuracy changes; else
            it is from single radii, and begins with the natural accuracy at 0.
        certified, adversarial: accuracies at ``eps``, fractions.
    """

    run: str
    label: str
    split: str
    samples: int
    stepwise: bool
    eps: tuple[float, ...]
    certified: tuple[float, ...]
    adversarial: tuple[float, ...]


def curves(runs: Sequence[Path], out: Path, *, labels: Sequence[str] = (), force: bool = False) -> dict[str, Any]:
    """Draw certified and adversarial accuracy of several runs over the radius: what ``ctkd curves`` does.

    The robust accuracy of a run lies between its two curves. Run folders are only read.

    Args:
        runs: folders of runs that were certified on the same images at two radii or more, or whose radii were searched
            for; one named twice counts once.
        out: a .png, .svg or .pdf file.
        labels: names in the legend, one for each run; by default as much of the folders' paths as tells them apart.
        force: whether to replace ``out``.

    Returns:
        ``curves``: the file's path; ``runs``: for each run ``run``, ``label``, ``split``, ``samples``, ``stepwise``
        (whether radii of single samples were there, and drawn), and the curve: ``eps``, ``certified``, ``adversarial``.

    Raises:
        BadInput: a folder is no run or has no curve, the runs are of different images, or ``out`` is not to be written.
        Contradiction: a run's results contradict each other; nothing is written.
        RunFailed: the file cannot be written; one that was there stays.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"curves need {' and '.join(missing)}: pip install 'ctkd[report]'")
    if not runs:
        raise BadInput("name at least one run folder")
    check_new_file(out, FORMATS, "curves.png", force=force)
    folders = list({path.resolve(): path for path in runs}.values())
    if labels and len(labels) != len(folders):
        raise BadInput(f"there are {len(folders)} runs and {len(labels)} labels; give one for each run, in their order")
    read = [read_run(path, None, images=False) for path in folders]
    _check_runs(read)
    found = [_figures(run, name) for run, name in zip(read, labels or _names(folders), strict=True)]
    content = _drawn(found, _title(read[0], found), out.suffix[1:])
    check_new_file(out, FORMATS, "curves.png", force=force)  # drawing took a while
    try:
        write_bytes(out, content)
    except OSError as error:
        raise RunFailed(f"{out} cannot be written, name another file with --out: {error.strerror}") from None
    return {"curves": str(out), "runs": [asdict(one) for one in found]}


def _check_runs(runs: Sequence[Run]) -> None:
    """Raises: BadInput unless all have a curve, on the same images."""
    problems = []
    for run in runs:
        if run.results.radii or len(run.curve) > 1:
            continue
        if not run.results.found and run.notes:  # the last one is about the results
            problems.append(f"{run.path} makes no curve: {run.notes[-1]}")
            continue
        radii = ", ".join(f"{result.eps:g}" for result in run.curve)
        why = f"has results at eps={radii} only" if radii else "has no results of its student"
        problems.append(
            f"{run.path} {why}, which makes no curve: run `ctkd radii {run.path}`, "
            f"or `ctkd certify {run.path} --eps` with several radii"
        )
    if problems:
        raise BadInput(*problems)
    first = runs[0]
    for other in runs[1:]:
        if _images(other) != _images(first):
            (_, one), (_, two) = _images(first), _images(other)
            what = f"on the {one} and on the {two} split" if one != two else "on different images"
            raise BadInput(f"{first.path} and {other.path} were certified {what}: draw them in pictures of their own")


def _images(run: Run) -> tuple[str, str]:
    """Digest and name of the split that a run's curve is of."""
    if run.curve:
        return run.curve[0].data, run.curve[0].split
    split, details = next(iter(run.results.radii))
    return str(json.loads(details).get("data", "")), split


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths: as many as tell them apart."""
    parts = [path.resolve().parts for path in folders]
    most = max(map(len, parts))
    shown = (["/".join(one[-count:]) for one in parts] for count in range(1, most + 1))
    return next(names for names in shown if len(set(names)) == len(names))


def _figures(run: Run, name: str) -> Figures:
    from ctkd.report.compare import radii_of

    radii = radii_of(run)
    if radii is None:
        rows = [(r.eps, r.accuracies["certified"], r.accuracies["adversarial"], len(r.rows)) for r in run.curve]
        if rows[0][0] > 0:  # at no radius at all both are the natural accuracy
            natural = run.curve[0].accuracies["natural"]
            rows.insert(0, (0.0, natural, natural, rows[0][3]))
    else:
        size = len(radii.brackets)
        rows = [(e, radii.certified_accuracy(e), radii.adversarial_accuracy(e), size) for e in radii.steps()]
    eps, certified, adversarial, sizes = zip(*rows, strict=True)
    return Figures(str(run.path), name, _images(run)[1], max(sizes), radii is not None, eps, certified, adversarial)


# Drawing -------------------------------------------------------------------------------------------------------


def _palette() -> dict[str, str]:
    """The colours of the page on white paper, by meaning."""
    light = (Path(__file__).parent / "style.css").read_text().partition("@media")[0]
    return dict(re.findall(r"--([\w-]+): (#\w{6})", light))


def _style(palette: Mapping[str, str]) -> dict[str, Any]:
    """The page's style, its stand-ins for colours replaced; letters as shapes, for no font comes along."""
    from ctkd.report.svg import COLOURS, STYLE

    meaning = {stand_in: name for name, stand_in in COLOURS.items()}
    style = {key: palette[meaning[value]] if value in meaning else value for key, value in STYLE.items()}
    return {**style, "figure.facecolor": palette["paper"], "svg.fonttype": "path", "svg.hashsalt": "curves"}


def _drawn(found: Sequence[Figures], data: str, form: str) -> bytes:
    """The file. Nothing in it depends on the time."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from ctkd.report.plots import percent_axis

    palette = _palette()
    style: Any = _style(palette)
    with mpl.rc_context(style):
        longest = max(len(_shown(one.label)) for one in found)
        columns = 3 if longest < LENGTH // 3 else 2 if longest < LENGTH // 2 else 1
        figure = Figure(figsize=(6.4, 4.2 + 0.2 * math.ceil(len(found) / columns)), dpi=200)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for number, one in enumerate(found):
            _draw(axes, number, one, palette)
        axes.set(xlabel="eps (L-infinity radius, pixel units)", ylabel="accuracy", ylim=(0, 1.02), title=data)
        axes.set_xlim(left=0)
        percent_axis(axes)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=columns)
        plain: Any = {"color": palette["ink"], "linewidth": 1.5}
        both = [
            Line2D([], [], label="certified", linestyle="-", **plain),
            Line2D([], [], label="adversarial", linestyle="--", **plain),
        ]
        axes.legend(handles=both, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        buffer = io.BytesIO()
        timeless = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
        figure.savefig(buffer, format=form, metadata=timeless)
    return buffer.getvalue()


def _draw(axes: Axes, number: int, one: Figures, palette: Mapping[str, str]) -> None:
    """A certificate holds up to its radius, and a broken sample is broken from its radius on: steps of radii end there.
    Of single radii the measured points are marked; the lines between them only guide the eye."""
    from ctkd.report.compare import series

    # Of steps a few are marked, elsewhere for each run, so that runs are told apart without colours.
    every: Any = (number % 3, max(3, len(one.eps) // 6)) if one.stepwise else None
    common: Any = {**series(number, palette), "markersize": 4.5, "markevery": every, "clip_on": False}
    rising, falling = ("steps-pre", "steps-post") if one.stepwise else ("default", "default")
    end = one.certified.index(0) + 1 if 0 in one.certified else len(one.eps)  # nothing more to see beyond
    axes.plot(
        one.eps[:end], one.certified[:end], "-", label=_shown(one.label), drawstyle=rising, linewidth=1.6, **common
    )
    axes.plot(one.eps, one.adversarial, "--", drawstyle=falling, linewidth=1.2, fillstyle="none", **common)


def _shown(name: str) -> str:
    """The end of a name tells more than its beginning: paths have what is general in front."""
    return name if len(name) <= LENGTH else f"…{name[1 - LENGTH :]}"


def _title(run: Run, found: Sequence[Figures]) -> str:
    sizes = sorted({one.samples for one in found})
    count = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    data = run.choice("data")
    return f"{data + ', ' if data else ''}{count} {found[0].split} samples"
