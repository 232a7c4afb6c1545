# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What alpha-beta-CROWN is told: the user's settings, except what would change the question."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from ctkd_abcrown.configuration import Files, read_settings, write_question
from ctkd_abcrown.options import AbCrownOptions

from ctkd.errors import BadInput

THEIRS = """
general: {device: cuda, root_path: ../../benchmarks, csv_name: instances.csv, conv_mode: matrix, prepare_only: true}
model: {onnx_path: theirs.onnx, onnx_optimization_flags: [merge_bn], cache_onnx_conversion: true, input_shape: [-1, 3]}
data: {start: 7}
debug: {rescale_vnnlib_ptb: 0.1}
specification: {vnnlib_path: theirs.vnnlib, rhs_offset: -1.0, shrink_eps: 1e-10}
solver: {batch_size: 9, beta-crown: {iteration: 20}}
bab: {timeout: 5, override_timeout: 9, timeout_scale: 2, decision_thresh: -10, branching: {method: fsb}}
attack: {cex_path: theirs.txt, pgd_restarts: 5}
"""


def written(folder: Path, mode: str, timeout: float = 30.0, **options: Any) -> dict[str, Any]:
    files = Files(folder, mode)
    made = AbCrownOptions.model_validate({"mode": mode, **options})
    write_question(made, files, Path("/models/a, b.onnx"), timeout)
    found: dict[str, Any] = yaml.safe_load(files.configuration.read_text())
    return found


def test_single_mode(tmp_path: Path) -> None:
    assert written(tmp_path, "single", 1e-05) == {
        "general": {"device": "cpu", "save_adv_example": True, "results_file": str(tmp_path / "results.txt")},
        "attack": {"cex_path": str(tmp_path / "witness.txt")},
        "bab": {"timeout": 1e-05},
        "model": {"onnx_path": "/models/a, b.onnx"},
        "specification": {"vnnlib_path": str(tmp_path / "plain.vnnlib")},
    }


def test_csv_mode(tmp_path: Path) -> None:
    found = written(tmp_path, "csv", 12.5, device="cuda", batch_size=128)
    assert found == {
        "general": {
            "device": "cuda",
            "save_adv_example": True,
            "results_file": str(tmp_path / "results.pickle"),
            "root_path": str(tmp_path),
            "csv_name": "instances.csv",
        },
        "attack": {"cex_path": str(tmp_path / "witness.txt")},
        "bab": {"timeout": 12.5},
        "solver": {"batch_size": 128},
    }
    with (tmp_path / "instances.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["/models/a, b.onnx", str(tmp_path / "plain.vnnlib"), "12.5"]]


@pytest.mark.parametrize("mode", ["single", "csv"])
def test_settings_of_the_user_leave_the_question_alone(tmp_path: Path, mode: str) -> None:
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    found = written(tmp_path, mode, config=tmp_path / "theirs.yaml", batch_size=128)
    plain = written(tmp_path, mode, batch_size=128)
    kept = {
        ("general", "conv_mode"): "matrix",
        ("model", "input_shape"): [-1, 3],
        ("solver", "beta-crown"): {"iteration": 20},
        ("bab", "branching"): {"method": "fsb"},
        ("attack", "pgd_restarts"): 5,
    }
    for (section, key), value in kept.items():
        assert found[section].pop(key) == value
    assert {name: part for name, part in found.items() if part} == plain


def test_what_is_no_settings_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for content, says in (
        (b"a: [", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"!!python/object/apply:os.system ['true']", "is no YAML"),
        (b"", "must hold sections"),
        (b"- 1", "must hold sections"),
        (b"solver: 1", "must hold sections"),
        (b"[" * 5000, "is no YAML"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=says) as caught:
            read_settings(path)
        assert "\n" not in str(caught.value)
