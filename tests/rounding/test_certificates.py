# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which certificates hold in float32: counted, stored, resumed; and a search that tries to break them by rounding."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.accuracy import smallest_margin
from ctkd.api import Split
from ctkd.boxes import Box, perturbation_box
from ctkd.certify import rounding as module
from ctkd.certify.rounding import COVERED, Key, RoundingStore, deployed_certificates, described
from ctkd.certify.store import Row
from ctkd.errors import BadInput, RunFailed
from ctkd.progress import Silent
from ctkd.propagate import Network, Node, crown_pre_activation, margins_of, relaxed_margins
from ctkd.propagate.ops import Function, Linear
from ctkd.rounding import rounding

from .exact import ORDERS, evaluate
from .test_rounding import box_of, inside, layers

EPS = 0.05
KEY = Key("network", EPS, "test", "digest")


def case() -> tuple[Network, Split]:
    images = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    return layers(4, 5, 3, seed=0), Split(images, torch.tensor([0, 1, 2, 0, 1, 2]))


def row(sample: int, margin: float | None, stage: str = "crown", status: Any = "certified") -> Row:
    return Row(sample, sample % 3, sample % 3, status, stage, margin, 1.0, 0.0)


def errors(net: Network, split: Split) -> list[float]:
    found = rounding(net, perturbation_box(split.images, EPS), split.labels).largest()
    return (found.deployed + found.bounds).tolist()


ORDER = ("ibp", "crown", "exotic", "crown-ibp")


def count(rows: list[Row], path: Path, key: Key = KEY, net: Network | None = None) -> dict[str, Any]:
    own, split = case()
    with RoundingStore(path) as store:
        return deployed_certificates(net or own, split, rows, store, key, stages=ORDER, batch=2, reporter=Silent())


def test_a_certificate_falls_where_its_margin_is_no_larger_than_the_rounding(tmp_path: Path) -> None:
    most = errors(*case())
    rows = [
        row(0, most[0] * 1.0001),
        row(1, most[1] * 0.9999),
        row(2, 1.0, "exotic"),
        row(3, None, "", "undecided"),
        row(4, -1.0, "attack", "broken"),
        row(5, 1.0, "crown-ibp"),  # some of its margins may be the exotic stage's
    ]
    found = count(rows, tmp_path / "r.sqlite")
    assert found["float32_certified"] == 1
    assert (found["float32"]["fallen"], found["float32"]["uncovered"]) == (1, 2)
    assert 0 < found["float32"]["largest_bound_error"] < 1e-10 < found["float32"]["largest_deployed_error"]


def test_the_rounding_of_network_and_bounds_adds_up(tmp_path: Path) -> None:
    rows = [row(k, margin) for k, margin in enumerate((1.25, 1.5, 1.75))]
    with RoundingStore(tmp_path / "r.sqlite") as store:
        store.add(KEY, dict.fromkeys(range(3), (1.0, 0.5)))
    found = count(rows, tmp_path / "r.sqlite")
    assert (found["float32_certified"], found["float32"]["fallen"]) == (1, 2)


def test_what_branch_and_bound_certified_is_never_counted_as_holding(tmp_path: Path) -> None:
    """However large its margin: multipliers are not bounded beforehand."""
    net, split = case()
    rows, order = [row(0, 1e9), row(1, 1e9, "complete")], ("crown", "complete")
    with RoundingStore(tmp_path / "r.sqlite") as store:
        found = deployed_certificates(net, split, rows, store, KEY, stages=order, batch=2, reporter=Silent())
    assert (found["float32_certified"], found["float32"]["uncovered"]) == (1, 1)


def test_what_is_not_computed_is_said_and_never_counted_as_holding(tmp_path: Path) -> None:
    rows = [row(k, 1e9, "crown" if k < 2 else "exotic") for k in range(6)]
    (said,) = described(count(rows, tmp_path / "r.sqlite"))
    assert said.startswith("2 certificates hold for the deployed network, too (a margin moves by at most ")
    assert said.endswith("; 0 fall; for 4 of 6 it is not computed: they need a stage whose rounding is not bounded")
    # Where nothing is computed nothing is said about how far a margin moves.
    found = count(rows[2:], tmp_path / "r.sqlite")
    assert (found["float32_certified"], found["float32"]["largest_deployed_error"]) == (0, None)
    assert described(found)[0].startswith("0 certificates hold for the deployed network, too; 0 fall; for 4 of 4 it ")
    assert described({"float32_certified": None, "float32": {"reason": "an odd operator"}})[0].endswith("odd operator")
    assert described({}) == described({"float32": None}) == described({"float32": {"damaged": 1}}) == []
    found["float32"]["largest_deployed_error"] = "much"  # a summary's file may have been edited
    assert described(found) == []


def test_what_is_stored_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(k, 1.0) for k in range(6)]
    path = tmp_path / "r.sqlite"
    part = count(rows[:3], path)
    calls: list[int] = []
    true = module.rounding

    def spy(network: Network, box: Box, labels: torch.Tensor) -> Any:
        calls.append(len(labels))
        return true(network, box, labels)

    monkeypatch.setattr(module, "rounding", spy)
    whole = count(rows, path)
    assert sum(calls) == 3
    assert (part["float32_certified"], whole["float32_certified"]) == (3, 6)
    assert count(rows, path) == whole
    assert sum(calls) == 3
    for other in (replace(KEY, network="another"), replace(KEY, data="another"), replace(KEY, split="train")):
        count(rows[:1], path, other)
    assert sum(calls) == 6


def test_no_bound_is_stored_as_null_and_the_certificate_falls(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    huge = case()[0].map(lambda t: t * 1e25)
    for _ in range(2):  # computed, then read
        found = count([row(0, 1e30)], path, net=huge)
        assert found["float32_certified"] == 0
        assert found["float32"]["largest_deployed_error"] is None
    stored = sqlite3.connect(path).execute("SELECT deployed FROM rounding").fetchall()
    assert stored == [(None,)]


def test_an_unknown_operator_gives_null_and_the_reason(tmp_path: Path) -> None:
    nodes = (Node(None, (), (4,), "input"), Node(Function("exp"), (0,), (4,), "act"))
    found = count([row(0, 1.0)], tmp_path / "r.sqlite", net=Network(nodes))
    assert found["float32_certified"] is None
    assert "no rounding bound of Function" in found["float32"]["reason"]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_text("no database, but long enough to look like a file of some kind " * 20)
    with pytest.raises(BadInput, match="cannot be used"):
        RoundingStore(tmp_path / "r.sqlite")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with RoundingStore(tmp_path / "r.sqlite") as store:
        store.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(RunFailed, match=r"rounding bounds could not be written .*; certificates are kept"):
            store.add(KEY, {0: (1.0, 1.0)})


def test_certify_reports_it(quick_run: tuple[Path, dict[str, Any]], ctkd_command: Callable[..., Any]) -> None:
    path, summary = quick_run
    assert summary["float32_certified"] + summary["float32"]["fallen"] == summary["counts"]["certified"]
    code, out, _ = ctkd_command("certify", str(path), "--samples", "40")
    assert code == 0
    assert f"float32: {summary['float32_certified']} certificates hold for the deployed network, too" in out


# The search ----------------------------------------------------------------------------------------------


def shifted(net: Network, box: Box, label: int, share: float) -> Network:
    """The network with the label's logit lowered until its certified margin is little above ``share`` of the bound.

    A bias is a float32 number: the margin may remain larger by its last bit.
    """
    head = net.nodes[-1].op
    assert isinstance(head, Linear)
    step, best, least = 0.0, net, torch.inf
    for _ in range(20):
        bias = head.bias.double().clone()
        bias[label] -= step
        lowered = Network((*net.nodes[:-1], replace(net.nodes[-1], op=Linear(head.weight, bias.float()))))
        margin, bound = certified(lowered, box, label)
        if share * bound < margin < least:
            best, least = lowered, margin
        step += margin - 1.02 * share * bound
    return best


def certified(net: Network, box: Box, label: int) -> tuple[float, float]:
    wide, labels = net.to(torch.float64), torch.tensor([label])
    inner = box.to(torch.float64)
    margins = relaxed_margins(wide, crown_pre_activation(wide, inner), inner, labels)
    found = rounding(net, box, labels).largest()
    return float(smallest_margin(margins, labels)), float(found.deployed + found.bounds)


def search(net: Network, box: Box, label: int) -> int:
    """How often some order of summation finds no positive margin: at the corner of the least margin, and elsewhere."""
    wide = net.to(torch.float64)
    centre = ((box.lower + box.upper) / 2).double().requires_grad_()
    points = inside(box, 0)
    for rival in range(net.classes):
        if rival == label:
            continue
        (slope,) = torch.autograd.grad(margins_of(wide(centre), torch.tensor([label]))[0, rival], centre)
        points.append(torch.where(slope > 0, box.lower, box.upper)[0])
    broken = 0
    for x in points:
        for arithmetic in ORDERS.values():
            logits = evaluate(net, x.tolist(), arithmetic)
            broken += any(not logits[label] > value for j, value in enumerate(logits) if j != label)
        broken += int(smallest_margin(margins_of(net(x[None]), torch.tensor([label])), torch.tensor([label])) <= 0)
    return broken


@pytest.mark.parametrize("kind", ["long sums", "cancellation", "two layers", "signs"])
def test_no_certificate_with_a_margin_above_the_bound_is_broken(kind: str) -> None:
    """And those with a hundredth of it are: the search would find what the bound forgot."""
    found = 0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        if kind == "long sums":
            net = layers(200, 3, seed=seed)
        elif kind == "cancellation":  # large numbers that nearly cancel
            net = layers(30, 3, seed=seed)
            large = 1000 * torch.rand(15, generator=generator)
            head = net.nodes[-1].op
            assert isinstance(head, Linear)
            head.weight[:] = torch.stack([torch.stack([large, -large * 0.999], 1).flatten()] * 3)
            head.weight[:, 0] += torch.rand(3, generator=generator)
        elif kind == "signs":
            net = layers(100, 3, seed=seed).map(lambda t: t.sign())
        else:
            net = layers(50, 40, 3, seed=seed)
        x, box = box_of(net.input_shape[0], seed, 1e-3 if kind == "two layers" else 0.05)
        label = int(net(x).argmax())
        assert search(shifted(net, box, label, 1.0), box, label) == 0
        found += search(shifted(net, box, label, 0.003), box, label)
    assert found > 0


def test_the_built_in_stages_are_covered() -> None:
    from ctkd.certify.options import CertifyOptions

    assert {table["name"] for table in CertifyOptions().stages} <= set(COVERED)
