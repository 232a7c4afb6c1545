# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""HDGE: the loss against a literal reference, the queue, conformance, a run of a few seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ctkd_hdge.method import HDGE, contrast
from ctkd_hdge.options import HDGEOptions, HDGETeacherOptions
from ctkd_hdge.teacher import HDGETeacher
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ctkd.api import Box, Enclosure
from ctkd.options import validate
from ctkd.run import train
from ctkd.testing import conformance

test_method_conforms = conformance("bound", "hdge")
test_teacher_conforms = conformance("teacher", "hdge", options={"epochs": 6, "lr": 5e-3})

QUICK = {
    "train.eps": 0.02,
    "train.epochs": 4,
    "train.ramp": 2.0,
    "train.batch_size": 64,
    "train.lr": 5e-3,
    "train.threads": 1,
    "certify.samples": 40,
}


def literal(logits: list[list[float]], labels: list[int], queue: list[list[float]], temperature: float) -> list[float]:
    """The published code's formula, sample by sample: masked logits, log-sum-exp, cross entropy with the positive."""

    def score(vector: list[float], label: int) -> float:
        length = math.sqrt(sum(value * value for value in vector))
        return math.log(sum(math.exp((c == label) * value / length) for c, value in enumerate(vector)))

    losses = []
    for vector, label in zip(logits, labels, strict=True):
        positive = math.exp(score(vector, label) / temperature)
        negatives = sum(math.exp(score(other, label) / temperature) for other in queue)
        losses.append(-math.log(positive / (positive + negatives)))
    return losses


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrast_is_the_literal_one(classes: int, temperature: float) -> None:
    logits, queue = 3 * random(7, classes), random(20, classes, seed=1)
    labels = torch.arange(7) % classes
    found = contrast(logits, labels, normalize(queue), temperature)
    expected = literal(logits.tolist(), labels.tolist(), queue.tolist(), temperature)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_of_one_class_the_contrast_is_that_of_equal_scores() -> None:
    found = contrast(torch.tensor([[5.0]]), torch.tensor([0]), torch.tensor([[1.0], [1.0]]), 0.5)
    assert float(found) == pytest.approx(math.log(3))


def test_a_queue_beyond_memory_is_refused() -> None:
    problems: list[str] = []
    assert validate(HDGEOptions, {"queue": 10**12}, "bound", problems) is None
    assert problems == ["bound.queue=1000000000000: must be less than or equal to 10000000"]


def test_a_hand_computed_case() -> None:
    """Two classes, one negative: scores log(e + 1) and log(1/e + 1), whose difference is 1."""
    found = contrast(torch.tensor([[5.0, 0.0]]), torch.tensor([0]), torch.tensor([[-1.0, 0.0]]), 0.5)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-1 / 0.5)))


class Step(SimpleNamespace):
    """What the method uses of a step."""

    def __init__(self, seed: int, size: int = 6) -> None:
        self.logits = (2 * random(size, 4, seed=seed)).requires_grad_()
        x = torch.zeros(size, 3)
        clean = Enclosure(Box(x, x), "point", None, None, None, logits=self.logits)
        super().__init__(logits=self.logits, clean=clean, labels=torch.arange(size) % 4, recorded={})

    def __getitem__(self, name: str) -> Enclosure:
        assert name == "clean"
        return self.clean

    def record(self, name: str, value: Tensor) -> Tensor:
        self.recorded[name] = value
        return value

    def loss(self, enclosure: Enclosure) -> Tensor:
        assert enclosure.logits is not None
        return cross_entropy(enclosure.logits, self.labels, reduction="none")


def test_the_loss_is_cross_entropy_plus_the_contrast_with_earlier_samples() -> None:
    method = HDGE(HDGEOptions(queue=12, weight=0.7, temperature=0.2))
    steps = [Step(seed) for seed in range(4)]
    losses = [method.combine(step) for step in steps]
    negatives = steps[1].logits.tolist() + steps[2].logits.tolist()  # the newest 12
    expected = literal(steps[3].logits.tolist(), steps[3].labels.tolist(), negatives, 0.2)
    plain = cross_entropy(steps[3].logits, steps[3].labels, reduction="none")
    torch.testing.assert_close(losses[3], plain + 0.7 * torch.tensor(expected), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(steps[3].recorded["hdge/contrast"], torch.tensor(expected, dtype=torch.float64))


def test_the_queue_has_no_gradient_and_the_sample_has() -> None:
    method = HDGE(HDGEOptions(queue=6))
    first, second = Step(0), Step(1)
    method.combine(first)
    method.combine(second).sum().backward()  # type: ignore[no-untyped-call]
    assert first.logits.grad is None
    assert bool(second.logits.grad.abs().sum(1).gt(0).all())


def test_the_queue_turns_where_the_batch_does_not_divide_it() -> None:
    method = HDGE(HDGEOptions(queue=8))
    steps = [Step(seed, size) for seed, size in enumerate((6, 6, 20))]
    for step in steps[:2]:
        method.combine(step)
    assert method.queue is not None
    known = normalize(torch.cat([steps[0].logits[4:], steps[1].logits]).detach().float())
    assert {tuple(row) for row in method.queue.tolist()} == {tuple(row) for row in known.tolist()}
    method.combine(steps[2])
    newest = normalize(steps[2].logits[-8:].detach().float())
    assert {tuple(row) for row in method.queue.tolist()} == {tuple(row) for row in newest.tolist()}


def test_state_goes_through_json() -> None:
    first, second = (HDGE(HDGEOptions(queue=16)) for _ in range(2))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.queue is None
    for seed in range(3):
        first.combine(Step(seed))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for seed in (3, 4):
        assert first.combine(Step(seed)).equal(second.combine(Step(seed)))


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_the_teacher_is_trained_on_the_loss_from_the_first_step(eps: float) -> None:
    """Also where the student has no radius: the loss has none either, but methods take part only above 0."""
    asked: list[Any] = []
    context = SimpleNamespace(eps=eps, seed=3, threads=1, device="cpu", fit=lambda *arguments: asked.extend(arguments))
    HDGETeacher(HDGETeacherOptions(epochs=8, weight=0.5, queue=7, model="mlp")).obtain(context)  # type: ignore[arg-type]
    options, _, bound, model = asked
    assert options.eps > 0
    assert (options.warmup, options.ramp, options.shi_weight, options.kappa_start) == (0, 0, 0, 0)
    assert (options.epochs, options.milestones, options.seed) == (8, (4, 6), 3)
    assert bound == {"name": "hdge", "weight": 0.5, "temperature": 0.1, "queue": 7}
    assert model == "mlp"


def test_a_student_learns_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "cache"))  # train it here and now
    settings: dict[str, Any] = {
        **QUICK,
        "bound.name": "mtl-ibp",
        "distill.name": "logits",
        "teacher.name": "hdge",
        "teacher.epochs": 8,
        "teacher.batch_size": 64,
        "teacher.weight": 0.5,
    }
    folder, summary = train(settings=settings, out=tmp_path / "run")
    assert summary["teacher"]["natural_accuracy"] > 0.8
    assert summary["certified_accuracy"] > 0.2
    (first, *_), *_ = [
        [row for row in map(json.loads, folder.metrics.read_text().splitlines()) if row["network"] == "teacher"]
    ]
    assert first["losses"]["hdge/contrast"] > 0
    assert "weight = 0.5" in folder.config.read_text()


def test_the_contrast_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the term its value falls; with weight 0 it is watched only, and stays higher."""
    last = {}
    for weight in (0.0, 2.0):
        settings = {
            **QUICK,
            "bound.name": "hdge",
            "bound.weight": weight,
            "bound.queue": 256,
            "teacher.name": "none",
            "train.warmup": 0.0,
            "train.ramp": 0.0,
        }
        folder, _ = train(settings=settings, out=tmp_path / f"run-{weight:g}", certify=False)
        rows = [json.loads(line)["losses"]["hdge/contrast"] for line in folder.metrics.read_text().splitlines()]
        last[weight] = rows[-1]
        assert weight == 0 or rows[-1] < rows[0]
    assert last[2.0] < last[0.0]
