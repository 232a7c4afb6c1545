# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The loop: non-finite values, weight averaging, population statistics, per-term gradients."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.config import resolve
from ctkd.errors import BadInput, RunFailed
from ctkd.interrupt import StopRequest
from ctkd.progress import Silent
from ctkd.randomness import Noise
from ctkd.run import train
from ctkd.session import load_data
from ctkd.train.loop import Plugins, Trainer

from ..conftest import QUICK
from .steps import make

PLAIN = {**QUICK, "teacher.name": "none", "bound.name": "cc-ibp", "train.epochs": 1, "train.ramp": 0.5}


def trainer(folder: Path, **settings: Any) -> Trainer:
    config = resolve({**PLAIN, **settings})
    plugins = Plugins(
        config.bound.create(), config.distill.create(), config.attack.create(), config.propagation.create()
    )
    data = load_data(config)
    module = config.model.create().build(data.input_shape, data.classes)
    folder.mkdir(exist_ok=True)
    return Trainer("student", "student", module, data, plugins, config.train, (), folder, Silent(), StopRequest(), "")


class Poison:
    """A bound method that turns one term into NaN at a step."""

    def __init__(self, method: Any, at: int) -> None:
        self.method, self.at, self.evaluates = method, at, method.evaluates

    def needs(self, schedule: Any) -> Any:
        return self.method.needs(schedule)

    def combine(self, step: Any) -> torch.Tensor:
        loss: torch.Tensor = self.method.combine(step)
        return loss * torch.nan if step.schedule.step == self.at else loss


def test_a_non_finite_step_changes_nothing_and_stops_the_run(tmp_path: Path) -> None:
    poisoned = trainer(tmp_path / "a", **{"train.checkpoint_seconds": 1e-9})
    poisoned.plugins.method = Poison(poisoned.plugins.method, at=12)
    with pytest.raises(RunFailed, match=r"step 1[34]: total loss is not finite; .* last good checkpoint is kept in"):
        poisoned.run()
    clean = trainer(tmp_path / "b")
    clean._prepare()
    for i in range(12):
        rows = torch.randperm(1257, generator=_order(clean))[i * clean.batch : (i + 1) * clean.batch]
        noise = Noise(clean.options.seed, "student-attack", 0, samples=rows)
        clean._one_step(clean.images[rows], clean.labels[rows], noise, measure=False)
        clean.step += 1
    for left, right in zip(poisoned.module.state_dict().values(), clean.module.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def _order(run: Trainer) -> torch.Generator:
    from ctkd.randomness import generator

    return generator(run.options.seed, f"{run.name}-order", 0)


def test_the_offending_term_is_named(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", **{"train.lr": 1e30, "train.warmup": 0.0, "train.ramp": 0.0})
    with pytest.raises(RunFailed, match=r"(robust/mixed|clean|gradient|l1|total loss) is not finite"):
        run.run()


def test_each_epoch_logs_what_the_docs_promise(quick_run: tuple[Path, dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (quick_run[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(row["network"], row["epoch"]) for row in rows] == [
        *(("teacher", e) for e in (1, 2, 3)),
        *(("student", e) for e in (1, 2)),
    ]
    student = rows[-1]
    assert 0 <= student["validation"]["interval_certified_accuracy"] <= student["validation"]["natural_accuracy"] <= 1
    assert len(student["validation"]["layers"]) == 3
    for layer in student["validation"]["layers"].values():
        assert layer["dead"] + layer["active"] + layer["unstable"] == pytest.approx(1)
        assert layer["width"] > 0
    assert {"robust/box", "distill/features/box"} <= set(student["gradient_norms"])
    assert all(norm > 0 for norm in student["gradient_norms"].values())
    assert student["eps"] == pytest.approx(0.1)


def test_averaged_weights_are_the_mean_of_the_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", **{"train.average_from": 0.5})
    seen: list[list[torch.Tensor]] = []
    original = run._average

    def spy() -> None:
        seen.append([p.detach().clone() for p in run.parameters])
        original()

    run._average = spy  # type: ignore[method-assign]
    run.run()
    assert len(seen) >= run.steps_per_epoch // 2
    for i, parameter in enumerate(run.parameters):
        mean = torch.stack([weights[i] for weights in seen]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-4, atol=1e-6)


def test_population_statistics_are_the_mean_over_the_training_set(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", **{"train.population_statistics": True})
    run.run()
    first = run.module[0](run.images[: run.steps_per_epoch * run.batch])
    torch.testing.assert_close(run.module[1].running_mean, first.mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-5)


def test_final_training_uses_validation_data_and_says_so(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", **{"train.final": True})
    run._prepare()
    assert len(run.split) == 1257 + 180
    _, summary = train(settings={**PLAIN, "train.final": True}, out=tmp_path / "run")
    assert summary["validation_seen_in_training"]


def test_last_pass_statistics_follow_the_published_order(tmp_path: Path) -> None:
    """Clean forward (updates), attack with the running statistics after it, adversarial forward (updates again)."""
    run = trainer(tmp_path / "a", **{"train.statistics": "last-pass", "train.warmup": 0.0, "train.ramp": 0.0})
    run._prepare()
    reference = copy.deepcopy(run.module)
    seen: dict[str, torch.Tensor] = {}
    original = run.plugins.attack.perturb

    def spy(logits: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen["clean"], seen["logits"] = x, logits(x)
        seen["found"] = original(logits, x, *rest)
        return seen["found"]

    run.plugins.attack.perturb = spy
    rows = torch.arange(run.batch)
    noise = Noise(0, "student-attack", 0, samples=rows)
    run._one_step(run.images[rows], run.labels[rows], noise, measure=False)
    reference.train()(seen["clean"])
    torch.testing.assert_close(seen["logits"], reference.eval()(seen["clean"]), rtol=1e-4, atol=1e-4)
    reference.train()(seen["found"])
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(dict(run.module.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match=r"warmup \+ ramp = 30 epochs do not fit into epochs = 20"):
        resolve({"train.epochs": 20, "train.ramp": 29, "train.warmup": 1})


# The device ----------------------------------------------------------------------------------------------


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Pretends that there is a GPU: what ``.to("cuda")`` gives is a copy whose memory is in this set."""
    there: set[int] = set()
    original = torch.Tensor.to

    def to(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if not any(isinstance(a, str | torch.device) and torch.device(a).type == "cuda" for a in arguments):
            return original(tensor, *arguments, **named)
        copy = tensor.clone()
        there.add(copy.untyped_storage().data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "to", to)
    return there


def test_epochs_are_compared_on_the_device(tmp_path: Path, moved: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import ctkd.train.loop as loop

    settings = {"train.keep": "best-adversarial", "train.warmup": 0.0, "train.ramp": 0.0, "bound.name": "adversarial"}
    usual = trainer(tmp_path / "cpu", **settings)
    run = trainer(tmp_path / "cuda", **settings, **{"train.device": "cuda"})
    rows = []
    for which in (usual, run):
        which.plugins.evaluation = which.plugins.attack
        which._prepare()
        which.step = 1
        which.module.eval()
        rows.append(which._metrics(0, {}))
    assert rows[0] == rows[1]
    assert 0 <= rows[0]["validation"]["adversarial_accuracy"] <= 1
    seen: list[tuple[bool, bool]] = []

    def spy(network: Any, split: Any, *rest: Any, **named: Any) -> Any:
        images = split.images.untyped_storage().data_ptr() in moved
        seen.append((images, split.labels.untyped_storage().data_ptr() in moved))
        return {} if len(seen) == 1 else 0.5

    monkeypatch.setattr(loop, "interval_report", spy)
    monkeypatch.setattr(loop, "adversarial_accuracy", spy)
    monkeypatch.setattr(loop.Network, "to", lambda *_: pytest.fail("the network was moved"))
    run._metrics(0, {})
    assert seen == [(True, True)] * 2


def test_a_teacher_is_evaluated_on_the_device(moved: set[int]) -> None:
    """Batch by batch, with the figures of the CPU."""
    from ctkd import faculty
    from ctkd.api import Split
    from ctkd.session import evaluation_attack
    from ctkd.teaching import Teacher
    from ctkd.train.finish import finalise

    config = resolve(PLAIN)
    data = load_data(config)
    torch.manual_seed(0)
    network = finalise(make("model", "mlp").build((1, 8, 8), 10), (1, 8, 8))
    seen: list[tuple[int, bool]] = []

    class Watched(Teacher):
        def to(self, device: str) -> Teacher:
            assert device == "cuda"
            return self

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((len(x), x.untyped_storage().data_ptr() in moved))
            return super().__call__(x)

    test = Split(data.test.images.repeat(2, 1, 1, 1), data.test.labels.repeat(2))
    rest = (test, 0.05, evaluation_attack(config.certify), 0, lambda: None)
    usual = faculty.evaluate(Teacher((network,)), "x", data, *rest)
    assert not moved
    there = faculty.evaluate(Watched((network,)), "x", data, *rest, device="cuda")
    assert there == usual
    assert 0 < usual["adversarial_accuracy"] < usual["natural_accuracy"] + 1e-9
    assert all(on_device for _, on_device in seen)
    assert {count for count, _ in seen} == {500, 220, 720, 180}
