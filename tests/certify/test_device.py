# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certification on a device that is not the CPU: the same results, and no tensor of one that meets those of the other.

There is no GPU here: the device is a pretended one.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd import machine
from ctkd.api import Found, Split
from ctkd.boxes import perturbation_box
from ctkd.certify.alpha_crown import AlphaCrownOptions, AlphaCrownStage
from ctkd.certify.attack import InTurn
from ctkd.certify.cascade import Cascade
from ctkd.certify.complete import CompleteOptions, CompleteStage
from ctkd.certify.specified import settle
from ctkd.certify.stages import CrownIBPStage, CrownStage, IBPStage
from ctkd.certify.store import Row, Store
from ctkd.export import RobustnessProperty, to_onnx, write_vnnlib
from ctkd.options import Options
from ctkd.plugins import create_from
from ctkd.propagate import crown_pre_activation
from ctkd.propagate.linear import relax
from ctkd.propagate.windows import Path as WindowPath
from ctkd.proving import check_proofs
from ctkd.report.results import read_results
from ctkd.rounding import rounding
from ctkd.run import certify, radii
from ctkd.testing import nets as more
from ctkd.train.finish import finalise
from ctkd.verifiers.own import Own, OwnOptions
from ctkd.verifying import Query
from ctkd.vnnlib import parse_specification

from ..pretended_device import DEVICE, pretended_device
from .nets import network, samples

CHEAP = {"ibp": IBPStage(Options()), "crown-ibp": CrownIBPStage(Options()), "crown": CrownStage(Options())}
SEARCHING = {
    "alpha-crown": AlphaCrownStage(AlphaCrownOptions(iterations=5)),
    "complete": CompleteStage(CompleteOptions(nodes=100, root_iterations=3, iterations=3)),
}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretended_device() as found:
        yield found


@pytest.fixture
def accepted(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device as one that options may name."""
    monkeypatch.setattr(machine, "DEVICES", ("cpu", DEVICE))
    return DEVICE


def attack(steps: int = 5) -> Any:
    return create_from("attack", {"name": "pgd", "objective": "margin", "steps": steps, "restarts": 2})


def settled(net: Any, data: Split, eps: float, stages: Any, device: str = "cpu") -> list[Row]:
    rows = Cascade(net, eps, InTurn([attack(1), attack()]), stages, 0, device).settle(data, list(range(len(data))))
    return sorted(rows, key=lambda row: row.sample)


def same(found: list[Row], expected: list[Row]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.sample, a.label, a.prediction, a.status, a.stage) == (
            b.sample,
            b.label,
            b.prediction,
            b.status,
            b.stage,
        )
        assert a.attack_margin == pytest.approx(b.attack_margin, abs=1e-5)
        assert a.lower_margin == pytest.approx(b.lower_margin, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "eps"), [("batch norm", 0.02), ("residual", 0.05), ("max pooling", 0.06), ("sigmoid and tanh", 0.3)]
)
def test_bounds_and_attack_are_those_of_the_cpu(name: str, eps: float, device: torch.device) -> None:
    net = more.network(name, dtype=torch.float32)
    x, labels = more.batch(torch.float32, seed=3, size=6)
    data = Split(x, torch.where(torch.arange(len(x)) > 0, net(x).argmax(1), labels))
    expected = settled(net, data, eps, CHEAP)
    same(settled(net, data, eps, CHEAP, str(device)), expected)
    there = rounding(net.to(device), perturbation_box(x, eps).to(device), data.labels.to(device)).largest()
    here = rounding(net, perturbation_box(x, eps), data.labels).largest()
    assert there.deployed.device.type == DEVICE
    assert torch.equal(there.deployed.cpu(), here.deployed)
    assert torch.equal(there.bounds.cpu(), here.bounds)


@pytest.mark.parametrize(
    ("name", "seed", "eps", "chosen"),
    [("leaky", 2, 0.07, [21, 1, 2]), ("residual", 1, 0.03, [6, 2, 20]), ("conv", 1, 0.1, [9, 17])],
)
def test_searches_are_those_of_the_cpu(
    name: str, seed: int, eps: float, chosen: list[int], device: torch.device
) -> None:
    """Samples that optimised slopes certify, that need splits (and linear programs), and that the search breaks."""
    net = network(name, seed)
    x, labels = samples(net, 25, 2)
    data, stages = Split(x[chosen], labels[chosen]), {"crown": CHEAP["crown"], **SEARCHING}
    expected = settled(net, data, eps, stages)
    ends = [("certified", "alpha-crown"), ("certified", "complete"), ("broken", "complete")]
    assert [(row.status, row.stage) for row in expected] == ends[-len(chosen) :]
    same(settled(net, data, eps, stages, str(device)), expected)


def test_slopes_behind_a_pool_are_those_of_the_cpu(device: torch.device) -> None:
    net = more.network("max pooling", dtype=torch.float32)
    x, _ = more.batch(torch.float32, seed=3, size=2)
    box, labels = perturbation_box(x, 0.12).to(torch.float64), net(x).argmax(1)
    wide, stage = net.to(torch.float64), SEARCHING["alpha-crown"]
    found = stage.margins(wide.to(device), box.to(device), labels.to(device))
    assert torch.allclose(found.cpu(), stage.margins(wide, box, labels), atol=1e-6)


def test_rows_in_windows_are_those_of_the_cpu(device: torch.device) -> None:
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = finalise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 3)), (1, 12, 12)).to(torch.float64)
    box = perturbation_box(torch.full((1, 1, 12, 12), 0.5, dtype=torch.float64), 0.3)
    known = crown_pre_activation(net, box)
    assert WindowPath.back_from(net, 3, relax(net, known)).nodes
    found = crown_pre_activation(net.to(device), box.to(device))
    for i, bounds in known.items():
        for here, there in zip(bounds, found[i], strict=True):
            assert torch.allclose(there.cpu(), here)


def test_what_counts_is_replayed_on_the_cpu(device: torch.device) -> None:
    """A stage on the device that claims too much, or finds a point, is held against the network on the CPU."""
    net = network("mlp")
    data = Split(*samples(net, 4))

    class Finds:
        def margins(self, network: Any, box: Any, labels: Tensor) -> Tensor:
            raise NotImplementedError

        def search(self, network: Any, box: Any, labels: Tensor, stop: Any) -> Found:
            assert {network.device.type, box.lower.device.type, labels.device.type} == {DEVICE}
            margins = torch.full((len(labels), 3), -1.0, dtype=torch.float64, device=box.lower.device)
            return Found(margins.scatter(1, labels[:, None], 0.0), 1 - box.lower.round())  # clamped to a corner

    found = settled(net, data, 0.6, {"finds": Finds()}, str(device))
    box = perturbation_box(data.images, 0.6)
    points = box.clamp(1 - box.lower.round())
    for k, row in enumerate(found):
        if row.stage == "finds":
            assert net(points[k : k + 1]).argmax() != row.label
    assert {row.status for row in found} <= {"broken", "undecided"}


def test_specifications_are_settled_as_on_the_cpu(device: torch.device, tmp_path: Path) -> None:
    net = network("mlp", 1)
    x, labels = samples(net, 25, 2)
    box = perturbation_box(x, 0.1)
    verdicts = set()
    for k in (9, 16):
        label = int(labels[k])
        flat = [part[k].reshape(-1).numpy() for part in (box.lower, box.upper)]
        read = parse_specification(write_vnnlib(RobustnessProperty(*flat, label, net.classes), eps=0.1))
        for stages, tried in ((CHEAP, attack()), (SEARCHING, None)):
            here = settle(net, read, stages, tried)
            there = settle(net, read, stages, tried, device=str(device))
            assert (there.verdict, there.stage) == (here.verdict, here.stage)
            assert there.lower == pytest.approx(here.lower, abs=1e-6)
            verdicts.add(there.verdict)
    assert {"verified", "falsified"} <= verdicts


def test_the_own_verifier_takes_a_device(accepted: str, tmp_path: Path) -> None:
    net = network("mlp", 1)
    x, labels = samples(net, 1, 2)
    flat = [part.reshape(-1).numpy() for part in (x - 0.01, x + 0.01)]
    model, specification = tmp_path / "net.onnx", tmp_path / "property.vnnlib"
    model.write_bytes(to_onnx(net).SerializeToString())
    specification.write_text(write_vnnlib(RobustnessProperty(*flat, int(labels), net.classes), eps=0.01))
    own = Own(OwnOptions(device=accepted))
    assert own.check()["device"] == DEVICE
    assert "device" not in Own(OwnOptions()).check()
    assert own.verify(Query(model, specification, 60.0, tmp_path)).verdict == "verified"


# The run folder ------------------------------------------------------------------------------------------


def quick(run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "certification.sqlite").unlink()
    return copy


def test_a_run_goes_on_on_another_device(
    quick_run: tuple[Path, Any], tmp_path: Path, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(net: Any, *rest: Any) -> Any:
        with_cudnn[net.device.type] = torch.backends.cudnn.enabled
        return rounding(net, *rest)

    with_cudnn: dict[str, bool] = {}
    monkeypatch.setattr("ctkd.certify.rounding.rounding", watched)
    folder, expected = quick(quick_run[0], tmp_path), quick_run[1]
    half = certify(folder, settings={"certify.samples": 6})
    assert half["devices"] == {"cpu": 6}
    found = certify(folder, settings={"certify.samples": 12, "certify.device": accepted})
    assert found["devices"] == {"cpu": 6, DEVICE: 6}
    assert with_cudnn[DEVICE] is False
    assert found["float32_certified"] == found["counts"]["certified"]
    again = certify(folder, settings={"certify.samples": 12})
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    with Store(folder / "certification.sqlite") as store:
        assert store.connection.execute("SELECT count(*) FROM settings").fetchone() == (1,)
    (one,) = read_results(folder / "certification.sqlite", expected["student_sha256"]).found
    assert one.certificate.devices == {"cpu": 6, DEVICE: 6}
    curve = radii(folder, tolerance=0.05, settings={"certify.samples": 7, "certify.device": accepted})
    assert radii(folder, tolerance=0.05, settings={"certify.samples": 7})["curve"] == curve["curve"]
    with sqlite3.connect(folder / "certification.sqlite") as connection:
        devices = "SELECT DISTINCT device FROM radius_trials ORDER BY 1"
        assert connection.execute(devices).fetchall() == [("cpu",), (DEVICE,)]


def test_proofs_of_a_device_are_checked_on_the_cpu(quick_run: tuple[Path, Any], tmp_path: Path, accepted: str) -> None:
    folder = quick(quick_run[0], tmp_path)
    settings = {"certify.proofs": True, "certify.stages": ["alpha-crown"], "certify.samples": 6}
    found = certify(folder, eps=0.02, settings={**settings, "certify.device": accepted})
    assert found["counts"]["certified"] > 0
    assert check_proofs(folder)["checked"] == found["counts"]["certified"]


def test_a_device_that_is_not_there_is_refused(
    quick_run: tuple[Path, Any], tmp_path: Path, ctkd_command: Command
) -> None:
    folder = quick(quick_run[0], tmp_path)
    for command in ("certify", "radii"):
        code, out, err = ctkd_command(command, folder, "--device", "meta")
        assert (code, out) == (2, "")
        assert err == "error: certify.device=meta: accepted: cpu, cuda, cuda:N\n"
        code, out, err = ctkd_command(command, folder, "--device", "nonsense")
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: certify.device=nonsense: ")
    assert not (folder / "certification.sqlite").exists()
    out = tmp_path / "new"
    code, _, err = ctkd_command("train", "--set", "certify.device=meta", "--out", out)
    assert (code, err) == (2, "error: certify.device=meta: accepted: cpu, cuda, cuda:N\n")
    assert not out.exists()
    code, _, err = ctkd_command("verify", folder, "--verifier", "ctkd", "--set", "ctkd.device=meta")
    assert (code, err) == (2, "error: ctkd.device=meta: accepted: cpu, cuda, cuda:N\n")


def test_a_run_of_a_device_is_certified_where_there_is_none(
    quick_run: tuple[Path, Any], tmp_path: Path, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quick(quick_run[0], tmp_path)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('device = "cpu"', f'device = "{accepted}"'))
    assert certify(folder, settings={"certify.samples": 1})["devices"] == {DEVICE: 1}
    monkeypatch.setattr(machine, "DEVICES", ("cpu", "cuda"))
    assert certify(folder, settings={"certify.samples": 2})["devices"] == {DEVICE: 1, "cpu": 1}


# Arithmetic ----------------------------------------------------------------------------------------------


def test_bounds_do_without_cudnn_and_attacks_do_not(device: torch.device) -> None:
    seen: dict[str, set[bool]] = {"attack": set(), "stage": set()}

    class Watched(IBPStage):
        def margins(self, *given: Any) -> Tensor:
            seen["stage"].add(torch.backends.cudnn.enabled)
            return super().margins(*given)

    class Attack:
        def perturb(self, logits: Any, x: Tensor, *rest: Any) -> Tensor:
            seen["attack"].add(torch.backends.cudnn.enabled)
            return x

    net = network("mlp")
    data, one = Split(*samples(net, 2)), {"ibp": Watched(Options())}
    Cascade(net, 0.1, Attack(), one, 0, str(device)).settle(data, [0, 1])
    assert (seen["attack"], seen["stage"]) == ({True}, {False})
    assert torch.backends.cudnn.enabled
    seen["stage"].clear()
    Cascade(net, 0.1, Attack(), one, 0).settle(data, [0, 1])
    assert seen["stage"] == {True}  # a CPU knows nothing of it


def test_emulated_products_certify_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "device_problem", lambda device: None)
    assert machine.certifying_problem("cuda") is None
    monkeypatch.setenv(machine.EMULATION, "0")
    assert machine.certifying_problem("cuda") is None
    monkeypatch.setenv(machine.EMULATION, "1")
    assert machine.certifying_problem("cuda") == (
        "CUBLAS_EMULATE_DOUBLE_PRECISION=1 lets products in float64 be emulated; unset it"
    )
    assert machine.certifying_problem("cpu") is None
