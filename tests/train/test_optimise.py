# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Optimisers, learning rates, the extra step of EDAC and warm starts, each against a literal reference."""

from __future__ import annotations

import copy
import dataclasses
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctkd.api import Data, Split
from ctkd.boxes import perturbation_box
from ctkd.config import resolve
from ctkd.errors import BadInput, Interrupted
from ctkd.interrupt import StopRequest
from ctkd.preflight import check_student
from ctkd.progress import Silent
from ctkd.propagate import trace
from ctkd.randomness import Noise
from ctkd.run import train
from ctkd.train.loop import Plugins, Trainer
from ctkd.train.options import TrainOptions
from ctkd.train.parts import check_whole
from ctkd.train.places import Places, check_still
from ctkd.train.schedule import learning_rate, schedule_at

from ..conftest import QUICK
from .steps import make

SETTINGS = {
    **QUICK,
    "teacher.name": "none",
    "bound.name": "mtl-ibp",
    "train.epochs": 3,
    "train.ramp": 1.0,
    "train.batch_size": 16,
    "model.channels": 2,
    "model.hidden": 8,
}


def small() -> Data:
    rng = torch.Generator().manual_seed(0)
    splits = [
        Split(torch.rand(n, 1, 8, 8, generator=rng), torch.randint(10, (n,), generator=rng)) for n in (70, 20, 20)
    ]
    return Data("digits", *splits, classes=10)


def trainer(folder: Path, **settings: Any) -> Trainer:
    config = resolve({**SETTINGS, **settings})
    plugins = Plugins(
        config.bound.create(), config.distill.create(), config.attack.create(), config.propagation.create()
    )
    folder.mkdir(exist_ok=True)
    data = small()
    module = config.model.create().build(data.input_shape, data.classes)
    return Trainer("student", "student", module, data, plugins, config.train, (), folder, Silent(), StopRequest(), "")


def prepared(folder: Path, **settings: Any) -> Trainer:
    run = trainer(folder, **settings)
    run._prepare()
    return run


def steps(run: Trainer, count: int) -> None:
    for i in range(count):
        rows = torch.arange(16) + i
        run._one_step(
            run.images[rows],
            run.labels[rows],
            Noise(0, "student-attack", 0, i, samples=rows),
            rows=rows,
            measure=False,
        )
        run.step += 1


# Optimisers ----------------------------------------------------------------------------------------------


def literal_sgd(parameters: list[Tensor], options: TrainOptions, velocity: dict[int, Tensor], rate: float) -> None:
    for i, p in enumerate(parameters):
        gradient = p.grad + options.weight_decay * p
        velocity[i] = options.momentum * velocity[i] + gradient if i in velocity else gradient.clone()
        p -= rate * (gradient + options.momentum * velocity[i] if options.nesterov else velocity[i])


def literal_adam(parameters: list[Tensor], options: TrainOptions, state: dict[int, Any], rate: float) -> None:
    for i, p in enumerate(parameters):
        gradient = p.grad
        if options.optimizer == "adam":
            gradient = gradient + options.weight_decay * p
        else:
            p *= 1 - rate * options.weight_decay
        t, m, v = state.get(i, (0, 0.0, 0.0))
        state[i] = t, m, v = t + 1, 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        p -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 1e-2},
        {"optimizer": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 1e-2},
        {"optimizer": "adam", "weight_decay": 1e-1},
        {"optimizer": "adamw", "weight_decay": 1e-1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_optimisers_do_what_they_are_called(tmp_path: Path, options: dict[str, Any]) -> None:
    run = prepared(tmp_path / "a", **{f"train.{key}": value for key, value in {"lr": 1e-2, **options}.items()})
    literal = literal_sgd if options["optimizer"] == "sgd" else literal_adam
    state: dict[int, Any] = {}
    original = run.optimizer.step

    def both(rate: float, bad: Tensor) -> None:
        copies = [p.detach().clone() for p in run.parameters]
        for own, p in zip(copies, run.parameters, strict=True):
            own.grad = p.grad
        literal(copies, run.options, state, rate)
        original(rate, bad)
        for own, p in zip(copies, run.parameters, strict=True):
            torch.testing.assert_close(p.detach(), own, rtol=1e-4, atol=1e-6)

    run.optimizer.step = both  # type: ignore[method-assign]
    steps(run, 4)


def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    run = prepared(tmp_path / "a", **{"train.optimizer": "sgd"})
    steps(run, 1)
    before = [p.detach().clone() for p in run.parameters]
    run.optimizer.step(0.1, torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_sgd_starts_without_momentum(tmp_path: Path) -> None:
    assert prepared(tmp_path / "a", **{"train.optimizer": "sgd"}).optimizer.state() == {}


# Learning rates ------------------------------------------------------------------------------------------


def pytorchs(make_schedule: Any, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the schedule steps without the optimiser
        schedule = make_schedule(optimizer)
        rates = []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()
    return rates


@pytest.mark.parametrize(("low", "rise", "cycles"), [(0.0, 0.5, 1), (0.1, 0.25, 2)])
def test_cyclic_rates_are_pytorchs(low: float, rise: float, cycles: int) -> None:
    total = 80
    options = TrainOptions(epochs=20, lr=0.4, lr_schedule="cyclic", lr_low=low, lr_rise=rise, lr_cycles=cycles)
    expected = pytorchs(
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(
            optimizer,
            base_lr=0.4 * low,
            max_lr=0.4,
            step_size_up=round(rise * total / cycles),
            step_size_down=round((1 - rise) * total / cycles),
        ),
        total,
    )
    assert [learning_rate(options, step, 4) for step in range(total)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("low", "rise"), [(0.04, 0.3), (0.1, 0.5)])
def test_one_cycle_is_pytorchs(low: float, rise: float) -> None:
    options = TrainOptions(epochs=20, lr=0.4, lr_schedule="one-cycle", lr_low=low, lr_rise=rise)
    expected = pytorchs(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.4, total_steps=80, pct_start=rise, div_factor=1 / low, final_div_factor=1e4
        ),
        79,
    )
    assert [learning_rate(options, step, 4) for step in range(79)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["milestones", "cyclic", "one-cycle"])
def test_rates_are_finite_in_the_shortest_training(schedule: Any) -> None:
    options = TrainOptions(epochs=1, warmup=0, ramp=0, lr_schedule=schedule)
    for per_epoch in (1, 2, 3):
        assert all(0 <= learning_rate(options, step, per_epoch) <= options.lr for step in range(per_epoch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True}, r"nesterov = true needs optimizer = sgd and a momentum above 0"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"train.momentum=1.0: must be less than 1"),
        ({"lr_schedule": "cyclic", "milestones": [1.0]}, r"lr_schedule = cyclic has no milestones"),
        ({"lr_cycles": 2}, r"lr_cycles = 2 needs lr_schedule = cyclic"),
        ({"lr_rise": 1.0}, r"train.lr_rise=1.0: must be less than 1"),
        ({"micro_batch": 0}, r"train.micro_batch=0: must be greater than or equal to 1"),
        ({"edac": -0.1}, r"train.edac=-0.1: must be greater than or equal to 0"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolve({f"train.{key}": value for key, value in settings.items()})


def test_another_schedule_replaces_the_shipped_milestones() -> None:
    config = resolve({"data.name": "mnist", "train.lr_schedule": "cyclic"})
    assert config.train.milestones == ()
    assert resolve({"teacher.lr_schedule": "cyclic", "teacher.lr_cycles": 2}).teachers[0].table()["lr_cycles"] == 2
    with pytest.raises(BadInput, match=r"teacher: nesterov = true needs optimizer = sgd"):
        resolve({"teacher.nesterov": True})


# EDAC ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 5])
def test_edac_is_two_steps(tmp_path: Path, size: int | None) -> None:
    """The public code's order: attack, a step on the spread of the logits, another attack, the usual step."""
    settings = {"bound.name": "adversarial", "train.warmup": 0.0, "train.ramp": 0.0, "train.lr": 1e-2}
    # Adam would blow up the rounding of gradients that are 0: of biases before batch norm.
    settings |= {"train.optimizer": "sgd", "train.momentum": 0.5, "train.clip": 0.05}  # far below any gradient
    more = {} if size is None else {"train.micro_batch": size}
    run = prepared(tmp_path / "a", **settings, **more, **{"train.edac": 0.3, "train.shi_weight": 0.0})
    module = copy.deepcopy(run.module)
    graph = trace(module, (1, 8, 8))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.5)
    attack = run.plugins.attack
    for i in range(3):
        rows = torch.arange(16) + i
        x, labels, noise = run.images[rows], run.labels[rows], Noise(0, "student-attack", 0, i, samples=rows)
        for extra in (True, False):
            clean = graph.clean_pass(x)
            network = graph.bind(clean.statistics)
            found = attack.perturb(network.detach(), x, labels, perturbation_box(x, run.options.eps), noise)
            logits = network(found)
            loss = 0.3 * logits.std(1).mean() if extra else torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            if not extra:
                torch.nn.utils.clip_grad_norm_(module.parameters(), run.options.clip)
            optimizer.step()
        steps_of_one(run, rows, i)
    for left, right in zip(run.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bound", "calls"), [("ibp", 1), ("mtl-ibp", 2)])
def test_edac_attacks_whether_the_method_does_or_not(tmp_path: Path, bound: str, calls: int) -> None:
    settings = {"bound.name": bound, "train.warmup": 0.0, "train.ramp": 0.0, "train.edac": 0.3}
    run = prepared(tmp_path / "a", **settings)
    original, found = run.plugins.attack.perturb, []

    def spy(*arguments: Any) -> Tensor:
        found.append(original(*arguments))
        return found[-1]

    run.plugins.attack.perturb = spy  # type: ignore[method-assign]
    steps(run, 1)
    assert len(found) == calls
    # The second attack begins anew, and the network is another one.
    assert calls == 1 or not torch.equal(found[0], found[1])


def steps_of_one(run: Trainer, rows: Tensor, i: int) -> None:
    noise = Noise(0, "student-attack", 0, i, samples=rows)
    run._one_step(run.images[rows], run.labels[rows], noise, rows=rows, measure=False)
    run.step += 1


def test_an_extra_step_that_is_not_finite_is_named(tmp_path: Path) -> None:
    run = prepared(tmp_path / "a", **{"train.edac": 1.0})
    with torch.no_grad():
        run.parameters[0].fill_(torch.inf)
    done = run._one_step(
        run.images[:16], run.labels[:16], Noise(0, "x", samples=torch.arange(16)), rows=None, measure=False
    )
    assert done.names[0] == "the extra step of train.edac"
    assert done.flags[0]
    assert len(done.names) == len(done.flags)


# Warm starts ---------------------------------------------------------------------------------------------


def test_places_grow_with_the_box() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    places = Places.of(x)
    first, second = perturbation_box(x[:2], 0.1), perturbation_box(x, 0.2)
    corner = torch.stack([first.lower[0], first.upper[1]])
    places.at(torch.tensor([2, 0])).keep(corner, first)
    found = places.at(torch.tensor([0, 1, 2])).inside(second)
    assert torch.equal(found[0], second.upper[0])
    assert found[1].isnan().all()
    assert torch.equal(found[2], second.lower[2])


@given(st.integers(0, 1000), st.floats(1e-3, 0.3), st.floats(1e-3, 0.3))
def test_a_place_is_kept_to_half_a_step_of_a_byte(seed: int, eps: float, later: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, part = torch.rand(4, 1, 3, 3, generator=rng).double(), torch.rand(4, 1, 3, 3, generator=rng).double()
    places, box, next_box = Places.of(x), perturbation_box(x, eps), perturbation_box(x, later)
    part[0], part[1] = 0, 1
    places.at(torch.arange(4)).keep(box.lower + part * (box.upper - box.lower), box)
    found, width = places.at(torch.arange(4)).inside(next_box), next_box.upper - next_box.lower
    assert ((found - (next_box.lower + part * width)).abs() <= width / 510 + 1e-12).all()
    assert ((found >= next_box.lower) & (found <= next_box.upper)).all()
    assert torch.equal(found[0], next_box.lower[0])
    assert torch.equal(found[1], next_box.upper[1])


def test_places_in_a_box_without_width() -> None:
    x = torch.full((1, 1, 2, 2), 0.25)
    places, box = Places.of(x), perturbation_box(x.double(), 0.0)
    places.at(torch.tensor([0])).keep(x.double(), box)
    assert torch.equal(places.at(torch.tensor([0])).inside(box), x.double())


@pytest.mark.parametrize("size", [None, 5])
def test_the_next_epoch_begins_where_the_last_one_ended(tmp_path: Path, size: int | None) -> None:
    more = {} if size is None else {"train.micro_batch": size}
    settings = {"train.warmup": 0.0, "train.ramp": 0.0, "attack.steps": 1, "attack.restarts": 2, **more}
    run = prepared(tmp_path / "a", **settings, **{"attack.warm_start": True})
    found: list[Tensor] = []
    starts: list[Tensor] = []
    original = run.plugins.attack.perturb

    def spy(*arguments: Any, start: Tensor) -> Tensor:
        starts.append(start)
        found.append(original(*arguments, start=start))
        return found[-1]

    run.plugins.attack.perturb = spy  # type: ignore[method-assign]
    order = torch.tensor([3, 40, 17, *range(50, 63)])
    for rows in (order, torch.arange(16), order.flip(0)):
        steps_of_one(run, rows, 0)
    parts = [torch.cat(tensors).split(16) for tensors in (starts, found)]
    begun, ended = parts
    assert begun[0].isnan().all()
    known = torch.isin(torch.arange(16), order)
    assert torch.equal(~begun[1].isnan().flatten(1).any(1), known)
    assert known.sum() == 1
    width = 2 * run.options.eps
    torch.testing.assert_close(begun[2].flip(0)[1:], ended[0][1:], rtol=0, atol=width / 255)
    torch.testing.assert_close(begun[2].flip(0)[0], ended[1][3], rtol=0, atol=width / 255)


def test_pgd_begins_at_the_start_it_is_given() -> None:
    x = torch.rand(4, 1, 8, 8)
    box = perturbation_box(x, 0.1)
    start = box.upper.clone()
    start[1] = torch.nan
    seen: list[Tensor] = []

    def logits(point: Tensor) -> Tensor:
        seen.append(point.detach())
        return point.flatten(1)[:, :3]

    attack = make("attack", "pgd", steps=1, restarts=2, warm_start=True)
    noise = Noise(0, "test", samples=torch.arange(4))
    expected = box.lower + Noise(0, "test", samples=torch.arange(4)).uniform(x) * (box.upper - box.lower)
    attack.perturb(logits, x, torch.zeros(4, dtype=torch.int64), box, noise, start=start)
    assert torch.equal(seen[0][[0, 2, 3]], start[[0, 2, 3]])
    torch.testing.assert_close(seen[0][1], expected[1])
    assert not (seen[2] == start).flatten(1).all(1).any()  # other restarts begin anywhere


@pytest.mark.parametrize(
    ("settings", "who"),
    [({"attack.warm_start": True}, "attack"), ({"teacher.name": "pgd", "teacher.warm_start": True}, "teacher")],
)
def test_augmented_images_are_refused_before_anything_runs(tmp_path: Path, settings: dict[str, Any], who: str) -> None:
    data = dataclasses.replace(small(), augment=lambda x, noise: x)
    with pytest.raises(BadInput, match=rf"{who}.warm_start=true: data set 'digits' changes its images at random"):
        check_student(resolve({**SETTINGS, "certify.samples": 1, **settings}), data, Silent())
    run = trainer(tmp_path / "a", **{"attack.warm_start": True})
    run.data = data
    with pytest.raises(BadInput, match=r"warm_start=true \(student\): data set 'digits' changes its images at random"):
        run.run()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctkd.train.parts.world", lambda: 2)
    monkeypatch.setattr("ctkd.train.places.world", lambda: 2)
    with pytest.raises(BadInput, match=r"train.micro_batch=4 works in one process, and 2 share the batch already"):
        check_whole(TrainOptions(micro_batch=4))
    with pytest.raises(BadInput, match=r"attack.warm_start=true works in one process, not in 2"):
        check_still(small(), "attack.warm_start=true")


# Resuming ------------------------------------------------------------------------------------------------

FEATURES: list[dict[str, Any]] = [
    {"train.optimizer": "sgd", "train.lr": 1e-2, "train.lr_schedule": "cyclic", "train.nesterov": True},
    {"train.optimizer": "adamw", "train.weight_decay": 1e-2, "train.lr_schedule": "one-cycle", "train.edac": 0.2},
    {"attack.warm_start": True, "train.micro_batch": 5, "train.edac": 0.1},
]


@pytest.mark.parametrize("settings", FEATURES, ids=lambda settings: "-".join(settings))
def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = trainer(tmp_path / "whole", **settings).run()
    for moment in (1, 6, 3):
        run = trainer(tmp_path / "parts", **settings)
        original, count = run._accumulate, iter(range(100))

        def stop(
            terms: Any, run: Trainer = run, original: Any = original, count: Any = count, at: int = moment
        ) -> None:
            original(terms)
            if next(count) == at - 1:
                run.stop.signal_number = signal.SIGINT

        run._accumulate = stop  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            run.run()
    assert trainer(tmp_path / "parts", **settings).run().sha256() == whole.sha256()
    assert trainer(tmp_path / "other").run().sha256() != whole.sha256()


def test_all_of_it_in_a_run(tmp_path: Path) -> None:
    settings = {**SETTINGS, **FEATURES[0], "attack.warm_start": True, "train.micro_batch": 64, "train.batch_size": 256}
    teacher = {"teacher.name": "pgd", "teacher.optimizer": "sgd", "teacher.edac": 0.1, "teacher.warm_start": True}
    more = {
        "teacher.epochs": 3,
        "teacher.lr": 0.1,
        "teacher.ramp": 0.5,
        "teacher.lr_schedule": "cyclic",
        "teacher.steps": 1,
    }
    _, summary = train(settings={**settings, **teacher, **more}, out=tmp_path / "run", certify=False)
    assert summary["natural_accuracy"] > 0


def test_the_schedule_of_the_radius_is_untouched() -> None:
    options = TrainOptions(epochs=4, warmup=1, ramp=2)
    assert [schedule_at(options, step, 2).phase for step in (0, 3, 7)] == ["warmup", "ramp", "full"]
