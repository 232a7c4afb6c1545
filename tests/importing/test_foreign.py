# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd certify MODEL.onnx``: data sets of every kind, folders of results, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ctkd import foreign
from ctkd.errors import BadInput
from ctkd.foreign import certify_model
from ctkd.progress import Silent
from ctkd.propagate import Network
from ctkd.run import certify

from .models import model, node, weights, written


class Voice(Silent):
    """Keeps warnings: random networks are right by chance."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


QUICK = {"certify.samples": 20, "certify.attack_steps": 5, "certify.attack_restarts": 1}


@pytest.fixture
def exported(quick_run: tuple[Path, dict[str, Any]]) -> Path:
    (found,) = (quick_run[0] / "export" / "onnx").glob("*.onnx")
    return found


def plain(features: int = 64, outputs: int = 10, *, rank: int = 1) -> onnx.ModelProto:
    """A fully connected classifier of flat or image inputs."""
    shape: tuple[Any, ...] = ("batch", features) if rank == 1 else ("batch", 1, 8, features // 8)
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v c", "y")]
    constants = {"w": weights(features, 12), "b": weights(12), "v": weights(12, outputs), "c": weights(outputs)}
    return model(nodes, constants, shape=shape, out=("batch", outputs))


def test_a_model_of_ours_gets_the_results_of_its_run(
    quick_run: tuple[Path, dict[str, Any]], exported: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick_run[0], run)
    settings = {**QUICK, "certify.samples": 40}
    (found,) = certify_model(exported, ["0.1"], out=tmp_path / "out", settings=settings)
    own = certify(run, eps=0.1, settings=settings)
    for key in (
        "natural_accuracy",
        "adversarial_accuracy",
        "certified_accuracy",
        "counts",
        "stages",
        "float32_certified",
    ):
        assert found[key] == own[key], key
    assert found["model"]["difference"] < 1e-5


def test_results_are_kept_and_the_same_call_goes_on(exported: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (first,) = certify_model(exported, [0.05], settings=QUICK)
    folder = Path(first["folder"])
    assert folder.parent == Path("runs")
    assert (folder / "model.json").is_file()
    settled: list[int] = []
    true = foreign.Session.certify

    def spy(self: Any, network: Network, eps: float, *rest: Any) -> Any:
        found = true(self, network, eps, *rest)
        settled.append(found.samples)
        return found

    monkeypatch.setattr(foreign.Session, "certify", spy)
    again = certify_model(exported, ["0.05", "0.05", "2/255"], settings=QUICK)
    assert [one["eps"] for one in again] == [0.05, 2 / 255]
    assert {k: v for k, v in again[0].items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert settled == [20, 20]


def test_flat_inputs_get_flat_images(tmp_path: Path) -> None:
    flat, image = (written(tmp_path / f"{name}.onnx", plain(rank=rank)) for name, rank in (("flat", 1), ("image", 3)))
    one, other = onnx.load(flat), onnx.load(image)
    del other.graph.initializer[:]
    other.graph.initializer.extend(one.graph.initializer)
    written(image, other)
    found = [
        certify_model(path, [0.01], out=tmp_path / path.stem, settings=QUICK, reporter=Voice())[0]
        for path in (flat, image)
    ]
    for key in ("natural_accuracy", "certified_accuracy", "counts"):
        assert found[0][key] == found[1][key]


def test_data_of_a_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"x_{part}": generator.random((count, 8, 8), np.float32) for part, count in (("train", 40), ("test", 20))}
    labels = {f"y_{part}": np.arange(count) % 10 for part, count in (("train", 40), ("test", 20))}
    np.savez(tmp_path / "own.npz", **arrays, **labels)
    path = written(tmp_path / "m.onnx", plain(rank=3))
    (found,) = certify_model(
        path, [0.01], dataset=str(tmp_path / "own.npz"), out=tmp_path / "out", settings=QUICK, reporter=Voice()
    )
    assert found["samples"] == 20


def test_certificates_of_a_batch_norm_are_not_counted_in_float32(tmp_path: Path) -> None:
    built = plain(rank=3)
    one = {k: np.array([v], np.float32) for k, v in (("s", 0.7), ("o", 0.1), ("m", 0.2), ("v_", 0.3))}
    built.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in one.items())
    built.graph.node.insert(0, node("BatchNormalization", "x s o m v_", "n"))
    built.graph.node[1].input[0] = "n"
    (found,) = certify_model(
        written(tmp_path / "m.onnx", built), [0.001], out=tmp_path / "out", settings=QUICK, reporter=Voice()
    )
    assert found["counts"]["certified"] > 0
    assert found["float32_certified"] is None
    assert "is no float32 number" in found["float32"]["reason"]


# Refusals ------------------------------------------------------------------------------------------------


def line(*arguments: Any, **named: Any) -> str:
    with pytest.raises(BadInput) as caught:
        certify_model(*arguments, **named)
    assert len(caught.value.messages) == 1
    return caught.value.messages[0]


def test_a_model_for_other_data_is_refused(tmp_path: Path) -> None:
    classes = written(tmp_path / "a.onnx", plain(outputs=7))
    assert "has 7 outputs, and data set 'digits' has 10 classes" in line(classes, [0.1], out=tmp_path / "out")
    pixels = written(tmp_path / "b.onnx", plain(features=80))
    assert "takes inputs of shape (80,), and data set 'digits' has images of shape (1, 8, 8)" in line(
        pixels, [0.1], out=tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_a_radius_and_known_settings_are_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", plain())
    assert "eps must be given for an ONNX model" in line(path, [], out=tmp_path / "out")
    assert "eps=8: outside [0, 1]" in line(path, ["8"], out=tmp_path / "out")
    assert "train.epochs: certifying takes certify.* settings only" in line(
        path, [0.1], settings={"train.epochs": 3}, out=tmp_path / "out"
    )
    assert "data 'nothing' is not known" in line(path, [0.1], dataset="nothing", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", plain())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "exists and holds no results of an ONNX model" in line(path, [0.1], out=tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert "is a file; name a folder" in line(path, [0.1], out=path)
    certify_model(path, [0.01], out=tmp_path / "out", settings=QUICK, reporter=Voice())
    other = written(tmp_path / "b.onnx", plain())
    assert "holds results of another model" in line(other, [0.1], out=tmp_path / "out")


def test_a_model_that_is_right_by_chance_is_warned_about(tmp_path: Path) -> None:
    voice = Voice()
    built = plain()
    for tensor in built.graph.initializer:
        if tensor.name == "c":
            tensor.CopyFrom(numpy_helper.from_array(np.eye(10, dtype=np.float32)[3] * 1000, "c"))
    certify_model(written(tmp_path / "a.onnx", built), [0.01], out=tmp_path / "out", settings=QUICK, reporter=voice)
    assert any("hardly more than by chance; it gets pixels in [0, 1]" in message for message in voice.said)


# Command line --------------------------------------------------------------------------------------------


def test_the_command_certifies_a_model(exported: Path, tmp_path: Path, ctkd_command: Callable[..., Any]) -> None:
    arguments = ["certify", exported, "--samples", "10", "--out", tmp_path / "out"]
    code, out, _ = ctkd_command(*arguments, "--eps", "0.05,0.1", "--json")
    assert code == 0
    assert [one["eps"] for one in json.loads(out)] == [0.05, 0.1]
    code, out, _ = ctkd_command(*arguments, "--eps", "0.05")
    assert code == 0
    assert "│ model │" in out


def test_the_command_refuses_what_cannot_be_read_in_one_line_each(
    tmp_path: Path, ctkd_command: Callable[..., Any]
) -> None:
    built = plain()
    built.graph.node[2].op_type = "Softplus"
    code, out, errors = ctkd_command("certify", written(tmp_path / "m.onnx", built), "--eps", "0.1")
    assert (code, out) == (2, "")
    lines = errors.strip().splitlines()
    assert len(lines) == 2
    assert "'relu-r' (Softplus): no operator that is bounded here" in lines[0]


def test_options_of_models_are_refused_for_runs(
    quick_run: tuple[Path, dict[str, Any]], ctkd_command: Callable[..., Any]
) -> None:
    code, _, errors = ctkd_command("certify", quick_run[0], "--dataset", "digits", "--out", "x")
    assert code == 2
    assert "--dataset is for an ONNX model" in errors
    assert "--out is for an ONNX model" in errors


def test_a_specification_is_settled(
    quick_run: tuple[Path, dict[str, Any]], exported: Path, tmp_path: Path, ctkd_command: Callable[..., Any]
) -> None:
    spec = sorted((quick_run[0] / "export" / "vnnlib").glob("*.vnnlib"))[0]
    arguments = ["certify", exported, "--spec", spec, "--out", tmp_path / "out"]
    code, out, _ = ctkd_command(*arguments, "--json", "--set", "certify.attack_steps=3")
    assert code == 0
    assert json.loads(out)["verifiers"]["ctkd"]["error"] == 0
    assert (tmp_path / "out" / "verification.sqlite").is_file()
    code, _, errors = ctkd_command(*arguments, "--eps", "0.1")
    assert code == 2
    assert "--spec says what is certified" in errors
    code, _, errors = ctkd_command(*arguments, "--samples", "3")
    assert code == 2
    assert "certify.samples: with --spec, accepted: certify.stages" in errors
    other = written(tmp_path / "m.onnx", plain(features=80))
    code, _, errors = ctkd_command("certify", other, "--spec", spec, "--out", tmp_path / "other")
    assert code == 2
    assert "the specification is for another network" in errors


# Verifiers -----------------------------------------------------------------------------------------------


def test_other_verifiers_go_on_where_certify_stopped(exported: Path, tmp_path: Path) -> None:
    from ctkd.verify.command import verify

    model = tmp_path / "model.onnx"
    shutil.copy(exported, model)
    (found,) = certify_model(model, [0.2], out=tmp_path / "out", settings=QUICK)
    asked = verify(tmp_path / "out", ["ctkd"], settings={"certify.samples": 20})
    assert asked["instances"] == found["counts"]["undecided"]
    assert (asked["eps"], asked["samples"]) == (0.2, 20)
    everything = verify(tmp_path / "out", ["ctkd"], everything=True, settings={"certify.samples": 20})
    low, high = everything["robust_accuracy_interval"]
    assert low >= found["certified_accuracy"]
    assert high <= found["robust_accuracy_interval"][1]


def test_a_model_that_is_gone_or_changed_is_not_verified(exported: Path, tmp_path: Path) -> None:
    from ctkd.verify.command import verify

    model = tmp_path / "model.onnx"
    shutil.copy(exported, model)
    certify_model(model, [0.05], out=tmp_path / "out", settings=QUICK)
    written(model, plain(rank=3))
    with pytest.raises(BadInput, match="has changed since"):
        verify(tmp_path / "out", ["ctkd"])
    model.unlink()
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        verify(tmp_path / "out", ["ctkd"])
    (tmp_path / "out" / "model.json").write_text("{}")
    with pytest.raises(BadInput, match="is damaged"):
        verify(tmp_path / "out", ["ctkd"])
