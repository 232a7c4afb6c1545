# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A finished run, opened again: the public functions that certify its student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ctkd.api import Data
from ctkd.attribution import attributed
from ctkd.certify.attack import attack_facts
from ctkd.certify.radii import Search
from ctkd.certify.trials import Trials
from ctkd.config import resolve
from ctkd.distributed import leads, together
from ctkd.errors import BadInput
from ctkd.interrupt import StopRequest, stop_request
from ctkd.machine import prepared
from ctkd.options import Radius
from ctkd.progress import Mute, Reporter, Silent
from ctkd.propagate import Network
from ctkd.runfolder import RunFolder
from ctkd.session import Session, load_data, sample_range

HINT = "The same command goes on"


def certify(
    run: Path,
    *,
    eps: float | str | None = None,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Certify a trained student: what ``ctkd certify`` does. Samples that are already settled are not done again.

    Args:
        run: a run folder.
        eps: radius in pixel units, also as ``"2/255"``; None is the run's.
        data_dir: where the data set's files lie, if not where the run found them.
        settings: ``"certify.key"`` -> value, such as ``{"certify.samples": 500}``.
        reporter: receives progress; None is silent.

    Returns:
        Accuracies (fractions), counts, stages, eps, samples, split.
    """
    return certify_each(run, (eps,), data_dir=data_dir, settings=settings, reporter=reporter)[0]


@together()
@attributed()
@prepared()
def certify_each(
    run: Path,
    radii: Iterable[float | str | None],
    *,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Certify at several radii, in their order: what ``ctkd certify --eps 0.05,0.1`` does.

    Every radius is checked before the first one is certified, and one that comes again is left out. The arguments are
    those of ``certify``, which also says what is in each element of the result.
    """
    with stop_request() as stop:
        session, network = open_run(run, data_dir, certify_only(settings), voice_of(reporter), stop)
        options = session.config.certify
        each = list(dict.fromkeys(parse_radius(eps, session.config.train.eps) for eps in radii))
        with lock(session.folder):
            certificates = [session.certify(network, eps, options, HINT) for eps in each]
            deployed = [session.float32(network, eps, options) for eps in each]
    return [
        {
            **certificate.summary(),
            **float32,
            "attack": attack_facts(options),
            "eps": eps,
            "samples": certificate.samples,
            "split": options.split,
            "seconds": certificate.seconds,
        }
        for eps, certificate, float32 in zip(each, certificates, deployed, strict=True)
    ]


def certify_only(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    foreign = [path for path in settings or {} if not path.startswith("certify.")]
    if foreign:
        raise BadInput(
            *(f"{path}: certifying takes certify.* settings only; the rest belongs to the run" for path in foreign)
        )
    return settings or {}


@together()
@attributed()
@prepared()
def radii(
    run: Path,
    *,
    tolerance: float | str | None = None,
    data_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Find each sample's certified radius, and the radius at which an attack breaks it: what ``ctkd radii`` does.

    Args:
        run: a run folder.
        tolerance: in pixel units: how far a radius may be from the next one that was tried and failed; None is a
            twentieth of the run's radius.
        data_dir, settings, reporter: as for ``certify``.

    Returns:
        ``average_certified_radius`` (a sample without one counts as 0, as in the literature), ``curve`` (certified and
        adversarial accuracy at every radius where one of them changes), ``radii`` (for each sample ``certified`` and
        ``broken``, or None), tolerance, attack, samples, split, seconds.
    """
    with stop_request() as stop:
        session, network = open_run(run, data_dir, certify_only(settings), voice_of(reporter), stop)
        options = session.config.certify
        step = parse_radius(tolerance, session.config.train.eps / 20, "tolerance")
        split, samples = getattr(session.data, options.split), sample_range(session.data, options)
        cascade, details = session.cascade(network, session.config.train.eps, options)
        search = Search(cascade, step, options.batch_size)
        with lock(session.folder), _trials(session.folder, network, options.split, details) as trials:
            found = search.run(split, samples, trials, session.reporter, stop, HINT)
    return {**found.summary(), "attack": attack_facts(options), "split": options.split}


def load_student(run: Path, *, data_dir: Path | None = None) -> tuple[Network, Data]:
    """A run's trained student and its data set, for whatever else is to be computed of them.

    Args:
        run: a run folder.
        data_dir: where the data set's files lie, if not where the run found them.

    Returns:
        The folded float32 network, on the CPU, and the checked data set.

    Raises: BadInput if the folder is no run, has no student yet, or its data set is not there.
    """
    session, network = open_run(run, data_dir, {}, Silent(), StopRequest())
    return network, session.data


def _trials(
    folder: RunFolder, network: Network, split: str, details: Mapping[str, Any]
) -> AbstractContextManager[Trials | None]:
    return Trials(folder.results, network.sha256(), split, details) if leads() else nullcontext()


def voice_of(reporter: Reporter | None) -> Reporter:
    """The leader speaks for all processes."""
    return (reporter or Silent()) if leads() else Mute()


def lock(folder: RunFolder) -> AbstractContextManager[None]:
    """The leader keeps other runs out, for all processes."""
    return folder.lock() if leads() else nullcontext()


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def open_run(
    path: Path, data_dir: Path | None, settings: Mapping[str, Any], reporter: Reporter, stop: StopRequest
) -> tuple[Session, Network]:
    """A finished run as a session, with its network."""
    folder = RunFolder.open(path)
    if not folder.network.exists():
        raise BadInput(f"{path} has no trained student yet; go on with `ctkd train --resume {path}`")
    given = dict(settings)
    if data_dir is not None:
        given["data.dir"] = str(data_dir)
    config = resolve(given, folder.config, trained=True)
    set_threads(config.train.threads)
    return Session(config, folder, load_data(config), reporter, stop), Network.load(folder.network)


def parse_radius(eps: float | str | None, default: float, name: str = "eps") -> float:
    from pydantic import TypeAdapter, ValidationError

    if eps is None:
        return default
    try:
        return float(TypeAdapter(Radius).validate_python(eps))
    except ValidationError as error:
        raise BadInput(f"{name}={eps}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
