# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Writes alpha-beta-CROWN's configuration: the user's settings, and over them what ctkd asks."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ctkd.errors import BadInput
from ctkd_abcrown.options import AbCrownOptions

NOT_TAKEN = {
    # what is asked, or whether it is asked at all
    "data": None,
    "debug": None,
    "specification": None,
    "general": (
        "adhoc_tuning",
        "csv_name",
        "output_file",
        "prepare_only",
        "return_optimized_model",
        "root_path",
        "save_output",
    ),
    "model": (
        "cache_onnx_conversion",  # writes beside the network, as the next but one does
        "name",
        "onnx_loader",
        "onnx_optimization_flags",
        "onnx_path",
        "onnx_path_prefix",
        "onnx_vnnlib_joint_optimization_flags",
        "path",
    ),
    "bab": ("decision_thresh", "override_timeout", "timeout_scale"),
}
"""Of the user's settings, by section (None: all of it): with its own defaults alpha-beta-CROWN answers the question
that the two files pose, and writes to the scratch folder only."""


@dataclass(frozen=True)
class Files:
    """Where alpha-beta-CROWN finds its configuration and leaves its answer, in a question's scratch folder."""

    folder: Path
    mode: str

    @property
    def configuration(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def specification(self) -> Path:
        return self.folder / "plain.vnnlib"  # it leaves a SPEC.compiled beside it, and reads one that lies there

    @property
    def instances(self) -> Path:
        return self.folder / "instances.csv"

    @property
    def results(self) -> Path:
        return self.folder / ("results.pickle" if self.mode == "csv" else "results.txt")

    @property
    def witness(self) -> Path:
        return self.folder / "witness.txt"


def read_settings(path: Path | None) -> dict[str, dict[str, Any]]:
    """The user's settings, by section.

    Raises: BadInput: the file cannot be read, or holds something else.
    """
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInput(f"abcrown.config={path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:200]
        raise BadInput(f"abcrown.config={path} is no YAML: {what}") from None
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise BadInput(f"abcrown.config={path} must hold sections of settings, such as 'solver: {{batch_size: 64}}'")
    return found


def write_question(options: AbCrownOptions, files: Files, model: Path, timeout: float) -> None:
    """Write the configuration, and in csv mode the table of one instance.

    Raises: BadInput: as ``read_settings``.
    """
    settings = {name: _taken(name, part) for name, part in read_settings(options.config).items()}

    def put(section: str, **values: Any) -> None:
        settings[section] = {**settings.get(section, {}), **values}

    put("general", device=options.device, save_adv_example=True, results_file=str(files.results))
    put("attack", cex_path=str(files.witness))
    put("bab", timeout=float(timeout))
    if options.batch_size is not None:
        put("solver", batch_size=options.batch_size)
    if files.mode == "single":
        put("model", onnx_path=str(model))
        put("specification", vnnlib_path=str(files.specification))
    else:
        put("general", root_path=str(files.folder), csv_name=files.instances.name)
        with files.instances.open("w", newline="") as file:
            csv.writer(file).writerow([str(model), str(files.specification), repr(float(timeout))])
    files.configuration.write_text(yaml.safe_dump(settings))


def _taken(section: str, part: Mapping[str, Any]) -> dict[str, Any]:
    left_out = NOT_TAKEN.get(section, ())
    return {} if left_out is None else {key: value for key, value in part.items() if key not in left_out}
