# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Stages that search: what they decide, where they end, and what the cascade makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from ctkd.accuracy import smallest_margin
from ctkd.api import Found, Split
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.alpha_crown import AlphaCrownOptions, AlphaCrownStage
from ctkd.certify.cascade import Cascade
from ctkd.certify.complete import CompleteOptions, CompleteStage
from ctkd.certify.proofs import ProofFolder
from ctkd.certify.stages import CrownStage
from ctkd.certify.store import Store
from ctkd.errors import Contradiction, Interrupted, RunFailed
from ctkd.interrupt import StopRequest
from ctkd.options import Options
from ctkd.plugins import create, options_class, registry
from ctkd.progress import Silent
from ctkd.propagate import Network, margins_of
from ctkd.train.finish import finalise

from .nets import NAMES, network, samples, wide


def complete(**options: Any) -> CompleteStage:
    return CompleteStage(CompleteOptions(timeout=60, **options))


def weak_attack() -> Any:
    """So that the stage has something to find."""
    entry = registry().find("attack", "pgd")
    return create(entry, options_class(entry)(steps=1))


def run(
    net: Network,
    data: Split,
    eps: float,
    stages: dict[str, Any],
    path: Path,
    stop: StopRequest | None = None,
    batch: int = 50,
) -> tuple[Any, list[Any]]:
    with Store(path) as store:
        settings = store.settings("net", eps, "test", {})
        every = range(len(data))
        stop = StopRequest() if stop is None else stop  # one without a signal is false
        result = Cascade(net, eps, weak_attack(), stages, 0).run(
            data, every, store, settings, batch, Silent(), stop, "Go on"
        )
        return result, store.rows(settings, every)


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_decided(tmp_path: Path, name: str) -> None:
    net = network(name, 1)
    data, eps = Split(*samples(net, 30, 2)), 0.12
    stages = {"crown": CrownStage(Options()), "complete": complete()}
    result, rows = run(net, data, eps, stages, tmp_path / "r.sqlite")
    assert result.undecided == 0
    assert result.stages.get("complete", 0) > 0
    assert any(row.status == "broken" and row.stage == "complete" for row in rows)
    for row in rows:
        assert (row.attack_margin <= 0) == (row.status == "broken")
        assert row.status == "broken" or (row.lower_margin or 0) > 0


def least_by_enumeration(net: Network, box: Box, label: int) -> float:
    """The exact smallest margin of a network with one hidden layer: a linear program for each pattern."""
    hidden, last = net.nodes[2].op, net.nodes[4].op
    w, b = hidden.weight.numpy(), hidden.bias.numpy()  # type: ignore[union-attr]
    least = float("inf")
    bounds = list(zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True))
    for pattern in itertools.product((0.0, 1.0), repeat=len(b)):
        on = torch.tensor(pattern, dtype=torch.float64).numpy()
        signs = 2 * on - 1
        for rival in set(range(net.classes)) - {label}:
            row = (last.weight[label] - last.weight[rival]).numpy()  # type: ignore[union-attr]
            constant = float(last.bias[label] - last.bias[rival]) + float(row @ (on * b))  # type: ignore[union-attr]
            found = linprog((row * on) @ w, A_ub=-signs[:, None] * w, b_ub=signs * b, bounds=bounds, method="highs")
            if found.status == 0:
                least = min(least, found.fun + constant)
    return least


def test_it_agrees_with_an_exhaustive_search() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = finalise(nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)), (1, 4, 4))
    x, labels = samples(net, 12, 3)
    seen = set()
    for k, eps in itertools.product(range(12), (0.05, 0.4)):
        big, box = wide(net, x[k : k + 1], eps)
        exact = least_by_enumeration(big, box, int(labels[k]))
        found = complete().search(big, box, labels[k : k + 1], lambda: False)
        lower = float(smallest_margin(found.margins, labels[k : k + 1]))
        assert lower <= exact + 1e-9
        assert (found.proofs[0] is not None) == (exact > 1e-5)
        assert found.points is not None
        replayed = float(smallest_margin(margins_of(net(found.points), labels[k : k + 1]), labels[k : k + 1]))
        assert (replayed <= 0) == (exact <= 0)
        seen.add(exact > 0)
    assert seen == {True, False}


def test_alpha_crown_is_between_crown_and_the_truth() -> None:
    gains = 0
    for name in NAMES:
        net = network(name, 2)
        x, labels = samples(net, 20, 5)
        big, box = wide(net, x, 0.1)
        with torch.no_grad():
            crown = CrownStage(Options()).margins(big, box, labels)
            better = AlphaCrownStage(AlphaCrownOptions()).margins(big, box, labels)
            truth = complete().margins(big, box, labels)
        assert bool((better >= crown - 1e-12).all())
        proved = smallest_margin(better, labels) > 0
        gains += int(proved.sum()) - int((smallest_margin(crown, labels) > 0).sum())
        assert bool((smallest_margin(truth, labels)[proved] > 0).all())
    assert gains > 0


def test_limits_leave_sound_bounds_and_undecided_samples(tmp_path: Path) -> None:
    net = network("mlp", 1)
    data = Split(*samples(net, 30, 2))
    crown, rows = run(net, data, 0.12, {"crown": CrownStage(Options())}, tmp_path / "crown.sqlite")
    for number, options in enumerate(({"nodes": 1}, {"timeout": 1e-9})):
        stage = CompleteStage(CompleteOptions(root_iterations=1, attack_starts=1, attack_steps=1, **options))
        result, limited = run(net, data, 0.12, {"complete": stage}, tmp_path / f"{number}.sqlite")
        assert result.undecided > 0
        assert result.certified >= crown.certified  # the root bound is CROWN's
        assert all(row.stage == "" for row in limited if row.status == "undecided")
    assert len(rows) == 30


def test_equal_searches_are_equal() -> None:
    net = network("conv", 3)
    x, labels = samples(net, 6, 1)
    big, box = wide(net, x, 0.15)
    first, second = (complete(batch_size=8).search(big, box, labels, lambda: False) for _ in range(2))
    assert first.margins.equal(second.margins)
    assert first.points is not None
    assert second.points is not None
    assert first.points.equal(second.points)


def test_max_pooling_and_tanh_are_bounded_without_being_split(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5), nn.Tanh()
        net = finalise(nn.Sequential(*layers, nn.Linear(5, 3)), (1, 4, 4))
    data = Split(*samples(net, 12, 0))
    crown = run(net, data, 0.05, {"crown": CrownStage(Options())}, tmp_path / "0.sqlite")[0]
    whole = run(net, data, 0.05, {"complete": complete(nodes=200)}, tmp_path / "1.sqlite")[0]
    assert crown.certified <= whole.certified
    assert whole.certified + whole.broken + whole.undecided == 12


def test_a_network_without_rectifiers(tmp_path: Path) -> None:
    net = finalise(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4))
    for stage in (complete(), AlphaCrownStage(AlphaCrownOptions())):
        result, _ = run(net, Split(*samples(net, 10, 0)), 0.02, {"s": stage}, tmp_path / f"{type(stage)}.sqlite")
        assert result.certified > 0


# What the cascade makes of a stage that searches


class Scripted:
    """Answers as it is told; margins of -1 otherwise."""

    def __init__(self, answer: Callable[[Network, Box, Tensor], Found], at_once: int = 1) -> None:
        self.answer, self.at_once, self.calls = answer, at_once, 0

    def margins(self, network: Network, box: Box, labels: Tensor) -> Tensor:
        raise AssertionError("the cascade calls search")

    def search(self, network: Network, box: Box, labels: Tensor, stop: Callable[[], bool]) -> Found:
        self.calls += 1
        return self.answer(network, box, labels)


def margins(value: float, labels: Tensor, classes: int = 3) -> Tensor:
    return torch.full((len(labels), classes), value, dtype=torch.float64).scatter(1, labels[:, None], 0.0)


@pytest.fixture
def case() -> tuple[Network, Split]:
    net = network("mlp", 1)
    return net, Split(*samples(net, 12, 2))


def test_a_point_counts_only_as_far_as_it_is_inside_the_box(tmp_path: Path, case: tuple[Network, Split]) -> None:
    net, data = case
    eps = 0.01

    def far_away(_: Network, box: Box, labels: Tensor) -> Found:
        return Found(margins(-1, labels), torch.full_like(box.lower, 50.0))

    _, rows = run(net, data, eps, {"far": Scripted(far_away)}, tmp_path / "r.sqlite")
    box = perturbation_box(data.images, eps)
    far, corner = (
        smallest_margin(margins_of(net(x), data.labels), data.labels)
        for x in (torch.full_like(box.upper, 50), box.upper)
    )
    assert any(row.status == "undecided" and far[row.sample] <= 0 for row in rows)
    for row in rows:
        assert row.attack_margin <= float(corner[row.sample]) + 1e-6
        assert row.status == ("broken" if row.attack_margin <= 0 else "undecided")


def test_a_stage_that_certifies_what_it_breaks_is_a_contradiction(tmp_path: Path, case: tuple[Network, Split]) -> None:
    net, data = case

    def both(_: Network, box: Box, labels: Tensor) -> Found:
        worst = complete().search(net.to(torch.float64), box, labels, lambda: False)
        return Found(margins(1, labels), worst.points)

    with pytest.raises(Contradiction, match=r"certified by stage 'both' .* and broken"):
        run(net, data, 0.5, {"both": Scripted(both)}, tmp_path / "r.sqlite")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n, b, y: Found(margins(1, y).float()), r"returned torch.float32 .* it must return torch.float64"),
        (lambda n, b, y: Found(margins(-1, y), torch.zeros(1, 2)), r"returned a tensor of shape \(1, 2\)"),
        (lambda n, b, y: Found(margins(-1, y), b.lower * torch.nan), "returned NaN"),
        (lambda n, b, y: Found(margins(1, y), proofs=[None, None, None]), "returned 3 proofs for 1 samples"),
        (lambda n, b, y: margins(1, y), "returned Tensor; search must return ctkd.api.Found"),
    ],
)
def test_nonsense_fails_the_run(tmp_path: Path, case: tuple[Network, Split], answer: Any, words: str) -> None:
    with pytest.raises(RunFailed, match=words):
        run(*case, 0.001, {"s": Scripted(answer)}, tmp_path / "r.sqlite")


def test_samples_come_in_the_portions_that_a_stage_asks_for(tmp_path: Path, case: tuple[Network, Split]) -> None:
    stage = Scripted(lambda n, b, y: Found(margins(1, y)), at_once=5)
    result, _ = run(*case, 0.001, {"s": stage}, tmp_path / "r.sqlite")
    assert (result.certified, stage.calls) == (12, 3)


def test_where_proofs_are_wanted_a_bound_without_one_certifies_nothing(
    tmp_path: Path, case: tuple[Network, Split]
) -> None:
    net, data = case
    proofs = itertools.cycle(([None], [{"x": torch.zeros(1)}], []))
    stage = Scripted(lambda n, b, y: Found(margins(1, y), proofs=next(proofs)))
    folder = ProofFolder(tmp_path / "proofs", {})
    with Store(tmp_path / "r.sqlite") as store:
        key = store.settings("net", 0.001, "test", {})
        cascade = Cascade(net, 0.001, weak_attack(), {"s": stage}, 0)
        cascade.run(data, range(12), store, key, 50, Silent(), StopRequest(), "Go on", folder)
        rows = store.rows(key, range(12))
    assert [row.status == "certified" for row in rows] == [False, True, False] * 4
    assert all(folder.file(row.sample).exists() == (row.status == "certified") for row in rows)


def test_a_signal_loses_no_finished_sample(tmp_path: Path, case: tuple[Network, Split]) -> None:
    """It comes during the third search, which is given up; the next command does that one and the rest."""
    stop = StopRequest()

    def answer(_: Network, box: Box, labels: Tensor) -> Found:
        if stage.calls == 3:
            stop.signal_number = 15
            return Found(margins(-1, labels))  # cut short
        return Found(margins(1 if stage.calls % 2 else -1, labels))

    stage = Scripted(answer)
    path = tmp_path / "r.sqlite"
    with pytest.raises(Interrupted, match="finished samples are stored"):
        run(*case, 0.001, {"s": stage}, path, stop)
    with Store(path) as store:
        assert [row.status for row in store.rows(1, range(12))] == ["certified", "undecided"]
    result, _ = run(*case, 0.001, {"s": Scripted(lambda n, b, y: Found(margins(1, y)))}, path)
    assert (result.certified, result.undecided) == (11, 1)


def test_a_signal_between_searches_is_not_missed(tmp_path: Path, case: tuple[Network, Split]) -> None:
    stop = StopRequest()

    def answer(_: Network, box: Box, labels: Tensor) -> Found:
        stop.signal_number = 2 if stage.calls == 2 else None
        return Found(margins(1, labels))

    stage = Scripted(answer)
    with pytest.raises(Interrupted):
        run(*case, 0.001, {"s": stage, "never": Scripted(answer)}, tmp_path / "r.sqlite", stop)
    assert stage.calls == 2


class Late(StopRequest):
    """A signal that comes right after core looked for one, while a batch has searches left."""

    asked = 0

    def __bool__(self) -> bool:
        self.asked += 1
        if self.asked == 5:
            self.signal_number = 2
        return super().__bool__()


def test_a_signal_at_the_worst_moment_is_not_missed(tmp_path: Path, case: tuple[Network, Split]) -> None:
    stage = Scripted(lambda n, b, y: Found(margins(1, y)))
    with pytest.raises(Interrupted):
        run(*case, 0.001, {"s": stage}, tmp_path / "r.sqlite", Late())
    assert stage.calls < 12


def test_a_leaf_that_is_not_solved_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("mlp", 1)
    x, labels = samples(net, 30, 2)
    big, box = wide(net, x, 0.12)
    stage = complete(iterations=1, root_iterations=1, batch_size=8)
    solved = stage.search(big, box, labels, lambda: False)
    monkeypatch.setattr("ctkd.certify.bab.leaf.solve", lambda problem, part, seconds: (part, None))
    found = stage.search(big, box, labels, lambda: False)
    lost = [k for k in range(30) if solved.proofs[k] is not None and found.proofs[k] is None]
    assert lost
    assert bool((smallest_margin(found.margins, labels)[lost] <= 1e-3).all())


def test_the_real_search_ends_when_it_is_told_to() -> None:
    net = network("residual", 1)
    x, labels = samples(net, 1, 2)
    big, box = wide(net, x, 0.3)
    asked = itertools.count()
    found = complete(attack_starts=1, attack_steps=1).search(big, box, labels, lambda: next(asked) > 3)
    assert next(asked) < 20
    assert bool((found.margins <= margins_of(big(box.lower), labels) + 1e-9).all())
