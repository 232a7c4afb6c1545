# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a run folder says about its run. Whatever is missing is None or empty, with a note that says so."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctkd.api import Split
from ctkd.cite import bibtex, papers
from ctkd.config import RunConfig, resolve
from ctkd.errors import BadInput, Contradiction, CtkdError
from ctkd.propagate import Network
from ctkd.report.results import Result, Results, read_results
from ctkd.runfolder import MARKER, RunFolder
from ctkd.session import load_data, split_digest
from ctkd.storage import read_json

FORMAT = 1
"""Of run folders, as ``run.json`` says."""
NOTHING = Results((), {})


@dataclass(eq=False)
class Run:
    """One run's facts.

    Attributes:
        tables: the resolved configuration as plain tables; ``text`` is the file.
        metrics: by network, one entry per epoch.
        split: the images that were certified, where they could be loaded and are the same; else None.
        notes: what is missing or odd, for the reader.
    """

    name: str
    path: Path
    created: str
    text: str = ""
    tables: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: Results = NOTHING
    network: Network | None = None
    split: Split | None = None
    citation: str | None = None
    notes: list[str] = field(default_factory=list)

    def choice(self, role: str) -> str:
        """The plugin's name of a role; several teachers are joined."""
        table = self.tables.get(role, {})
        found = [part.get("name", "") for part in (table if isinstance(table, list) else [table])]
        return ", ".join(map(str, found))

    @property
    def eps(self) -> float | None:
        """The radius it was trained for."""
        value = self.tables.get("train", {}).get("eps")
        return float(value) if isinstance(value, int | float) else None

    @property
    def split_name(self) -> str:
        return str(self.tables.get("certify", {}).get("split", "test"))

    @property
    def main(self) -> Result | None:
        """The result of the figures at the top: at the run's own radius, on most samples."""
        own = [r for r in self.results.found if r.eps == self.eps and r.split == self.split_name]
        return max(own, key=lambda result: len(result.rows), default=None)

    @property
    def curve(self) -> list[Result]:
        """Results at several radii of one protocol: that of the main result, or else of most radii."""
        by_protocol: dict[tuple[str, str], list[Result]] = {}
        for result in self.results.found:
            by_protocol.setdefault((result.split, result.protocol), []).append(result)
        if self.main is not None:
            return by_protocol[self.main.split, self.main.protocol]
        return max(by_protocol.values(), key=len, default=[])


def read_run(path: Path, data_dir: Path | None, images: bool) -> Run:
    """Read a run folder without changing it.

    Args:
        data_dir: where the data set's files lie, if not where the run found them.
        images: whether to load the data set, for pictures.

    Raises:
        BadInput: it is no run folder, or one of a newer ctkd.
        Contradiction: its results contradict each other.
    """
    folder = RunFolder.open(path)
    marker = read_json(path / MARKER)
    made = marker.get("format") if isinstance(marker, dict) else None
    if made != FORMAT:
        raise BadInput(f"{path} is a run of format {made}; this ctkd reads format {FORMAT}")
    run = Run(_printable(path.resolve().name), path, str(marker.get("created", "")))
    _read_config(run, folder)
    for name in ("environment", "summary"):
        file = path / f"{name}.json"
        try:
            if file.exists():
                setattr(run, name, dict(read_json(file)))
        except (BadInput, TypeError, ValueError) as problem:
            run.notes.append(f"{file.name} is left out: {problem}")
    for row in folder.read_metrics():
        run.metrics.setdefault(str(row["network"]), []).append(row)
    config = _resolved(run, folder)
    _read_results(run, folder)
    if images and run.results.found and config is not None:
        _load_images(run, folder, data_dir)
    _settle_completeness(run)
    return run


def _read_config(run: Run, folder: RunFolder) -> None:
    try:
        run.text = folder.config.read_text()
        run.tables = {role: table for role, table in tomllib.loads(run.text).items() if isinstance(table, dict | list)}
    except FileNotFoundError:
        run.notes.append("The run was stopped before its configuration was written.")
    except (OSError, ValueError) as problem:
        run.notes.append(f"config.toml cannot be read: {problem}.")


def _resolved(run: Run, folder: RunFolder) -> RunConfig | None:
    """The configuration as this ctkd understands it; it also says what to cite."""
    if not run.tables:
        return None
    try:
        config = resolve(file=folder.config)
        run.citation = bibtex(papers(config))
        return config
    except CtkdError as problem:
        run.notes.append(f"What to cite is not known: this ctkd does not read the configuration ({one_line(problem)}).")
    try:
        return resolve(file=folder.config, trained=True)
    except CtkdError:
        return None


def _read_results(run: Run, folder: RunFolder) -> None:
    if not folder.network.exists():
        run.notes.append(f"There is no trained student yet; `ctkd train --resume {run.path}` goes on.")
        return
    try:
        run.network = Network.load(folder.network)
    except BadInput as problem:
        run.notes.append(f"The student cannot be read, so no results are shown: {one_line(problem)}.")
        return
    if not folder.results.exists():
        run.notes.append(f"Nothing was certified yet; `ctkd certify {run.path}` does it.")
        return
    try:
        run.results = read_results(folder.results, run.network.sha256())
    except BadInput as problem:
        run.notes.append(f"No results are shown: {one_line(problem)}.")
    except Contradiction as problem:
        raise Contradiction(f"{run.path}: {problem}; no report is written") from None
    if run.results.foreign:
        run.notes.append(f"Results of {run.results.foreign} other network(s) in this folder are left out.")


def _load_images(run: Run, folder: RunFolder, data_dir: Path | None) -> None:
    given = {} if data_dir is None else {"data.dir": str(data_dir)}
    try:
        split: Split = getattr(load_data(resolve(given, folder.config, trained=True)), run.split_name)
    except CtkdError as problem:
        run.notes.append(f"The data set could not be loaded, so there are no pictures: {one_line(problem)}.")
        return
    known = {result.data for result in run.results.found if result.split == run.split_name}
    if known and split_digest(split) not in known:
        run.notes.append("The data set is no longer the one that was certified, so there are no pictures.")
        return
    run.split = split


def _settle_completeness(run: Run) -> None:
    """Whether each result is of the whole split: by the split itself, or by what the summary says about its own."""
    sizes: dict[str, int] = {}
    summary = run.summary or {}
    if summary.get("certified_accuracy") is not None and summary.get("certified_standard_error", 0) is None:
        sizes[str(summary.get("split"))] = summary.get("samples", -1)  # -1: damaged, and no result's size
    if run.split is not None:
        sizes[run.split_name] = len(run.split)
    found = [
        replace(r, complete=len(r.rows) == sizes[r.split] if r.split in sizes else None) for r in run.results.found
    ]
    radii = {
        key: replace(value, complete=len(value.brackets) == sizes.get(key[0]))
        for key, value in run.results.radii.items()
    }
    run.results = replace(run.results, found=tuple(found), radii=radii)


def _printable(name: str) -> str:
    """A file name as text; bytes that are none become question marks."""
    text = name.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def one_line(problem: Exception) -> str:
    """A message within a sentence."""
    return "; ".join(str(problem).splitlines()).rstrip(".")
