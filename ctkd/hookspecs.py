# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The contract between ctkd and its plugins: every hook, in one file.

A plugin is a Python distribution with an entry point in the group ``ctkd`` that names a module::

    [project.entry-points.ctkd]
    my-plugin = "my_plugin"

The module says which version of this contract it was written for and implements any of the hooks below::

    from ctkd import Paper, Registration, hookimpl

    CTKD_INTERFACE = 1
    PAPER = Paper(("Doe, Jane",), "A twist for IBP", 2026, arxiv="2601.00001")

    @hookimpl
    def ctkd_bound_methods():
        return [Registration("my-ibp", "my_plugin.method:MyIBP", "IBP with a twist", (PAPER,))]

Registration hooks return lists of ``Registration``; all lists are joined. They are called plugin by plugin, so
one that raises is named and the others go on. A name that two plugins of a kind give is kept for the first and
reported with both origins. The registration module must import neither torch nor the implementation: names
and summaries are listed without loading anything, and the ``"module:Object"`` reference is imported when used.

Every registered object is called with its validated options (an instance of the class named by
``Registration.options``, or of the object's own ``Options`` attribute) and returns what ``ctkd.api``
describes for its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from ctkd.runfolder import RunFolder

INTERFACE = 1
"""Version of this contract. It changes when a plugin written for the old one would break."""

hookspec = pluggy.HookspecMarker("ctkd")
hookimpl = pluggy.HookimplMarker("ctkd")


@dataclass(frozen=True)
class Paper:
    """A source to cite.

    Attributes:
        authors: as ``"Last, First"``, in order.
        title: as printed.
        year: of publication.
        venue: journal or proceedings; empty for a preprint.
        arxiv: identifier, such as ``"1810.12715"``.
        url: where it can be read, for papers that are not on arXiv.
    """

    authors: tuple[str, ...]
    title: str
    year: int
    venue: str = ""
    arxiv: str = ""
    url: str = ""

    def __str__(self) -> str:
        """``Gowal et al. 2018, arXiv 1810.12715``"""
        last = [author.partition(",")[0] for author in self.authors]
        who = " and ".join(last) if len(last) < 3 else f"{last[0]} et al."
        where = f"arXiv {self.arxiv}" if self.arxiv else self.url.removeprefix("https://") or self.venue
        return f"{who} {self.year}, {where}" if where else f"{who} {self.year}"


@dataclass(frozen=True)
class Registration:
    """One plugin object, known by name before any of its code is imported.

    Attributes:
        name: what users write, such as ``crown-ibp``.
        target: ``"module:Object"``; called with the options.
        summary: one line for listings.
        papers: what to cite for it; ``ctkd cite`` prints them.
        options: ``"module:Class"`` of the option class where it is not ``target``'s attribute ``Options``.
        kind: filled in by ctkd: which hook it came from.
        origin: filled in by ctkd: the distribution with its version.
    """

    name: str
    target: str
    summary: str
    papers: tuple[Paper, ...] = ()
    options: str | None = None
    kind: str = ""
    origin: str = ""


class Hooks:
    """All hook specifications."""

    @hookspec
    def ctkd_bound_methods(self) -> list[Registration]:  # type: ignore[empty-body]
        """Bound methods: how the student's worst case is estimated in training (``ctkd.api.BoundMethod``)."""

    @hookspec
    def ctkd_teachers(self) -> list[Registration]:  # type: ignore[empty-body]
        """Teacher sources (``ctkd.api.TeacherSource``). Core evaluates and hashes what they return."""

    @hookspec
    def ctkd_objectives(self) -> list[Registration]:  # type: ignore[empty-body]
        """Distillation objectives: a loss on an enclosure and the teacher's outputs (``ctkd.api.Objective``)."""

    @hookspec
    def ctkd_attacks(self) -> list[Registration]:  # type: ignore[empty-body]
        """Attacks for training (``ctkd.api.Attack``). Core clamps what they return to the box."""

    @hookspec
    def ctkd_models(self) -> list[Registration]:  # type: ignore[empty-body]
        """Model architectures (``ctkd.api.ModelFactory``)."""

    @hookspec
    def ctkd_datasets(self) -> list[Registration]:  # type: ignore[empty-body]
        """Data sets (``ctkd.api.DataSource``). Core checks shapes, range and labels."""

    @hookspec
    def ctkd_propagation_backends(self) -> list[Registration]:  # type: ignore[empty-body]
        """Engines that compute training bounds (``ctkd.api.PropagationBackend``)."""

    @hookspec
    def ctkd_certification_stages(self) -> list[Registration]:  # type: ignore[empty-body]
        """Stages of ``ctkd certify`` (``ctkd.api.CertificationStage``). They must be sound."""

    @hookspec
    def ctkd_verifiers(self) -> list[Registration]:  # type: ignore[empty-body]
        """External verifiers for ``ctkd verify`` (``ctkd.verifying.Verifier``). Core replays every witness."""

    @hookspec
    def ctkd_commands(self) -> list[Registration]:  # type: ignore[empty-body]
        """Sub-commands of ``ctkd``; the target is a ``click.Command`` and takes no options object."""

    @hookspec
    def ctkd_run_started(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        """A run begins or is resumed.

        Args:
            folder: the run's folder; ``folder.path`` is a ``pathlib.Path``.
            config: the resolved configuration, one table per role.

        It comes before the teachers are trained; certifying a finished run does not call it. A plugin with lifecycle
        hooks is listed as kind ``logger``, under the name of its entry point, with its module's first line as summary.
        A plugin may write files of its own into ``folder.path``, under a name of its own. Lifecycle hooks have no
        options; a plugin that needs some reads the environment. One that raises is switched off for the rest of the
        run with a warning.
        """

    @hookspec
    def ctkd_epoch_finished(self, folder: RunFolder, network: str, metrics: Mapping[str, Any]) -> None:
        """An epoch ended.

        Args:
            folder: the run's folder.
            network: ``"student"`` or ``"teacher"``; further teachers are ``"teacher-2"``, ..., further members of an
                ensemble ``"teacher/member-2"``, ...
            metrics: what was appended to ``metrics.jsonl``; docs/run-folder.md lists the keys.

        After a run was killed its last epoch may come again, with the same figures.
        """

    @hookspec
    def ctkd_run_finished(self, folder: RunFolder, summary: Mapping[str, Any]) -> None:
        """A run ended well; ``summary`` is the content of ``summary.json``."""


KINDS = {
    "ctkd_bound_methods": "bound",
    "ctkd_teachers": "teacher",
    "ctkd_objectives": "distill",
    "ctkd_attacks": "attack",
    "ctkd_models": "model",
    "ctkd_datasets": "dataset",
    "ctkd_propagation_backends": "propagation",
    "ctkd_certification_stages": "stage",
    "ctkd_verifiers": "verifier",
    "ctkd_commands": "command",
}
"""Registration hooks and the kind of plugin each brings."""
