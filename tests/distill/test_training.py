# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What objectives carry through a training: balances, learned maps, checkpoints; and what is refused before one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.api import Enclosure, Schedule, Split, TeacherOutputs
from ctkd.boxes import Box
from ctkd.config import resolve
from ctkd.errors import Interrupted
from ctkd.interrupt import StopRequest
from ctkd.progress import Silent
from ctkd.run import train
from ctkd.session import load_data
from ctkd.teaching import Teacher
from ctkd.train.finish import finalise
from ctkd.train.loop import Plugins, Trainer

from ..conftest import QUICK
from ..train.steps import make
from .helpers import lesson

# Balances of B-MTARD -----------------------------------------------------------------------------------------


def at(step: int) -> Schedule:
    return Schedule(eps=0.1, target=0.1, phase="full", epoch=0, step=step)


def uniform_or_sure(p: float) -> Tensor:
    """Logits of the prediction (p, 1 - p) for both of two samples."""
    return torch.tensor([[p, 1 - p]], dtype=torch.float64).log().expand(2, 2)


def two_class_point(p: float) -> Enclosure:
    logits = uniform_or_sure(p)
    x = logits.new_zeros(2, 1)
    return Enclosure(Box(x, x), "point", None, None, torch.zeros_like(logits), logits)


def balanced_step(objective: Any, step: int, adversarial: tuple[float, float], natural: tuple[float, float]) -> Tensor:
    """One call: (teacher's, student's) probability of the first class, at x_adv and at x."""
    ignored = uniform_or_sure(0.123)
    taught = (
        {
            "adversarial": TeacherOutputs(uniform_or_sure(adversarial[0]), None),
            "clean": TeacherOutputs(ignored, None),
        },
        {"adversarial": TeacherOutputs(ignored, None), "clean": TeacherOutputs(uniform_or_sure(natural[0]), None)},
    )
    points = {"clean": two_class_point(natural[1])}
    given = lesson(torch.zeros(2, dtype=torch.float64), taught, points, at(step))
    found: Tensor = objective.loss(two_class_point(adversarial[1]), given)
    return found


def test_the_loss_balance_over_three_steps_by_hand() -> None:
    """Teachers at (1/2, 1/2), students at p: KL = -log 2 - (log p + log(1 - p)) / 2."""
    objective = make("distill", "b-mtard", weight_rate=0.1, temperature_rate=0)
    # At p = 0.2, 0.1, 0.01: half the logarithm of 1 / (4 p (1 - p)).
    small, medium, large = (math.log(ratio) / 2 for ratio in (25 / 16, 25 / 9, 2500 / 99))
    # Step 1: both ratios are 1, so the goal is (1/2, 1/2) and the weights stay.
    found = balanced_step(objective, 5, (0.5, 0.1), (0.5, 0.2))
    torch.testing.assert_close(found[0].item(), 0.5 * medium + 0.5 * small)
    assert objective.state_dict()["weights"] == pytest.approx([0.5, 0.5])
    assert objective.state_dict()["first"] == pytest.approx([medium, small])
    # Step 2: ratios (large / medium, 1); the new weights are used at once.
    r = large / medium
    w1 = 0.5 - 0.1 * (0.5 - r / (r + 1))
    found = balanced_step(objective, 6, (0.5, 0.01), (0.5, 0.2))
    torch.testing.assert_close(found[0].item(), w1 * large + (1 - w1) * small)
    # Step 3: ratios (small / medium, medium / small).
    a, b = small / medium, medium / small
    w2 = w1 - 0.1 * (w1 - a / (a + b))
    found = balanced_step(objective, 7, (0.5, 0.2), (0.5, 0.1))
    torch.testing.assert_close(found[0].item(), w2 * small + (1 - w2) * medium)
    assert objective.state_dict()["weights"] == pytest.approx([w2, 1 - w2])
    assert w1 > 0.51 > 0.5 > w2


def test_the_entropy_balance_over_three_steps_by_hand() -> None:
    objective = make(
        "distill", "b-mtard", weight_rate=0, temperature_rate=0.25, natural_temperature=1.9, largest_temperature=2
    )

    def entropy_of(p: float, temperature: float) -> float:
        z = uniform_or_sure(p)[0] / temperature
        return float(-(z.softmax(0) * z.log_softmax(0)).sum())

    def kl(p: float, temperature: float, q: float) -> float:
        z = uniform_or_sure(p)[0] / temperature
        return float((z.softmax(0) * (z.log_softmax(0) - uniform_or_sure(q)[0])).sum())

    # Step 1: the natural teacher is sure, hence softened, up to the largest; the other cannot go below 1. The loss
    # still has the temperatures from before.
    assert entropy_of(0.6, 1) > entropy_of(0.99, 1.9)
    found = balanced_step(objective, 0, (0.6, 0.3), (0.99, 0.7))
    torch.testing.assert_close(found[0].item(), 0.5 * kl(0.6, 1, 0.3) + 0.5 * kl(0.99, 1.9, 0.7))
    assert objective.state_dict()["temperatures"] == [1.0, 2.0]
    # Step 2: now the adversarial one is.
    assert entropy_of(0.99, 1) < entropy_of(0.6, 2)
    found = balanced_step(objective, 1, (0.99, 0.3), (0.6, 0.7))
    torch.testing.assert_close(found[0].item(), 0.5 * kl(0.99, 1, 0.3) + 0.5 * kl(0.6, 2, 0.7))
    assert objective.state_dict()["temperatures"] == [1.25, 1.75]
    # Step 3: equal predictions, so the one of the smaller temperature is the surer.
    found = balanced_step(objective, 2, (0.9, 0.3), (0.9, 0.7))
    torch.testing.assert_close(found[0].item(), 0.5 * kl(0.9, 1.25, 0.3) + 0.5 * kl(0.9, 1.75, 0.7))
    assert objective.state_dict()["temperatures"] == [1.5, 1.5]
    assert objective.state_dict()["weights"] == [0.5, 0.5]


def test_both_balances_can_be_switched_off() -> None:
    objective = make("distill", "b-mtard", weight_rate=0, temperature_rate=0, adversarial_weight=0.3)
    for step in range(3):
        balanced_step(objective, step, (0.6, 0.1 * (step + 1)), (0.99, 0.7))
    state = objective.state_dict()
    assert (state["weights"], state["temperatures"]) == ([0.3, 0.7], [1.0, 1.0])


def test_a_second_call_in_a_step_uses_the_balance_and_leaves_it() -> None:
    objective = make("distill", "b-mtard", weight_rate=0.1, temperature_rate=0.5)
    balanced_step(objective, 0, (0.9, 0.4), (0.6, 0.3))
    first = balanced_step(objective, 1, (0.9, 0.1), (0.6, 0.3))
    state = objective.state_dict()
    again = balanced_step(objective, 1, (0.9, 0.1), (0.6, 0.3))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert objective.state_dict() == state
    balanced_step(objective, 2, (0.9, 0.1), (0.6, 0.3))
    assert objective.state_dict() != state


def test_a_first_loss_of_zero_does_not_break_the_balance() -> None:
    objective = make("distill", "b-mtard")
    for step, student in enumerate([0.5, 0.5, 0.4]):
        found = balanced_step(objective, step, (0.5, student), (0.5, student))
        assert found.isfinite().all()
    assert objective.state_dict()["weights"] == pytest.approx([0.5, 0.5])


def test_the_state_goes_through_json_and_back_exactly() -> None:
    steps = [((0.8, 0.1), (0.6, 0.2)), ((0.7, 0.3), (0.9, 0.4)), ((0.65, 0.2), (0.55, 0.1))]
    whole, before = make("distill", "b-mtard"), make("distill", "b-mtard")
    expected = [balanced_step(whole, i, *step) for i, step in enumerate(steps)]
    for i in (0, 1):
        balanced_step(before, i, *steps[i])
    after = make("distill", "b-mtard")
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.state_dict() == before.state_dict()
    assert torch.equal(balanced_step(after, 2, *steps[2]), expected[2])
    assert after.state_dict() == whole.state_dict()
    fresh = make("distill", "b-mtard")
    fresh.load_state_dict(json.loads(json.dumps(make("distill", "b-mtard").state_dict())))
    assert torch.equal(balanced_step(fresh, 0, *steps[0]), expected[0])


# Trainings, interrupted and resumed --------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    **QUICK,
    "train.lr": 1e-2,
    "train.warmup": 0.0,
    "train.ramp": 1.0,
    "train.batch_size": 32,
    "train.checkpoint_seconds": 1e9,
    "teacher.name": "pgd",
    "attack.steps": 1,
}


def frozen(seed: int, name: str, **options: Any) -> Teacher:
    torch.manual_seed(seed)
    return Teacher((finalise(make("model", name, **options).build((1, 8, 8), 10), (1, 8, 8)),))


def trainer(folder: Path, teachers: list[Teacher], stop: StopRequest | None = None, **settings: Any) -> Trainer:
    config = resolve({**SMALL, **settings})
    plugins = Plugins(
        config.bound.create(), config.distill.create(), config.attack.create(), config.propagation.create()
    )
    data = load_data(config)
    data = type(data)(
        data.name, Split(data.train.images[:200], data.train.labels[:200]), data.validation, data.test, data.classes
    )
    module = config.model.create().build(data.input_shape, data.classes)
    folder.mkdir(exist_ok=True)
    stop = StopRequest() if stop is None else stop
    return Trainer("student", "student", module, data, plugins, config.train, teachers, folder, Silent(), stop, "")


def interrupted(folder: Path, teachers: list[Teacher], at: int, **settings: Any) -> None:
    """A training that a signal stops after some steps."""
    stop = StopRequest()
    run = trainer(folder, teachers, stop, **settings)
    run._prepare()
    original = run._one_step

    def count(*arguments: Any, **named: Any) -> Any:
        if run.step == at - 1:
            stop.signal_number = 15
        return original(*arguments, **named)

    run._one_step = count  # type: ignore[method-assign]
    run._prepare = lambda: None  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.run()
    assert run.step == at


@pytest.mark.parametrize("moment", [3, 9])
def test_a_resumed_training_goes_on_with_the_balance(tmp_path: Path, moment: int) -> None:
    """Six steps an epoch: once within the first epoch, once within the second."""
    teachers = [frozen(1, "cnn-small"), frozen(2, "mlp")]
    settings = {"bound.name": "mtl-ibp", "distill.name": "b-mtard", "teacher.2.name": "natural"}
    whole = trainer(tmp_path / "whole", teachers, **settings)
    whole.run()
    interrupted(tmp_path / "parts", teachers, moment, **settings)
    rest = trainer(tmp_path / "parts", teachers, **settings)
    rest.run()
    state = whole.plugins.objective.state_dict()  # type: ignore[attr-defined]
    assert rest.plugins.objective.state_dict() == state  # type: ignore[attr-defined]
    assert state["step"] == 11
    assert state["weights"] != [0.5, 0.5]
    assert state["temperatures"] != [1.0, 1.0]
    for left, right in zip(whole.module.state_dict().values(), rest.module.state_dict().values(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("distill", ["features", "features+logits"])
def test_a_resumed_training_goes_on_with_the_map(tmp_path: Path, distill: str) -> None:
    teachers = [frozen(2, "mlp", widths=(40,))]
    settings = {"bound.name": "mtl-ibp", "distill.name": distill, "distill.map": "linear"}
    whole = trainer(tmp_path / "whole", teachers, **settings)
    whole.run()
    interrupted(tmp_path / "parts", teachers, 9, **settings)
    rest = trainer(tmp_path / "parts", teachers, **settings)
    rest._prepare()
    (kept,) = rest.learned
    rest.run()
    assert len(whole.learned) == 1
    assert kept.shape[0] != kept.shape[1]
    assert torch.equal(whole.learned[0], rest.learned[0])
    start = trainer(tmp_path / "start", teachers, **settings)
    start._prepare()
    assert not torch.allclose(start.learned[0], rest.learned[0], atol=1e-4)  # it learned
    for left, right in zip(whole.module.state_dict().values(), rest.module.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_two_epochs_with_a_teacher_of_another_width(tmp_path: Path) -> None:
    plain = {**QUICK, "train.lr": 1e-2, "train.eps": 0.05, "train.warmup": 0.0, "bound.name": "adversarial"}
    source, _ = train(
        settings={**plain, "teacher.name": "none", "model.name": "mlp", "model.widths": [40]},
        out=tmp_path / "teacher",
        certify=False,
    )
    taught = {**plain, "bound.name": "cc-ibp", "teacher.name": "file", "teacher.path": str(source.network)}
    refused = {**taught, "distill.name": "features"}
    with pytest.raises(Exception, match=r"compares \d+ features of the student with \d+ .* set distill.map=linear"):
        train(settings=refused, out=tmp_path / "refused", certify=False)
    folder, _ = train(
        settings={**taught, "distill.name": "features", "distill.map": "linear"}, out=tmp_path / "run", certify=False
    )
    rows = [row for row in folder.read_metrics() if row["network"] == "student"]
    assert len(rows) == 2
    assert rows[-1]["losses"]["distill/features/mixed"] > 0


# Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--bound", "mtl-ibp", "--distill", "b-mtard"],
            "distill.name=b-mtard learns from 2 teachers, found 1: repeat --teacher, such as --teacher pgd",
        ),
        (
            ["--bound", "mtl-ibp", "--distill", "iad-ii", "--teacher", "pgd"],
            "distill.name=iad-ii learns from 2 teachers, found 1: repeat --teacher",
        ),
        (
            ["--bound", "mtl-ibp", "--distill", "rslad", "--teacher", "pgd", "--teacher", "natural"],
            "distill.name=rslad learns from 1 teacher, found 2: give one",
        ),
        (
            ["--bound", "cc-ibp", "--distill", "ard"],
            "distill.name=ard reads point enclosures, but bound.name=cc-ibp takes its loss on mixed ones only",
        ),
        (
            ["--bound", "ibp", "--distill", "b-mtard", "--teacher", "pgd", "--teacher", "natural"],
            "distill.name=b-mtard reads point enclosures, but bound.name=ibp takes its loss on box ones only",
        ),
        (
            ["--bound", "adversarial", "--distill", "rslad", "--teacher", "none"],
            "distill.name=rslad needs a teacher, and teacher.name=none; choose a teacher",
        ),
        (
            [
                *["--bound", "mtl-ibp", "--distill", "logits", "--set", "distill.variant=natural"],
                "--set",
                "distill.teacher_input=adversarial",
            ],
            "distill.teacher_input=adversarial: must be 'clean' with variant = natural",
        ),
        (
            [
                *["--bound", "mtl-ibp", "--distill", "iad-ii", "--teacher", "pgd", "--teacher", "natural"],
                "--set",
                "distill.natural_weight=0.6",
            ],
            "distill: adversarial_weight = 0.5 and natural_weight = 0.6 add up to more than 1",
        ),
        (
            [
                *["--bound", "mtl-ibp", "--distill", "b-mtard", "--teacher", "pgd", "--teacher", "natural"],
                "--set",
                "distill.natural_temperature=20",
            ],
            "distill: a teacher starts with temperature 20, above largest_temperature = 10",
        ),
        (
            ["--bound", "trades", "--distill", "iad"],
            "distill.name=iad is defined at the adversarial point, and bound.name=trades takes its loss",
        ),
        (
            ["--bound", "trades", "--distill", "rslad"],
            "bound trades brings attack.objective=kl-student and distill rslad attack.objective=kl-teacher",
        ),
        (
            ["--bound", "taps", "--distill", "logits-box"],
            "bound.name=taps as set has a loss of its own there, which would be lost",
        ),
        (
            ["--bound", "crown-ibp", "--distill", "logits-box", "--set", "bound.loss_fusion=true"],
            "bound.name=crown-ibp as set has a loss of its own there, which would be lost",
        ),
        (
            ["--bound", "mtl-ibp", "--distill", "b-mtard", "--teacher", "natural", "--teacher", "natural"],
            "teacher.2 is the same as an earlier teacher (natural with equal options)",
        ),
        (["--eps", "0"], "distill.name=features acts where the radius is above 0, and train.eps=0 is natural training"),
        (
            ["--set", "attack.decay=0.1"],
            "attack: decay (below 1) and decay_at (parts of the steps) go together; set both or neither",
        ),
        (
            ["--bound", "mtl-ibp", "--distill", "ard", "--set", "distill.alpha=2"],
            "distill.alpha=2: must be less than or equal to 1",
        ),
    ],
)
def test_refused_in_one_line(
    ctkd_command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ctkd_command("train", *arguments)
    assert (code, out) == (2, "")
    (printed,) = err.splitlines()
    assert line in printed
    assert list(tmp_path.iterdir()) == []


def test_objectives_say_what_they_need() -> None:
    """Only what a variant uses is computed."""
    assert make("distill", "logits").student_points == frozenset()
    assert make("distill", "logits", variant="natural").student_points == {"clean"}
    assert make("distill", "ard").student_points == frozenset()
    assert make("distill", "ard", alpha=0.5).student_points == {"clean"}
    assert make("distill", "akd", teacher_input="adversarial").teacher_inputs == {"adversarial"}
    assert make("distill", "features+logits", teacher_input="adversarial").teacher_inputs == {"clean", "adversarial"}
