# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The cascade: what it counts, what it refuses to report, how it resumes."""

from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctkd.api import Split
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.cascade import Cascade
from ctkd.certify.stages import CrownIBPStage, CrownStage, IBPStage
from ctkd.certify.store import Store
from ctkd.errors import BadInput, Contradiction, Interrupted
from ctkd.interrupt import StopRequest
from ctkd.options import Options
from ctkd.plugins import create, options_class, registry
from ctkd.progress import Silent
from ctkd.propagate import Network, margins_of
from ctkd.run import certify
from ctkd.train.finish import finalise

STAGES = {"ibp": IBPStage(Options()), "crown-ibp": CrownIBPStage(Options()), "crown": CrownStage(Options())}


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return finalise(nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3)), (1, 3, 3))


def split(net: Network, count: int = 60) -> Split:
    """Random images, labelled as the network predicts, but every tenth wrongly."""
    x = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = net(x).argmax(1)
    labels[::10] = (labels[::10] + 1) % 3
    return Split(x, labels)


def attack(**options: Any) -> Any:
    entry = registry().find("attack", "pgd")
    return create(entry, options_class(entry)(**options))


def cascade(net: Network, eps: float, stages: Any = STAGES) -> Cascade:
    return Cascade(net, eps, attack(steps=20, objective="margin"), stages, 0)


def run(one: Cascade, data: Split, path: Path, samples: range | None = None, batch: int = 16) -> Any:
    samples = samples or range(len(data))
    with Store(path) as store:
        settings = store.settings("net", one.eps, "test", {})
        result = one.run(data, samples, store, settings, batch, Silent(), StopRequest(), "")
        return result, store.rows(settings, samples)


def test_every_sample_is_certified_broken_or_undecided_and_truly_so(tmp_path: Path) -> None:
    net = network()
    data, eps = split(net), 0.08
    result, rows = run(cascade(net, eps), data, tmp_path / "r.sqlite")
    assert result.certified + result.broken + result.undecided == result.samples == 60
    assert min(result.certified, result.broken) > 5
    assert sum(result.stages.values()) == result.certified
    box = perturbation_box(data.images, eps)
    exact = net.to(torch.float64)
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        # Corners are where a network of this kind is weakest.
        corner = torch.where(torch.rand(box.lower.shape, generator=rng) < 0.5, box.lower, box.upper)
        margins = margins_of(exact(corner.double()), data.labels)
        low = margins.scatter(1, data.labels[:, None], torch.inf).amin(1)
        for row in rows:
            if row.status == "certified":
                assert row.lower_margin is not None
                assert low[row.sample] >= row.lower_margin > 0
    assert all(row.attack_margin <= 0 for row in rows if row.status == "broken")
    assert all(row.status == "broken" and row.stage == "natural" for row in rows[::10])


def test_accuracies_follow_from_the_counts(tmp_path: Path) -> None:
    net = network()
    result, rows = run(cascade(net, 0.08), split(net), tmp_path / "r.sqlite", range(40))
    summary = result.summary()
    certified = sum(row.status == "certified" for row in rows) / 40
    assert summary["certified_accuracy"] == certified
    assert summary["natural_accuracy"] == 0.9
    assert summary["adversarial_accuracy"] == 1 - sum(row.status == "broken" for row in rows) / 40
    assert summary["certified_accuracy"] <= summary["adversarial_accuracy"] <= summary["natural_accuracy"]
    assert summary["certified_standard_error"] == pytest.approx(math.sqrt(certified * (1 - certified) / 40))


def test_later_stages_only_add(tmp_path: Path) -> None:
    net = network()
    data = split(net)
    counts = []
    for i in range(1, 4):
        chosen = dict(list(STAGES.items())[:i])
        counts.append(run(cascade(net, 0.12, chosen), data, tmp_path / f"{i}.sqlite")[0].certified)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


class Lies:
    """A stage that claims to have proved everything."""

    def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(labels), net.classes, dtype=box.lower.dtype)


class Nan:
    """A stage whose bounds are not numbers."""

    def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(labels), net.classes), torch.nan, dtype=box.lower.dtype)


def test_a_contradiction_stops_the_report_and_stores_nothing(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(Contradiction, match=r"sample 0 is certified .* and broken by an attacked point"):
        run(cascade(net, 0.1, {"lies": Lies()}), split(net), tmp_path / "r.sqlite")
    with sqlite3.connect(tmp_path / "r.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM samples").fetchone() == (0,)


def test_a_bound_that_is_not_a_number_proves_nothing(tmp_path: Path) -> None:
    net = network()
    with pytest.warns(UserWarning, match="stage 'nan' returned NaN for some samples; such bounds prove nothing"):
        result, rows = run(cascade(net, 0.01, {"nan": Nan()}), split(net), tmp_path / "r.sqlite")
    assert result.certified == 0
    assert all(row.lower_margin is None for row in rows)


def test_a_bound_within_rounding_of_zero_proves_nothing(tmp_path: Path) -> None:
    class Barely:
        def __init__(self, margin: float) -> None:
            self.margin = margin

        def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(labels), net.classes), self.margin, dtype=box.lower.dtype)

    net = network()
    images = split(net).images
    data = Split(images, net(images).argmax(1))
    for margin, certified in ((1e-12, 0), (1e-9, 60)):
        stages = {"barely": Barely(margin)}
        result, _ = run(cascade(net, 0.0, stages), data, tmp_path / f"{margin}.sqlite")
        assert result.certified == certified


def test_certified_samples_are_those_of_the_same_data(tmp_path: Path) -> None:
    from ctkd.certify.store import Row

    with Store(tmp_path / "r.sqlite") as store:
        for data, sample in (("a", 3), ("b", 4)):
            settings = store.settings("net", 0.1, "test", {"data": data})
            store.add(settings, [Row(sample, 0, 0, "certified", "ibp", 1.0, 1.0, 0.0)])
        assert store.certified("net", 0.1, "test", "a") == {3}
        assert store.certified("net", 0.2, "test", "a") == set()


def test_a_tie_is_a_violation(tmp_path: Path) -> None:
    """Two equal logits everywhere: neither natural, nor adversarial, nor certified accuracy may count them."""
    net = network()
    last = net.nodes[-1].op
    weight = last.weight.clone()  # type: ignore[union-attr]
    weight[1], last.bias[1] = weight[0], last.bias[0]  # type: ignore[union-attr]
    import dataclasses

    tied = Network((*net.nodes[:-1], dataclasses.replace(net.nodes[-1], op=dataclasses.replace(last, weight=weight))))
    x = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    data = Split(x, torch.zeros(20, dtype=torch.int64))
    result, _ = run(cascade(tied, 0.0), data, tmp_path / "r.sqlite")
    assert (result.natural, result.certified, result.broken) == (0, 0, 20)


def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    net = network()
    data = split(net)
    _, whole = run(cascade(net, 0.08), data, tmp_path / "whole.sqlite")
    stop = StopRequest()
    stop.signal_number = 15
    one = cascade(net, 0.08)
    with Store(tmp_path / "parts.sqlite") as store:
        settings = store.settings("net", one.eps, "test", {})
        with pytest.raises(Interrupted, match=r"finished samples are stored\. Go on"):
            one.run(data, range(60), store, settings, 16, Silent(), stop, "Go on")
        assert len(store.rows(settings, range(60))) == 16
    _, resumed = run(cascade(net, 0.08), data, tmp_path / "parts.sqlite")

    def facts(rows: list[Any]) -> list[Any]:
        return [(r.sample, r.status, r.stage, r.lower_margin, r.attack_margin) for r in rows]

    assert facts(resumed) == facts(whole)


def test_settled_samples_are_not_done_again(tmp_path: Path) -> None:
    net = network()
    data = split(net)
    run(cascade(net, 0.08), data, tmp_path / "r.sqlite")
    again = cascade(net, 0.08)
    object.__setattr__(again, "settle", None)  # calling it would raise
    result, _ = run(again, data, tmp_path / "r.sqlite")
    assert result.samples == 60


def test_certify_on_a_run_at_other_radii(tmp_path: Path, quick_run: tuple[Path, dict[str, Any]]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(quick_run[0], folder)
    results = [certify(folder, eps=eps)["certified_accuracy"] for eps in ("1/1000", 0.02, 0.3)]
    assert results == sorted(results, reverse=True)
    assert certify(folder)["certified_accuracy"] == quick_run[1]["certified_accuracy"]
    with pytest.raises(BadInput, match=r"eps=8: outside \[0, 1\]; radii are in raw pixel units, did you mean 8/255\?"):
        certify(folder, eps=8)
    with pytest.raises(BadInput, match=r"train.epochs: certifying takes certify\.\* settings only"):
        certify(folder, settings={"train.epochs": 3})
    with pytest.raises(BadInput, match="the test split has 360 samples"):
        certify(folder, settings={"certify.samples": 361})


def test_a_sample_is_settled_alike_in_any_batch(tmp_path: Path) -> None:
    """Noise is the sample's own: the batches of an earlier run with another range or size change nothing."""
    net = network()
    data = split(net)
    random_only = Cascade(net, 0.08, attack(steps=1, step_size=1e-3, objective="margin"), STAGES, 0)
    _, whole = run(random_only, data, tmp_path / "whole.sqlite", batch=60)
    run(random_only, data, tmp_path / "parts.sqlite", range(37, 43), batch=2)
    _, parts = run(random_only, data, tmp_path / "parts.sqlite", batch=7)
    for one, other in zip(whole, parts, strict=True):
        assert (one.sample, one.status, one.stage) == (other.sample, other.status, other.stage)
        assert one.attack_margin == pytest.approx(other.attack_margin, abs=1e-5)
        assert one.lower_margin == pytest.approx(other.lower_margin, abs=1e-9)
