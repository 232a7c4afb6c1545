# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ONNX classifiers as teachers, and probabilities in place of logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from ctkd.api import Data
from ctkd.errors import BadInput
from ctkd.export import to_onnx
from ctkd.faculty import check_logits
from ctkd.propagate import Network
from ctkd.teaching import OnnxModel, Teacher

Make = Callable[..., Any]
Check = Callable[..., None]


def exported(network: Path, folder: Path, *, softmax: bool = False, batch: int | None = None) -> Path:
    """A network as ONNX by ctkd's own writer, with a softmax behind it or a fixed batch size on request."""
    model = to_onnx(Network.load(network))
    if softmax:
        (output,) = model.graph.output
        model.graph.node.append(helper.make_node("Softmax", [output.name], ["probabilities"], axis=1))
        output.name = "probabilities"
    if batch is not None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    path = folder / "teacher.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", [None, 1, 7])
def test_the_same_logits_as_the_network(
    batch: int | None, tmp_path: Path, obtain: Make, good: Path, digits: Data
) -> None:
    teacher = obtain("onnx", path=exported(good, tmp_path, batch=batch))
    x = digits.validation.images[:20]
    outputs = teacher.outputs(x)
    torch.testing.assert_close(outputs.logits, Network.load(good)(x), rtol=1e-4, atol=1e-4)
    assert outputs.features is None
    assert teacher.feature_shape is None
    assert not teacher.differentiable
    assert teacher(x.double()).dtype == torch.float64


def test_a_run_with_an_onnx_teacher(ctkd_command: Make, train_command: Make, tmp_path: Path, good: Path) -> None:
    path = exported(good, tmp_path)
    settings = {"teacher.name": "onnx", "teacher.path": path, "bound.name": "mtl-ibp", "distill.name": "logits"}
    code, out, err = train_command(settings)
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.strip("│ ").startswith("teacher"))
    assert [cell.strip() for cell in row.strip("│").split("│")][2:] == ["-", "-"]
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher"]["adversarial_accuracy"] is None
    assert summary["teacher"]["natural_accuracy"] > 0.5
    stored = run / "teacher" / "network.onnx"
    assert stored.read_bytes() == path.read_bytes()
    # A damaged copy is refused when the run is resumed, also without the original.
    path.unlink()
    for name in ("summary.json", "network.safetensors"):
        (run / name).unlink()
    assert ctkd_command("train", "--resume", str(run), "--no-certify")[0] == 0
    assert json.loads((run / "summary.json").read_text())["student_sha256"] == summary["student_sha256"]
    model = onnx.load(stored)
    model.producer_name = "someone else"
    onnx.save(model, stored)
    (run / "summary.json").unlink()
    code, _, err = ctkd_command("train", "--resume", str(run), "--no-certify")
    assert code == 2
    assert "teacher.json: the teacher's files are not those that were recorded" in err


def test_features_are_refused_before_the_file_is_read(refused: Check) -> None:
    settings = {"teacher.name": "onnx", "teacher.path": "absent.onnx", "distill.name": "features"}
    refused(settings, "distill.name=features reads the teacher's features, and teacher 'onnx' gives logits only")


def test_files_that_are_no_classifier_of_these_images(tmp_path: Path, refused: Check) -> None:
    settings = {"teacher.name": "onnx", "teacher.path": tmp_path / "t.onnx"}
    refused(settings, "t.onnx cannot be read: No such file or directory")
    (tmp_path / "t.onnx").write_bytes(b"rubbish")
    refused(settings, "t.onnx is not an ONNX model that takes float32 images of shape (batch, 1, 8, 8)")
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    from ctkd.train.finish import finalise

    for module, shape, part in (
        (wide, (1, 28, 28), "is not an ONNX model that takes float32 images of shape (batch, 1, 8, 8)"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7)), (1, 8, 8), "and has 7 classes; data set"),
    ):
        onnx.save(to_onnx(finalise(module, shape)), tmp_path / "t.onnx")
        refused(settings, part)


def test_onnxruntime_prints_nothing_of_its_own(tmp_path: Path, good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = exported(good, tmp_path)
    model = onnx.load(path)
    for i in (2, 3):  # so that not the images, but the first fully connected layer does not fit
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_param = "size"
    onnx.save(model, path)
    with pytest.raises(BadInput, match="is not an ONNX model that takes"):
        OnnxModel.read(path, (1, 16, 16))
    assert capfd.readouterr() == ("", "")


def test_outputs_of_another_kind(tmp_path: Path, good: Path) -> None:
    model = to_onnx(Network.load(good))
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("ArgMax", [output.name], ["label"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n", 1]))
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(
        BadInput, match=r"must return logits of shape \(batch, classes\); .* returned \(2, 1\) as int64"
    ):
        OnnxModel.read(tmp_path / "t.onnx", (1, 8, 8))


# Probabilities -------------------------------------------------------------------------------------------


def test_probabilities_are_detected_and_accepted_when_named(
    tmp_path: Path, refused: Check, obtain: Make, good: Path, digits: Data
) -> None:
    path = exported(good, tmp_path, softmax=True)
    settings = {"teacher.name": "onnx", "teacher.path": path}
    refused(settings, "teacher 'onnx' returns probabilities (rows in [0, 1] that sum to 1) in place of logits; set")
    teacher = obtain("onnx", path=path, outputs="probabilities")
    x = digits.validation.images[:20]
    expected = Network.load(good)(x).log_softmax(1)
    torch.testing.assert_close(teacher(x), expected, rtol=1e-3, atol=1e-3)
    plain = exported(good, tmp_path)
    refused({**settings, "teacher.path": plain, "teacher.outputs": "probabilities"}, "set teacher.outputs=logits")


class Answers:
    """A classifier that gives the same answers for any images."""

    input_shape, classes = (1, 8, 8), 10

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[: len(x)]


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        (torch.eye(10)[torch.arange(180) % 10], True),
        (torch.full((180, 10), 0.1), True),
        (torch.eye(10)[torch.arange(180) % 10] * 30, False),
        (torch.eye(10)[torch.arange(180) % 10].index_fill(0, torch.tensor([3]), 0.2), False),
        (torch.eye(10)[torch.arange(180) % 10] * 2 - 0.1, False),
    ],
    ids=["one-hot", "uniform", "saturated logits", "one row of logits among them", "sum to 1, some negative"],
)
def test_what_is_taken_for_probabilities(rows: torch.Tensor, taken: bool, digits: Data) -> None:
    teacher = Teacher((Answers(rows),))  # type: ignore[arg-type]
    if taken:
        with pytest.raises(BadInput, match="returns probabilities"):
            check_logits(teacher, "x", digits.validation)
        check_logits(Teacher((Answers(rows),), probabilities=(True,)), "x", digits.validation)  # type: ignore[arg-type]
    else:
        check_logits(teacher, "x", digits.validation)


def test_numbers_that_are_not_finite(digits: Data) -> None:
    rows = torch.zeros(180, 10).index_fill(0, torch.tensor([7]), torch.nan)
    with pytest.raises(BadInput, match="returns numbers that are not finite"):
        check_logits(Teacher((Answers(rows),)), "x", digits.validation)  # type: ignore[arg-type]


def test_probabilities_of_zero_become_finite_logits(digits: Data) -> None:
    rows = torch.eye(10)[torch.arange(180) % 10]
    logits = Teacher((Answers(rows),), probabilities=(True,))(digits.validation.images)  # type: ignore[arg-type]
    assert logits.isfinite().all()
    assert torch.equal(logits.argmax(1), torch.arange(180) % 10)
