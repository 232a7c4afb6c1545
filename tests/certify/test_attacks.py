# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several attacks in turn: never weaker than one of them, never on what is broken already."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctkd.accuracy import adversarial_accuracy, smallest_margin
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.attack import InTurn, attack_facts, evaluation_attack
from ctkd.certify.options import CertifyOptions
from ctkd.cli.main import run as cli
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import margins_of
from ctkd.randomness import Noise
from ctkd.run import certify

from .test_cascade import attack, cascade, network, split


class Counting:
    """Remembers what it was asked to attack."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.rows = inner, 0

    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Any, reference: Any = None) -> Tensor:
        self.rows += len(x)
        found: Tensor = self.inner.perturb(logits, x, labels, box, noise)
        return found + 3  # far outside of the box


def broken(one: Any, eps: float) -> Tensor:
    net = network()
    data = split(net)
    box = perturbation_box(data.images, eps)
    found = one.perturb(net, data.images, data.labels, box, Noise(0, "test", samples=torch.arange(len(data))))
    assert bool(((box.lower <= found) & (found <= box.upper)).all())
    return smallest_margin(margins_of(net(found), data.labels), data.labels) <= 0


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.15])
def test_attacks_in_turn_are_no_weaker_than_the_first(eps: float) -> None:
    first = attack(steps=1, step_size=0.2, objective="margin")
    second = attack(steps=20, restarts=3, objective="margin")
    together = broken(InTurn([first, second]), eps)
    assert bool((together >= broken(first, eps)).all())
    assert int(together.sum()) >= int(broken(second, eps).sum())
    if eps == 0.15:
        assert int(together.sum()) > int(broken(first, eps).sum())


def test_a_later_attack_sees_only_what_holds_and_is_kept_inside_the_box() -> None:
    first = attack(steps=20, objective="margin")
    counting = Counting(attack(steps=1))
    before = broken(first, 0.1)
    together = broken(InTurn([first, counting]), 0.1)
    assert counting.rows == int((~before).sum())
    assert bool((together >= before).all())


def test_further_attacks_are_configured_by_name_or_as_tables() -> None:
    options = CertifyOptions(further_attacks=("pgd", {"name": "pgd", "steps": 3}))  # type: ignore[arg-type]
    made = evaluation_attack(options)
    assert isinstance(made, InTurn)
    assert [one.options.steps for one in made.attacks][2] == 3  # type: ignore[attr-defined]
    facts = attack_facts(options)["further"]
    assert [(table["name"], table["steps"], table["restarts"]) for table in facts] == [("pgd", 8, 1), ("pgd", 3, 1)]
    assert CertifyOptions(further_attacks="pgd").further_attacks == ({"name": "pgd"},)  # type: ignore[arg-type]
    assert options.model_dump(mode="json")["further_attacks"] == ["pgd", {"name": "pgd", "steps": 3}]


def test_a_run_is_attacked_as_configured(quick_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import shutil

    path, before = quick_run
    shutil.copytree(path, tmp_path / "run")
    settings = {"certify.attack_steps": 1, "certify.further_attacks": [{"name": "pgd", "steps": 30, "restarts": 3}]}
    after = certify(tmp_path / "run", eps=0.2, settings=settings)
    weak = certify(tmp_path / "run", eps=0.2, settings={"certify.attack_steps": 1})
    assert after["attack"]["further"][0]["steps"] == 30
    assert after["counts"]["broken"] >= weak["counts"]["broken"]
    assert before["attack"]["further"] == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("['pdg']", "certify.further_attacks 'pdg' is not known: did you mean 'pgd'?"),
        ("[{name='pgd', steps=0}]", "certify.further_attacks.steps=0: must be greater than or equal to 1"),
        ("[{steps=3}]", "write a plugin's name, or a table with its name and options"),
        ("[3]", "certify.further_attacks"),
    ],
)
def test_attacks_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str], value: str, words: str) -> None:
    assert cli(["train", "--set", f"certify.further_attacks={value}", "--print-config"]) == 2
    assert words in capsys.readouterr().err


def test_stages_may_be_tables(tmp_path: Path) -> None:
    from ctkd.config import dump, resolve

    config = resolve({"certify.stages": ["ibp", {"name": "crown"}], "teacher.name": "none"})
    (tmp_path / "c.toml").write_text(dump(config))
    assert resolve(file=tmp_path / "c.toml").certify == config.certify
    with pytest.raises(BadInput, match=r"certify.stages.depth is not an option"):
        resolve({"certify.stages": [{"name": "ibp", "depth": 3}]})


def test_in_turn_changes_nothing_where_everything_is_broken() -> None:
    net = network()
    data = split(net)
    wrong = (net(data.images).argmax(1) + 1) % 3
    counting = Counting(attack(steps=1))
    box = perturbation_box(data.images, 0.1)
    found = InTurn([counting]).perturb(net, data.images, wrong, box, Noise(0, "test", samples=torch.arange(60)))
    assert counting.rows == 0
    assert torch.equal(found, data.images)


class NaNAttack:
    def perturb(self, logits: Any, x: Tensor, labels: Tensor, box: Box, noise: Any, reference: Any = None) -> Tensor:
        return x * torch.nan


def test_a_point_that_is_no_number_breaks_nothing() -> None:
    net = network()
    data = split(net)
    with pytest.raises(RunFailed, match="perturb of NaNAttack returned NaN"):
        broken(InTurn([NaNAttack()]), 0.1)
    with pytest.raises(RunFailed, match="perturb of NaNAttack returned NaN"):
        adversarial_accuracy(net, data, 0.1, NaNAttack(), 0)
    with pytest.raises(RunFailed, match="perturb of NaNAttack returned NaN"):
        dataclasses.replace(cascade(net, 0.1), attack=NaNAttack()).settle(data, list(range(8)))
