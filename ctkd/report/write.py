# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd report``: read runs, write one page."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctkd.errors import BadInput, RunFailed
from ctkd.runfolder import RunFolder
from ctkd.storage import write_bytes

NEEDED = ("jinja2", "matplotlib")
MARK = b'<meta name="generator" content="ctkd report">'
"""In the head of every page written here."""


def report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    pictures: int = 8,
    data_dir: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write one self-contained HTML page about a run, or comparing several: what ``ctkd report`` does.

    Run folders are only read. What is missing in one is left out of the page, which says so.

    Args:
        runs: run folders; one named twice counts once.
        out: the page; None is ``report.html`` in the run folder, or, for several runs, in the working directory.
        pictures: how many of the weakest samples of each run are shown with a counterexample; needs the data set.
        data_dir: where the data set's files lie, if not where the runs found them.
        force: whether to replace a file that is no report.

    Returns:
        ``report``: the page's path; ``notes``: for each run, by its path, what the page says is missing.

    Raises:
        BadInput: a folder is no run, ``out`` is another file, or the extra ``report`` is not installed.
        Contradiction: a run's results contradict each other; nothing is written.
        RunFailed: the page cannot be written; one that was there stays.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"a report needs {' and '.join(missing)}: pip install 'ctkd[report]'")
    if not runs:
        raise BadInput("name at least one run folder")
    if pictures < 0:
        raise BadInput(f"pictures={pictures}: must be 0 or more")
    from ctkd.report.facts import read_run
    from ctkd.report.page import render

    folders = list({path.resolve(): path for path in runs}.values())
    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    for folder in folders:
        RunFolder.open(folder)
    _check_target(path, force)
    found = [read_run(folder, data_dir, images=pictures > 0) for folder in folders]
    page = render(found, pictures)
    _check_target(path, force)  # drawing took a while
    try:
        write_bytes(path, page.encode("utf-8", "replace"))  # a path may have bytes that are no text
    except OSError as error:
        raise RunFailed(f"{path} cannot be written, name another file with --out: {error.strerror}") from None
    return {"report": str(path), "notes": {str(run.path): run.notes for run in found}}


def _check_target(path: Path, force: bool) -> None:
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a file with --out, such as {path / 'report.html'}")
    if not path.parent.is_dir():
        raise BadInput(f"{path} cannot be written: there is no folder {path.parent}")
    if force or not path.exists():
        return
    try:
        with path.open("rb") as file:
            known = MARK in file.read(2000)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if not known:
        raise BadInput(f"{path} exists and is no report of ctkd; name another file with --out, or add --force")
