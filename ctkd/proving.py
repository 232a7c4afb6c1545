# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Stored proofs of a run, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctkd.api import Split
from ctkd.attribution import attributed
from ctkd.boxes import perturbation_box
from ctkd.certify.proofs import ProofFolder, proof_folder, read_proof
from ctkd.certify.replay import replay
from ctkd.certify.store import Row, Store
from ctkd.errors import BadInput, CtkdError, Interrupted
from ctkd.interrupt import stop_request
from ctkd.plugins import create_from
from ctkd.progress import Reporter, Silent
from ctkd.propagate import Network
from ctkd.session import Session, split_digest
from ctkd.trained import open_run

SPLITS = ("train", "validation", "test")


@attributed()
def check_proofs(run: Path, *, data_dir: Path | None = None, reporter: Reporter | None = None) -> dict[str, Any]:
    """Replay every stored proof of a run in float64, by separate code: what ``ctkd check-proofs`` does.

    A sample needs a proof if it was certified with ``certify.proofs`` by a stage that searches. Its proof must be about
    the run's network, about the box that the image in the data set has at the recorded radius, and about its label.

    Args:
        run: a run folder.
        data_dir: where the data set's files lie, if not where the run found them.
        reporter: receives progress; None is silent.

    Returns:
        ``checked`` (proofs that hold), ``refused`` (for each that does not: ``sample``, ``eps``, ``split``,
        ``reason``), and ``smallest_margin`` over those that hold, None without any.

    Raises:
        BadInput: there are no results with proofs, or the data is not what was certified.
    """
    voice = reporter or Silent()
    with stop_request() as stop:
        session, network = open_run(run, data_dir, {}, voice, stop)
        wanted = _wanted(session, network)
        if not wanted:
            raise BadInput(
                f"{run} has no certificates with proofs; make some by `ctkd certify {run} --set certify.proofs=true "
                """--set 'certify.stages=["crown", "complete"]'`"""
            )
        margins: list[float] = []
        refused: list[dict[str, Any]] = []
        voice.begin("checking proofs", len(wanted))
        try:
            for folder, row, split in wanted:
                try:
                    margins.append(_check(network, folder, row, split))
                except CtkdError as problem:
                    facts = {"sample": row.sample, "eps": folder.claim["eps"], "split": folder.claim["split"]}
                    refused.append({**facts, "reason": str(problem)})
                voice.advance()
                if stop:
                    raise Interrupted(f"interrupted after {len(margins)} proofs that hold", stop.signal_number or 0)
        finally:
            voice.end()
    return {"checked": len(margins), "refused": refused, "smallest_margin": min(margins, default=None)}


def _wanted(session: Session, network: Network) -> list[tuple[ProofFolder, Row, Split]]:
    """The certificates that must have a proof, each with where it lies and the split its sample is in."""
    if not session.folder.results.exists():
        return []
    found = []
    with Store(session.folder.results) as store:
        for name in SPLITS:
            split: Split = getattr(session.data, name)
            digest = split_digest(split)
            for key, eps, details in store.with_proofs(network.sha256(), name):
                if details["data"] != digest:
                    raise BadInput(f"the {name} split is not the one that was certified; its images or labels differ")
                searching = {table["name"] for table in details["stages"] if _searches(table)}
                folder = proof_folder(session.folder.path, key, network, eps, name, details)
                rows = store.rows(key, range(len(split)))
                found += [(folder, row, split) for row in rows if row.status == "certified" and row.stage in searching]
    return found


def _searches(table: Mapping[str, Any]) -> bool:
    given = {key: value for key, value in table.items() if key != "origin"}
    return hasattr(create_from("stage", given), "search")


def _check(network: Network, folder: ProofFolder, row: Row, split: Split) -> float:
    proof = read_proof(folder.file(row.sample))
    claim = {**folder.claim, "sample": row.sample, "label": row.label}
    for key, value in claim.items():
        if proof.claim.get(key) != value:
            raise BadInput(f"{folder.file(row.sample)} is about {key} {proof.claim.get(key)}, the result about {value}")
    box = perturbation_box(split.images[row.sample : row.sample + 1], folder.claim["eps"])
    mine = proof.tensors.get("box.lower"), proof.tensors.get("box.upper")
    if int(split.labels[row.sample]) != row.label or not all(
        end is not None and end.equal(given[0]) for end, given in zip(mine, (box.lower, box.upper), strict=True)
    ):
        raise BadInput(f"{folder.file(row.sample)} is not about this sample's image and label")
    return replay(network, proof)
