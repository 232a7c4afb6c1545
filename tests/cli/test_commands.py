# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The commands as a user meets them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctkd.plugins import registry
from ctkd.propagate import Network

from ..conftest import QUICK, QUICK_TEACHER

Command = Callable[..., tuple[int, str, str]]


def sets(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def test_train_certifies_exports_and_prints_a_table(ctkd_command: Command, tmp_path: Path) -> None:
    arguments = [
        "--bound",
        "crown-ibp",
        "--teacher",
        "pgd",
        *sets({**QUICK, **QUICK_TEACHER}),
        "--out",
        str(tmp_path / "run"),
    ]
    code, out, err = ctkd_command("train", *arguments)
    assert code == 0, err
    assert "teacher" in out
    assert "student" in out
    assert "certified" in out
    assert f"run folder: {tmp_path / 'run'}" in out
    assert "student epoch 2" in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"natural_accuracy", "adversarial_accuracy", "certified_accuracy", "eps", "samples", "split"} <= set(summary)
    assert summary["certified_accuracy"] <= summary["adversarial_accuracy"] <= summary["natural_accuracy"]
    assert (summary["eps"], summary["samples"], summary["split"]) == (0.1, 40, "test")
    assert set(summary["teacher"]) >= {"natural_accuracy", "adversarial_accuracy", "sha256"}
    assert summary["versions"]["torch"]
    export = tmp_path / "run" / "export"
    rows = list(csv.reader((export / "instances.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert all((export / path).is_file() for row in rows for path in row[:2])
    teacher = Network.load(tmp_path / "run" / "teacher" / "network.safetensors")
    assert teacher.sha256() == summary["teacher"]["sha256"]


def test_the_resolved_config_reproduces_the_run(
    ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]
) -> None:
    code, out, err = ctkd_command(
        "train", "--config", str(quick_run[0] / "config.toml"), "--out", str(tmp_path / "again"), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["student_sha256"] == quick_run[1]["student_sha256"]


def test_the_teacher_is_reused_from_the_cache(
    ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]
) -> None:
    settings = {**QUICK, **QUICK_TEACHER, "bound.name": "adversarial"}
    code, out, err = ctkd_command("train", *sets(settings), "--out", str(tmp_path / "run"), "--json")
    assert code == 0
    assert "teacher: reused from the cache" in err
    assert json.loads(out)["teacher"]["sha256"] == quick_run[1]["teacher"]["sha256"]
    settings["teacher.steps"] = 1
    code, _, err = ctkd_command("train", *sets(settings), "--out", str(tmp_path / "other"), "--no-certify")
    assert code == 0
    assert "reused" not in err


def test_no_certify_leaves_null_never_zero(ctkd_command: Command, tmp_path: Path) -> None:
    settings = {**QUICK, "teacher.name": "none"}
    code, out, _ = ctkd_command("train", *sets(settings), "--out", str(tmp_path / "run"), "--no-certify", "--json")
    summary = json.loads(out)
    assert code == 0
    assert summary["certified_accuracy"] is None
    assert summary["adversarial_accuracy"] is None
    assert summary["teacher"] is None
    assert summary["natural_accuracy"] > 0


def test_file_teacher_from_a_run_and_from_a_state_dict(
    ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]
) -> None:
    from safetensors.torch import save_file

    from ctkd.storage import read_tensors

    tensors, _ = read_tensors(quick_run[0] / "student" / "checkpoint.safetensors")
    save_file({k[6:]: v for k, v in tensors.items() if k.startswith("model/")}, tmp_path / "state.safetensors")
    hashes = []
    for i, path in enumerate([quick_run[0] / "network.safetensors", tmp_path / "state.safetensors"]):
        settings = {**QUICK, "teacher.name": "file", "teacher.path": str(path)}
        code, out, err = ctkd_command("train", *sets(settings), "--out", str(tmp_path / str(i)), "--json")
        assert code == 0, err
        hashes.append(json.loads(out)["teacher"]["sha256"])
    assert hashes == [quick_run[1]["student_sha256"]] * 2


def test_print_config_shows_values_with_their_sources(ctkd_command: Command, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[bound]\nbeta_end = 0.5\n")
    arguments = ["train", "--config", str(tmp_path / "c.toml"), "--eps", "0.1", "--epochs", "20", "--print-config"]
    code, out, _ = ctkd_command(*arguments)
    assert code == 0
    lines = {line.split(" = ")[0].strip(): line for line in out.splitlines() if " = " in line}
    assert lines["beta_end"].endswith("c.toml")
    assert lines["eps"].endswith("# command line")
    assert lines["ramp"].startswith("ramp = 10.0")
    assert lines["ramp"].endswith("# scaled with epochs")
    assert lines["lr"].endswith("# defaults/digits-0.1.toml")
    assert tomllib.loads(out)["bound"]["beta_end"] == 0.5


def test_eps_as_a_fraction(ctkd_command: Command) -> None:
    code, out, _ = ctkd_command("train", "--eps", "2/255", "--print-config", "--json")
    assert code == 0
    assert json.loads(out)["train"]["eps"] == 2 / 255


def test_plugins_json_has_the_promised_keys(ctkd_command: Command) -> None:
    code, out, _ = ctkd_command("plugins", "--json")
    rows = json.loads(out)
    assert code == 0
    assert all(set(row) == {"kind", "name", "origin", "summary", "papers"} for row in rows)
    assert [row["name"] for row in rows if row["kind"] == "bound"] == registry().names("bound")
    assert all(row["papers"] for row in rows if row["kind"] == "bound")


@pytest.mark.parametrize("key", sorted(registry().entries))
def test_every_plugin_can_be_shown(ctkd_command: Command, key: tuple[str, str]) -> None:
    code, out, err = ctkd_command("plugins", "show", key[1], "--json")
    assert code == 0, err
    (shown,) = [entry for entry in json.loads(out) if entry["kind"] == key[0]]
    assert shown["summary"]


@pytest.mark.parametrize("name", [[], *([name] for name in registry().names("command"))])
def test_every_help_ends_with_examples(ctkd_command: Command, name: list[str]) -> None:
    code, out, _ = ctkd_command(*name, "--help")
    assert code == 0
    assert "Examples:" in out
    assert out.rstrip().splitlines()[-1].strip().startswith("ctkd ")


def test_check_lists_layers(ctkd_command: Command) -> None:
    code, out, _ = ctkd_command("check", "cnn-small", "--input", "1,28,28", "--json")
    assert code == 0
    assert [layer["op"] for layer in json.loads(out)["layers"]] == [
        "Input",
        "Conv",
        "Relu",
        "Conv",
        "Relu",
        "Reshape",
        "Linear",
        "Relu",
        "Linear",
    ]


def test_export_is_the_same_for_the_same_seed(
    ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]
) -> None:
    seen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = ctkd_command(
            "export", str(quick_run[0]), str(tmp_path / name), "--samples", "3", "--seed", str(seed)
        )
        assert code == 0, err
        seen.append(
            {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        )
    assert seen[0] == seen[1]
    assert seen[0].keys() != seen[2].keys()


def test_importing_ctkd_and_listing_import_no_torch() -> None:
    script = (
        "import sys, ctkd\n"
        "from ctkd.cli.main import run\n"
        "for arguments in (['--help'], ['plugins'], ['plugins', '--json'], ['train', '--help']):\n"
        "    assert run(arguments) == 0\n"
        "assert ctkd.__version__\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'onnx', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_help_does_not_load_what_it_does_not_need() -> None:
    """No timed test: pydantic and rich are what would make `ctkd --help` slow."""
    script = (
        "import sys\n"
        "from ctkd.cli.main import run\n"
        "run(['--help'])\n"
        "assert not {'pydantic', 'rich', 'torch'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_python_dash_m() -> None:
    result = subprocess.run([sys.executable, "-m", "ctkd", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ctkd 0.")


def test_a_model_without_an_export_form_still_finishes(
    ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is never thrown away because of a refusal at the end."""
    from torch import nn

    from ctkd.models.mlp import MLP

    def grouped(self: MLP, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, classes))

    monkeypatch.setattr(MLP, "build", grouped)
    settings = {**QUICK, "teacher.name": "none", "model.name": "mlp", "bound.name": "ibp"}
    code, _, err = ctkd_command("train", *sets(settings), "--out", str(tmp_path / "run"))
    assert code == 0, err
    assert (
        "warning: this student can be trained and certified, but not exported: "
        "layer '2' has no ONNX form that all verifiers read: Conv with groups=2" in err
    )
    assert (tmp_path / "run" / "summary.json").exists()
