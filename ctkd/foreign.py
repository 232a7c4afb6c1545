# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Networks that were not trained here: what ``ctkd certify MODEL.onnx`` does, and how its results are opened again."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ctkd.accuracy import natural_accuracy
from ctkd.api import Data
from ctkd.attribution import attributed
from ctkd.certify.attack import attack_facts
from ctkd.config import RunConfig, resolve
from ctkd.distributed import from_leader, leads, together
from ctkd.errors import BadInput
from ctkd.importing import Imported, import_model
from ctkd.interrupt import StopRequest, stop_request
from ctkd.machine import prepared
from ctkd.progress import Reporter
from ctkd.propagate import Network
from ctkd.runfolder import RunFolder
from ctkd.session import Session, load_data, sample_range, selected
from ctkd.storage import read_json, write_json
from ctkd.trained import HINT, certify_only, lock, parse_radius, voice_of

MARKER = "model.json"
NO_RADIUS = "eps must be given for an ONNX model: it has no radius of its own, such as --eps 0.1 or 2/255"
CHANCE = 1.5
"""Times the share of one class: a model that is right no more often gets a warning."""


@together()
@attributed()
@prepared()
def certify_model(
    model: Path,
    radii: Iterable[float | str],
    *,
    dataset: str | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Certify an ONNX classifier of anyone's on a data set. Samples that are already settled are not done again.

    Args:
        model: an ONNX file that takes images in [0, 1], (batch, *input_shape) or flat; normalisation, if any, is a part
            of it.
        radii: in pixel units, also as ``"2/255"``.
        dataset: name of a data set, an .npz file or a folder of images; None is ``digits``.
        data_dir: folder with the data set's files.
        out: folder of the results; None is one under ``runs/`` that the same model always gets.
        settings: ``"certify.key"`` -> value, and ``"data.key"``.
        reporter: receives progress; None is silent.

    Returns:
        For each radius what ``ctkd.run.certify`` returns, and ``model``: path, SHA-256, and the largest ``difference``
        seen between the imported network and onnxruntime.

    Raises:
        BadInput: the model cannot be imported, or does not fit the data; see ``ctkd.errors`` for the rest.
    """
    voice = voice_of(reporter)
    each = list(dict.fromkeys(parse_radius(eps, 0.0) for eps in radii))
    if not each:
        raise BadInput(NO_RADIUS)
    imported = import_model(model)
    given = _settings(settings or {}, dataset, data_dir, each[0])
    with stop_request() as stop:
        config, data = _loaded(model, imported, given)
        folder = from_leader(lambda: _folder(out or usual_folder(model, imported), model, imported, config))
        session, options = Session(config, folder, data, voice, stop), config.certify
        with lock(folder):
            _warn_of_chance(imported.network, session)
            certificates = [session.certify(imported.network, eps, options, HINT) for eps in each]
            deployed = [session.float32(imported.network, eps, options) for eps in each]
    facts = {"path": str(model), "sha256": imported.sha256, "difference": imported.difference}
    return [
        {
            **certificate.summary(),
            **float32,
            "attack": attack_facts(options),
            "eps": eps,
            "samples": certificate.samples,
            "split": options.split,
            "seconds": certificate.seconds,
            "model": facts,
            "folder": str(folder.path),
        }
        for eps, certificate, float32 in zip(each, certificates, deployed, strict=True)
    ]


def _settings(settings: Mapping[str, Any], dataset: str | None, data_dir: Path | None, eps: float) -> dict[str, Any]:
    certify_only({path: value for path, value in settings.items() if not path.startswith("data.")})
    given = {**settings, "train.eps": eps}
    if dataset is not None:
        given["data.name"] = dataset
    if data_dir is not None:
        given["data.dir"] = str(data_dir)
    return given


def _loaded(model: Path, imported: Imported, given: Mapping[str, Any]) -> tuple[RunConfig, Data]:
    """Raises: BadInput before anything is written: wrong settings, data that do not fit, samples that there are not."""
    config = resolve(given, trained=True)
    data = _fitted(load_data(config), imported.network, str(model))
    sample_range(data, config.certify)
    return config, data


def _fitted(data: Data, network: Network, where: str) -> Data:
    """The data in the shape of the network's input.

    Raises: BadInput if images or classes do not fit.
    """
    if data.classes != network.classes:
        raise BadInput(
            f"{where} has {network.classes} outputs, and data set {data.name!r} has {data.classes} classes; "
            "name the data set that it was made for"
        )
    shape = network.input_shape
    if shape == data.input_shape:
        return data
    if len(shape) > 1 or prod(shape) != prod(data.input_shape):
        raise BadInput(
            f"{where} takes inputs of shape {shape}, and data set {data.name!r} has images of shape "
            f"{data.input_shape}; accepted: the same shape, or the same numbers flat"
        )
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    flat = {name: replace(part, images=part.images.reshape(len(part), *shape)) for name, part in parts.items()}
    return replace(data, **flat)


def usual_folder(model: Path, imported: Imported) -> Path:
    """Where the results of a model lie that nobody gave another folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem)
    return Path("runs") / f"{name}-{imported.sha256[:8]}"


def _folder(path: Path, model: Path, imported: Imported, config: RunConfig) -> RunFolder:
    """The model's folder, new or from an earlier call about the same model; it says what the latest call was about.

    Raises: BadInput if it holds something else, or cannot be written.
    """
    if (path / MARKER).is_file() and _marker(path)["sha256"] != imported.sha256:
        raise BadInput(f"{path} holds results of another model; name another folder with --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()) and not (path / MARKER).is_file():
            raise BadInput(f"{path} exists and holds no results of an ONNX model; name another folder with --out")
        facts = {
            "model": str(model.resolve()),
            "sha256": imported.sha256,
            "certified": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "eps": config.train.eps,
            "data": {key: _absolute(key, value) for key, value in config.tables()["data"].items()},
            "format": 1,
        }
        write_json(path / MARKER, facts)
    except FileExistsError:
        raise BadInput(f"{path} is a file; name a folder with --out") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None
    return RunFolder(path)


def _absolute(key: str, value: Any) -> Any:
    """A data set's files, so that they are found from any working directory, as the model is."""
    here = key in ("path", "dir") and isinstance(value, str) and Path(value).exists()
    return str(Path(value).resolve()) if here else value


def _marker(folder: Path) -> dict[str, Any]:
    found = read_json(folder / MARKER)
    if not isinstance(found, dict) or not {"model", "sha256", "eps", "data"} <= found.keys():
        raise BadInput(f"{folder / MARKER} is damaged; certify the model again, with --out naming a new folder")
    return found


def open_model(
    folder: Path, data_dir: Path | None, settings: Mapping[str, Any], reporter: Reporter, stop: StopRequest
) -> tuple[Session, Network, Path]:
    """The results of a model as a session, like a run's; its network, and its ONNX file.

    The data set and the radius are those of the latest call of ``certify_model`` about the folder.

    Raises: BadInput if the model is gone or another one, or the folder is damaged.
    """
    facts = _marker(folder)
    model = Path(facts["model"])
    imported = import_model(model)
    if imported.sha256 != facts["sha256"]:
        raise BadInput(f"{model} has changed since {folder} was made; certify it again, with --out naming a new folder")
    given = {"train.eps": facts["eps"], **{f"data.{key}": value for key, value in facts["data"].items()}, **settings}
    if data_dir is not None:
        given["data.dir"] = str(data_dir)
    config, data = _loaded(model, imported, given)
    return Session(config, RunFolder(folder), data, reporter, stop), imported.network, model


def open_on_data(
    model: Path,
    eps: float | str | None,
    dataset: str | None,
    data_dir: Path | None,
    settings: Mapping[str, Any],
    reporter: Reporter,
    stop: StopRequest,
    *,
    make: bool,
) -> tuple[Session, Network]:
    """A model and a data set as a session, in the folder that ``certify_model`` gives the model; its network.

    Args:
        eps, dataset, data_dir, settings: as for ``certify_model``.
        make: whether the folder is made where there is none.

    Raises: BadInput if no radius is given, the model cannot be imported, or does not fit the data.
    """
    if eps is None:
        raise BadInput(NO_RADIUS)
    imported = import_model(model)
    config, data = _loaded(model, imported, _settings(settings, dataset, data_dir, parse_radius(eps, 0.0)))
    path = usual_folder(model, imported)
    folder = _folder(path, model, imported, config) if make and not (path / MARKER).is_file() else RunFolder(path)
    session = Session(config, folder, data, reporter, stop)
    _warn_of_chance(imported.network, session)
    return session, imported.network


def _warn_of_chance(network: Network, session: Session) -> None:
    if not leads():
        return
    part = selected(session.data, session.config.certify)
    right = natural_accuracy(network, part)
    if right <= CHANCE / network.classes:
        session.reporter.warn(
            f"the model is right on {100 * right:.1f} % of these images, hardly more than by chance; it gets pixels "
            "in [0, 1], channels first: normalisation must be a part of the model, and its outputs are taken in the "
            "order of the labels"
        )
