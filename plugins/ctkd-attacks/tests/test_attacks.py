# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""AutoAttack and Auto-PGD: conformance, strength, the box, randomness, and what the authors' code cannot do itself."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctkd_attacks.attacks import APGD, AutoAttack
from ctkd_attacks.options import APGDOptions, AutoAttackOptions, Part, standard
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ctkd.api import Noise
from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput
from ctkd.propagate import Network, trace
from ctkd.testing import conformance

QUICK: dict[str, Any] = {"steps": 5, "queries": 20, "targets": 2}
Attack = AutoAttack | APGD
ATTACKS: list[Attack] = [
    AutoAttack(AutoAttackOptions(**QUICK)),
    APGD(APGDOptions()),
    APGD(APGDOptions(loss="dlr", restarts=2)),
]

test_autoattack_conforms = conformance("attack", "autoattack", options=QUICK)
test_apgd_conforms = conformance("attack", "apgd")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(seed: int = 0) -> Noise:
    return Noise(seed, "test", samples=torch.arange(10))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def margins(logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        values = logits(x)
    others = values.scatter(1, labels[:, None], -torch.inf).amax(1)
    return values.gather(1, labels[:, None]).squeeze(1) - others


def small_module(classes: int, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        size = int(np.prod(shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, classes))


@pytest.fixture(scope="module")
def digits() -> tuple[Network, Tensor, Tensor]:
    """A network trained without any attack, and images that it gets right."""
    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(found.target)
    module = small_module(10)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(module(images[:1000]), labels[:1000])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network = trace(module.eval(), (1, 8, 8)).bind().detach()
    x, y = images[1000:1060], labels[1000:1060]
    right = margins(network, x, y) > 0
    return network, x[right], y[right]


def one_step(logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """PGD with one step to a corner of the box."""
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits(point), labels), point)
    return perturbation_box(x, eps).clamp(x + eps * gradient.sign())


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("eps", [0.02, 0.05])
def test_stronger_than_one_step_and_inside_the_box(
    digits: tuple[Network, Tensor, Tensor], attack: Attack, eps: float
) -> None:
    network, x, labels = digits
    box = perturbation_box(x, eps)
    found = attack.perturb(network, x, labels, box, noise())
    assert ((found >= box.lower) & (found <= box.upper)).all()
    broken = margins(network, found, labels) <= 0
    weak = margins(network, one_step(network, x, labels, eps), labels) <= 0
    assert broken.sum() >= weak.sum() > 0
    assert not broken.all()  # or the comparison says nothing


@pytest.mark.parametrize("part", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
def test_every_part_breaks_something(digits: tuple[Network, Tensor, Tensor], part: Part) -> None:
    network, x, labels = digits
    attack = AutoAttack(AutoAttackOptions(parts=(part,), steps=10, targets=2, queries=50))
    found = attack.perturb(network, x, labels, perturbation_box(x, 0.06), noise())
    margin = margins(network, found, labels)
    assert (margin <= 0).any()
    assert (margin <= margins(network, x, labels)).all()


def test_the_next_part_sees_only_what_is_left(digits: tuple[Network, Tensor, Tensor]) -> None:
    network, x, labels = digits
    box = perturbation_box(x, 0.06)
    first = AutoAttack(AutoAttackOptions(parts=("apgd-ce",), steps=5)).perturb(network, x, labels, box, noise())
    both = AutoAttack(AutoAttackOptions(parts=("apgd-ce", "square"), steps=5, queries=20))
    found = both.perturb(network, x, labels, box, noise())
    broken = margins(network, first, labels) <= 0
    assert broken.any()
    assert torch.equal(found[broken], first[broken])
    assert (margins(network, found, labels) <= margins(network, first, labels)).all()


def global_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), pickle.dumps(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("attack", ATTACKS)
def test_all_randomness_comes_from_the_noise(digits: tuple[Network, Tensor, Tensor], attack: Attack) -> None:
    network, x, labels = digits
    box = perturbation_box(x, 0.05)
    before = global_states()
    found = attack.perturb(network, x, labels, box, noise(1))
    assert global_states() == before
    torch.rand(3)  # another global state
    assert torch.equal(found, attack.perturb(network, x, labels, box, noise(1)))
    assert not torch.equal(found, attack.perturb(network, x, labels, box, noise(2)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_float64(digits: tuple[Network, Tensor, Tensor], attack: Attack) -> None:
    network, x, labels = digits
    wide = x.double()
    box = perturbation_box(wide, 0.05)
    found = attack.perturb(network.to(torch.float64), wide, labels, box, noise())
    assert found.dtype == torch.float64
    assert ((found >= box.lower) & (found <= box.upper)).all()
    assert (margins(network.to(torch.float64), found, labels) <= 0).any()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_radius_of_zero_gives_the_images_back(digits: tuple[Network, Tensor, Tensor], attack: Attack) -> None:
    network, x, labels = digits
    assert torch.equal(attack.perturb(network, x, labels, perturbation_box(x, 0), noise()), x)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("count", [0, 1])
def test_few_samples(digits: tuple[Network, Tensor, Tensor], attack: Attack, count: int) -> None:
    network, x, labels = digits
    box = perturbation_box(x[:count], 0.02)
    assert attack.perturb(network, x[:count], labels[:count], box, noise()).shape == x[:count].shape


@pytest.mark.parametrize("attack", ATTACKS)
def test_misclassified_samples_stay_misclassified(digits: tuple[Network, Tensor, Tensor], attack: Attack) -> None:
    network, x, labels = digits
    wrong = (labels + 1) % 10
    mixed = torch.where(torch.arange(len(x)) % 2 == 0, labels, wrong)
    found = attack.perturb(network, x, mixed, perturbation_box(x, 0.01), noise())
    assert (margins(network, found, mixed) <= margins(network, x, mixed)).all()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_inputs_that_are_no_images(attack: Attack, shape: tuple[int, ...]) -> None:
    module = small_module(4, shape)
    x = torch.rand(6, *shape, generator=seeded())
    labels = module(x).argmax(1)
    box = perturbation_box(x, 0.3)
    found = attack.perturb(module, x, labels, box, noise())
    assert found.shape == x.shape
    assert ((found >= box.lower) & (found <= box.upper)).all()


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        (2, ("apgd-ce", "fab-t", "square")),
        (3, ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        (4, ("apgd-ce", "apgd-t", "fab-t", "square")),
    ],
)
def test_few_classes(classes: int, parts: tuple[str, ...]) -> None:
    assert standard(classes) == parts
    module = small_module(classes)
    x = torch.rand(8, 1, 8, 8, generator=seeded())
    labels = module(x).argmax(1)
    found = ATTACKS[0].perturb(module, x, labels, perturbation_box(x, 0.3), noise())
    assert (margins(module, found, labels) <= 0).any()


def test_a_loss_that_is_undefined_is_refused_in_one_line() -> None:
    module, x, labels = small_module(3), torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    targeted = AutoAttack(AutoAttackOptions(parts=("apgd-ce", "apgd-t")))
    message = r"autoattack: part apgd-t needs at least 4 classes, and there are 3: use apgd-ce, fab-t or square"
    with pytest.raises(BadInput, match=message):
        targeted.perturb(module, x, labels, perturbation_box(x, 0.1), noise())
    with pytest.raises(
        BadInput, match=r"apgd: loss=dlr needs at least 3 classes, and there are 2: use loss=cross-entropy"
    ):
        ATTACKS[2].perturb(small_module(2), x, labels, perturbation_box(x, 0.1), noise())


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_gradients_that_say_nothing_give_no_point_that_is_not_a_number(attack: Attack, slope: float) -> None:
    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, points: Tensor) -> Tensor:
            ctx.shape = points.shape
            return points.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([2.0, 3.0, 1.0, 0.0])

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return torch.full(ctx.shape, slope)

    x = torch.rand(4, 1, 8, 8, generator=seeded())
    labels = torch.ones(4, dtype=torch.int64)
    found = attack.perturb(Flat.apply, x, labels, perturbation_box(x, 0.2), noise())
    assert found.isfinite().all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_logits_are_not_written_to(digits: tuple[Network, Tensor, Tensor], attack: Attack) -> None:
    """Square does, in the authors' code."""
    network, x, labels = digits
    kept: list[tuple[Tensor, Tensor]] = []

    def watched(points: Tensor) -> Tensor:
        logits = network(points)
        kept.append((logits, logits.detach().clone()))
        return logits

    attack.perturb(watched, x, labels, perturbation_box(x, 0.02), noise())
    assert all(torch.equal(logits, copy) for logits, copy in kept)


def test_a_point_that_is_not_a_number_breaks_nothing(
    digits: tuple[Network, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, labels = digits
    nowhere = torch.full_like(x, torch.nan)
    found = (nowhere, None, None, nowhere)
    monkeypatch.setattr("ctkd_attacks.attacks.APGDAttack.attack_single_run", lambda self, x, labels: found)
    assert torch.equal(ATTACKS[1].perturb(network, x, labels, perturbation_box(x, 0.1), noise()), x)


def test_nothing_is_searched_where_all_is_broken(digits: tuple[Network, Tensor, Tensor]) -> None:
    network, x, labels = digits
    calls: list[int] = []

    def counted(points: Tensor) -> Tensor:
        calls.append(len(points))
        return network(points)

    wrong = (labels + 1) % 10
    found = ATTACKS[0].perturb(counted, x, wrong, perturbation_box(x, 0.1), noise())
    assert torch.equal(found, x)
    assert len(calls) <= 2


@pytest.mark.parametrize("attack", ATTACKS)
def test_parameters_get_no_gradient(attack: Attack) -> None:
    module = small_module(10).train()
    x = torch.rand(4, 1, 8, 8, generator=seeded())
    labels = module(x).argmax(1)
    found = attack.perturb(module, x, labels, perturbation_box(x, 0.05), noise())
    assert not found.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert module.training
    assert torch.is_grad_enabled()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 1), wide=st.booleans())
def test_the_worst_point_of_a_linear_network_is_found(seed: int, eps: float, wide: bool) -> None:
    """Of two classes, its margin is smallest at a corner of the box that the weights name."""
    dtype = torch.float64 if wide else torch.float32
    weight = torch.randn(2, 12, dtype=dtype, generator=seeded(seed))
    x = torch.rand(3, 12, dtype=dtype, generator=seeded(seed + 1))
    labels = torch.tensor([0, 1, 0])
    box = perturbation_box(x, eps)
    direction = weight[labels] - weight[1 - labels]
    corner = torch.where(direction > 0, box.lower, box.upper)
    found = ATTACKS[1].perturb(lambda points: points @ weight.T, x, labels, box, noise())
    torch.testing.assert_close((direction * found).sum(1), (direction * corner).sum(1), atol=1e-4, rtol=1e-4)


def test_a_box_that_is_not_symmetric_is_kept_to(digits: tuple[Network, Tensor, Tensor]) -> None:
    network, x, labels = digits
    box = Box((x - 0.01).clamp(0, 1), (x + 0.1).clamp(0, 1))
    found = ATTACKS[0].perturb(network, x, labels, box, noise())
    assert ((found >= box.lower) & (found <= box.upper)).all()
    assert (margins(network, found, labels) <= 0).any()


def test_ctkd_trains_and_certifies_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctkd.run import certify, train

    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "cache"))
    values = {
        "attack.name": "apgd",
        "attack.steps": 2,
        "bound.name": "adversarial",
        "teacher.name": "none",
        "train.epochs": 1,
        "train.warmup": 0.25,
        "train.ramp": 0.5,
        "train.threads": 1,
        "certify.samples": 20,
        "certify.attack_steps": 5,
    }
    folder, summary = train(settings=values, out=tmp_path / "run", certify=False)
    assert summary["natural_accuracy"] > 0.2
    assert 'name = "apgd"' in (folder.path / "config.toml").read_text()
    weak = certify(folder.path, eps=0.03)
    strong = certify(folder.path, eps=0.03, settings={"certify.further_attacks": [{"name": "autoattack", **QUICK}]})
    assert strong["certified_accuracy"] <= strong["adversarial_accuracy"] <= weak["adversarial_accuracy"]
    (further,) = strong["attack"]["further"]
    assert {"name": "autoattack", **QUICK}.items() <= further.items()
    assert further["origin"].startswith("ctkd-attacks ")
