# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Stored proofs replay, and what is not a proof any more is refused with one line."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd.accuracy import smallest_margin
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.alpha_crown import AlphaCrownOptions, AlphaCrownStage
from ctkd.certify.bab.bounding import bound
from ctkd.certify.bab.problem import Problem
from ctkd.certify.complete import CompleteOptions, CompleteStage
from ctkd.certify.proofs import FORMAT, Proof, ProofFolder, check_provable, read_proof
from ctkd.certify.replay import replay
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import Network
from ctkd.storage import write_tensors
from ctkd.train.finish import finalise

from .nets import NAMES, least_margin, network, points_in, samples, wide

Tensors = dict[str, Tensor]
QUICK = CompleteStage(CompleteOptions(timeout=60, root_iterations=3, iterations=5, attack_starts=1, attack_steps=5))


def proofs_of(name: str, eps: float, count: int, stage: Any = QUICK) -> list[tuple[Network, Proof, Box]]:
    net = network(name, 1)
    x, labels = samples(net, count, 2)
    box32 = perturbation_box(x, eps)
    big, box = wide(net, x, eps)
    found = stage.search(big, box, labels, lambda: False)
    proofs = []
    for k, tensors in enumerate(found.proofs):
        if tensors is not None:
            claim = {"network": net.sha256(), "label": int(labels[k])}
            ends = {"box.lower": box32.lower[k], "box.upper": box32.upper[k]}
            proofs.append((net, Proof(claim, {**tensors, **ends}), box[k : k + 1]))
    return proofs


def splits(proof: Proof) -> int:
    return len(proof.tensors["path.split"])


@pytest.mark.parametrize("name", NAMES)
def test_proofs_of_the_search_hold(name: str) -> None:
    found = proofs_of(name, 0.12, 30)
    assert len(found) > 1
    assert any(splits(proof) > 0 for _, proof, _ in found)
    for net, proof, box in found:
        least = replay(net, proof)
        label = proof.claim["label"]
        margins = least_margin(net.to(torch.float64), points_in(box, 100), label)
        assert 0 < least <= float(smallest_margin(margins[None], torch.tensor([label]))) + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_proofs_of_alpha_crown_hold(name: str) -> None:
    found = proofs_of(name, 0.08, 20, AlphaCrownStage(AlphaCrownOptions()))
    assert found
    for net, proof, _ in found:
        assert splits(proof) == 0
        assert replay(net, proof) > 0


@pytest.fixture(scope="module")
def split_proof() -> tuple[Network, Proof]:
    """A proof with several leaves for a rival, and with multipliers that matter."""
    found = proofs_of("residual", 0.14, 40)
    net, proof, _ = max(found, key=lambda case: splits(case[1]))
    assert splits(proof) > 6
    return net, proof


def without(t: Tensors, leaf: int) -> Tensors:
    """Without one leaf, consistently."""
    ends = t["leaf.depth"].cumsum(0)
    gone = range(int(ends[leaf] - t["leaf.depth"][leaf]), int(ends[leaf]))
    leaves = torch.arange(len(ends)) != leaf
    steps = ~torch.isin(torch.arange(len(t["path.split"])), torch.tensor(list(gone)))
    return {
        name: tensor[leaves] if name.startswith("leaf") else tensor[steps] if name.startswith("path") else tensor
        for name, tensor in t.items()
    }


def twice(t: Tensors, leaf: int) -> Tensors:
    """With one leaf a second time, consistently."""
    end = int(t["leaf.depth"].cumsum(0)[leaf])
    gone = slice(end - int(t["leaf.depth"][leaf]), end)
    return {
        name: torch.cat([x, x[leaf : leaf + 1] if name.startswith("leaf") else x[gone]])
        if name[:4] in ("leaf", "path")
        else x
        for name, x in t.items()
    }


def shortened(t: Tensors, leaf: int) -> Tensors:
    """With one leaf whose last split is left out: it claims the region of its parent."""
    end = int(t["leaf.depth"].cumsum(0)[leaf])
    steps = torch.arange(len(t["path.split"])) != end - 1
    depth = t["leaf.depth"].clone()
    depth[leaf] -= 1
    return {**t, "leaf.depth": depth, **{name: t[name][steps] for name in ("path.split", "path.multiplier")}}


def deepest(t: Tensors) -> int:
    return int(t["leaf.depth"].argmax())


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda t: {**t, name: change(t[name])}


def first(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[0] = value
        return x

    return change


MUTATIONS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "slope above one": (
        changed("leaf.slope", lambda x: x.float() / 100),
        "leaf.slope is missing, or not of type torch.uint8",
    ),
    "slopes of fewer units": (changed("leaf.slope", lambda x: x[:, 1:]), "the slopes, or the depths, of its leaves"),
    "leaf dropped": (lambda t: without(t, deepest(t)), "do not cover the box: one is missing|not those of a tree"),
    "leaf twice": (lambda t: twice(t, deepest(t)), "are not those of a tree"),
    "split left out": (lambda t: shortened(t, deepest(t)), "are not those of a tree"),
    "rival left out": (
        lambda t: functools.reduce(
            lambda rest, _: without(rest, int((rest["leaf.rival"] == t["leaf.rival"][0]).nonzero()[0])),
            range(int((t["leaf.rival"] == t["leaf.rival"][0]).sum())),
            t,
        ),
        "leaves are about classes",
    ),
    "no leaves": (
        lambda t: {n: x[:0] if n[:4] in ("leaf", "path") else x for n, x in t.items()},
        "leaves are about classes",
    ),
    "negative multiplier": (changed("path.multiplier", lambda x: -x - 1e-3), "a multiplier is negative or not finite"),
    "infinite multiplier": (changed("path.multiplier", first(float("inf"))), "a multiplier is negative or not finite"),
    "multiplier not a number": (
        changed("path.multiplier", first(float("nan"))),
        "a multiplier is negative or not finite",
    ),
    "large multipliers": (changed("path.multiplier", lambda x: x + 50), "not above zero"),
    "multipliers that drown everything in rounding": (
        changed("path.multiplier", lambda x: x * 0 + 3e38),
        "not above zero",
    ),
    "no unit at all": (
        changed("path.split", first(0)),
        "a path splits what is no unit, or a unit twice",
    ),
    "other sign": (lambda t: {**t, "path.split": t["path.split"].abs()}, "do not cover the box: one is missing"),
    "unknown unit": (changed("path.split", lambda x: x.sign() * 10**6), "a path splits what is no unit"),
    "unit that is no rectifier": (changed("unit.node", lambda x: x * 0 + 1), "is not a rectifier of the network"),
    "unit outside of its node": (changed("unit.place", lambda x: x + 10**6), "is not a rectifier of the network"),
    "unit twice": (
        lambda t: {**t, "unit.node": t["unit.node"] * 0 + t["unit.node"][0], "unit.place": t["unit.place"] * 0},
        "a unit is listed twice",
    ),
    "rival twice": (changed("leaf.rival", lambda x: x * 0 + x[0]), "its leaves are about classes"),
    "wider box": (changed("box.upper", lambda x: x + 0.3), "not above zero"),
    "empty box": (changed("box.upper", lambda x: x - 1), "its box is empty"),
    "box of another shape": (changed("box.lower", lambda x: x[0]), "box.lower has shape"),
    "no box": (lambda t: {n: x for n, x in t.items() if n != "box.lower"}, "tensor box.lower is missing"),
    "fewer multipliers": (changed("path.multiplier", lambda x: x[1:]), "path.multiplier has"),
    "negative depth": (
        lambda t: {
            **t,
            "leaf.depth": torch.cat(
                [t["leaf.depth"][:1] + t["leaf.depth"][1:2] + 1, -torch.ones(1, dtype=torch.int32), t["leaf.depth"][2:]]
            ),
        },
        "the slopes, or the depths|do not fit|no unit|others need",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_no_proof_is_refused_with_one_line(split_proof: tuple[Network, Proof], name: str) -> None:
    net, proof = split_proof
    mutate, words = MUTATIONS[name]
    assert replay(net, proof) > 0
    with pytest.raises(RunFailed, match=words) as caught:
        replay(net, replace(proof, tensors=mutate(dict(proof.tensors))))
    assert "\n" not in str(caught.value)


def test_another_network_or_label_is_refused(split_proof: tuple[Network, Proof]) -> None:
    net, proof = split_proof
    with pytest.raises(RunFailed, match="it is about another network"):
        replay(network("residual", 2), proof)
    with pytest.raises(RunFailed, match="it is about another network"):
        replay(net.map(lambda tensor: tensor * (1 + 1e-6)), proof)
    with pytest.raises(RunFailed, match="is no class"):
        replay(net, replace(proof, claim={**proof.claim, "label": 7}))
    with pytest.raises(RunFailed, match="its leaves are about classes"):
        replay(net, replace(proof, claim={**proof.claim, "label": (proof.claim["label"] + 1) % 3}))


def test_what_cancels_is_not_trusted() -> None:
    """A margin of 1 everywhere, and the constraint x - 1 >= 0, which holds at one end of the box alone.

    There its multiplier's terms cancel. They do so exactly here; in general they leave rounding of their size.
    """
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        module[1].weight.fill_(1.0)
        module[1].bias.fill_(-1.0)
        module[3].weight.zero_()
        module[3].bias.copy_(torch.tensor([1.0, 0.0]))
    net = finalise(module, (1,))
    (unit,) = net.nonlinear
    whole = {"box.lower": torch.zeros(1), "box.upper": torch.ones(1), "unit.node": torch.tensor([unit]).int()}
    parts = {
        "leaf.rival": torch.tensor([1, 1]),
        "leaf.depth": torch.tensor([1, 1]),
        "path.split": torch.tensor([1, -1]),
    }
    rest = {"unit.place": torch.zeros(1).int(), "leaf.slope": torch.zeros(2, 1).byte()}
    for multiplier, holds in ((10.0, True), (1e11, True), (1e14, False), (3e38, False)):
        push = {"path.multiplier": torch.tensor([multiplier, 0.0])}
        tensors = {**whole, **rest, **push, **{name: value.int() for name, value in parts.items()}}
        with contextlib.nullcontext() if holds else pytest.raises(RunFailed, match="not above zero"):
            assert 0 < replay(net, Proof({"network": net.sha256(), "label": 0}, tensors)) <= 1
    one = torch.zeros(1, 1, dtype=torch.float64)
    problem = Problem.of(net.to(torch.float64), Box(one, one + 1), torch.tensor([0]))
    everything = torch.zeros(1, 1, dtype=torch.float64)
    ends = {"lower": everything - 1, "upper": everything, "first": everything, "leak": everything[0]}
    problem = replace(problem, places={unit: torch.tensor([0])}, columns={unit: slice(0, 1)}, **ends)
    root = problem.roots(torch.tensor([0]), torch.tensor([1]))
    fixed = replace(root, sign=torch.ones(1, 1, dtype=torch.int8), multiplier=everything + 1e14)
    assert float(bound(problem, fixed).value) < 0


def test_slopes_may_be_any_and_prove_nothing_false() -> None:
    draw, shown = torch.Generator().manual_seed(0), 0
    for net, proof, box in proofs_of("mlp", 0.06, 20, AlphaCrownStage(AlphaCrownOptions())):
        label = proof.claim["label"]
        true = least_margin(net.to(torch.float64), points_in(box, 200), label)
        slope = torch.randint(0, 256, proof.tensors["leaf.slope"].shape, generator=draw).to(torch.uint8)
        with contextlib.suppress(RunFailed):
            least = replay(net, replace(proof, tensors={**proof.tensors, "leaf.slope": slope}))
            assert least <= float(smallest_margin(true[None], torch.tensor([label])))
            shown += bool((slope != proof.tensors["leaf.slope"]).any())
    assert shown > 0


def test_other_nonlinearities_are_refused_when_proofs_are_asked_for() -> None:
    layers = nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    net = finalise(nn.Sequential(*layers), (1, 4, 4))
    with pytest.raises(BadInput, match=r"proofs cover ReLU and LeakyReLU networks, and this one has MaxPool, Tanh"):
        check_provable(net)


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "proofs").write_text("a file")
    one = torch.zeros(1, 1, 4, 4)
    with pytest.raises(RunFailed, match="could not be written"):
        ProofFolder(tmp_path / "proofs", {}).write(0, 0, Box(one, one), {"x": one})


# From the command line


@pytest.fixture(scope="module")
def proved_run(quick_run: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose certificates at a small radius all have proofs."""
    from ctkd.run import certify

    folder = tmp_path_factory.mktemp("proved") / "run"
    shutil.copytree(quick_run[0], folder)
    stages = ["alpha-crown", {"name": "complete", "timeout": 30, "nodes": 200}]
    settings = {"certify.proofs": True, "certify.stages": stages, "certify.samples": 12}
    assert certify(folder, eps=0.02, settings=settings)["counts"]["certified"] >= 3
    return folder


@pytest.fixture
def copied(proved_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(proved_run, tmp_path / "run")
    return tmp_path / "run"


def files(run: Path) -> list[Path]:
    return sorted((run / "proofs").glob("*/*.safetensors"))


def test_the_command_checks_every_certificate(copied: Path, ctkd_command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = ctkd_command("check-proofs", str(copied), "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["checked"], found["refused"]) == (len(files(copied)), [])
    assert found["smallest_margin"] > 0
    assert ctkd_command("check-proofs", str(copied))[:2] == (0, f"proofs that hold: {len(files(copied))}\n")


def rewritten(path: Path, **changes: Any) -> None:
    proof = read_proof(path)
    write_tensors(path, proof.tensors, {"format": FORMAT, "claim": json.dumps({**proof.claim, **changes})})


def with_the_box_of(one: Path, other: Path) -> None:
    claim, tensors = read_proof(one).claim, read_proof(other).tensors
    write_tensors(one, tensors, {"format": FORMAT, "claim": json.dumps(claim)})


def shrunk(one: Path, other: Path) -> None:
    """A true proof, but for a part of the box."""
    proof = read_proof(one)
    middle = (proof.tensors["box.lower"] + proof.tensors["box.upper"]) / 2
    smaller = {"box.lower": proof.tensors["box.lower"].maximum(middle - 0.001), "box.upper": middle}
    write_tensors(one, {**proof.tensors, **smaller}, {"format": FORMAT, "claim": json.dumps(proof.claim)})


DAMAGE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "missing": (lambda one, other: one.unlink(), "cannot be read: No such file or directory"),
    "truncated": (lambda one, other: one.write_bytes(one.read_bytes()[:-7]), "is damaged"),
    "empty": (lambda one, other: one.write_bytes(b""), "is damaged"),
    "a pickle": (lambda one, other: torch.save({}, one), "pickled PyTorch file"),
    "of another sample": (lambda one, other: shutil.copy(other, one), "is about sample"),
    "for another radius": (lambda one, other: rewritten(one, eps=0.01), "is about eps 0.01, the result about 0.02"),
    "of another network": (lambda one, other: rewritten(one, network="0"), "is about network 0"),
    "of another split": (lambda one, other: rewritten(one, split="train"), "is about split train"),
    "of other data": (lambda one, other: rewritten(one, data="0"), "is about data 0"),
    "for a smaller box": (shrunk, "is not about this sample's image and label"),
    "of another label": (lambda one, other: rewritten(one, label=77), "is about label 77"),
    "of another box": (with_the_box_of, "is not about this sample's image and label"),
    "no proof": (lambda one, other: shutil.copy(one.parents[2] / "network.safetensors", one), "not a proof that ctkd"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(copied: Path, ctkd_command: Callable[..., tuple[int, str, str]], name: str) -> None:
    damage, words = DAMAGE[name]
    one, other = files(copied)[:2]
    damage(one, other)
    code, out, err = ctkd_command("check-proofs", str(copied), "--json")
    assert code == 1
    (refused,) = json.loads(out)["refused"]
    assert str(refused["sample"]) == one.stem
    assert any(word in refused["reason"] for word in words.split("|"))
    assert "\n" not in refused["reason"]
    assert f"1 of {len(files(copied)) + (name == 'missing')} proofs do not hold" in err


def test_a_run_without_proofs_says_how_to_make_some(
    quick_run: tuple[Path, dict[str, Any]], ctkd_command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = ctkd_command("check-proofs", str(quick_run[0]))
    assert code == 2
    assert "has no certificates with proofs" in err
    assert "certify.proofs=true" in err
