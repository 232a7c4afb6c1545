# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The benchmarks at tiny sizes: they run, and give no ratio to a contender that computes something else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import agreement, certify, floor, growth, machine, timing
from benchmarks import step as steps
from benchmarks.__main__ import main
from benchmarks.cases import STEPS, Case, model_layers, stack, without_norms
from benchmarks.contenders.autolirpa import AutoLirpa
from benchmarks.contenders.ctkd import Ctkd
from benchmarks.nets import build, images
from benchmarks.process import ContenderFailed, Entrant, Worker
from benchmarks.worker import Driven, Unavailable
from ctkd.plugins import create_from

SHAPE = (1, 8, 8)
SETTINGS: dict[str, Any] = {"precision": "fp32", "threads": 1}


def tiny(step: str = "ibp", **changes: Any) -> Case:
    layers = stack(SHAPE, [(3, 3, 2, 1), (4, 3, 1, 1)], 6, 10)
    return replace(Case(step, "stack", layers, SHAPE, 8, 0.1), **changes)


@pytest.mark.parametrize("name", ["cnn-small", "cnn7"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_the_networks_are_those_of_ctkd(name: str, shape: tuple[int, ...]) -> None:
    real = create_from("model", {"name": name}).build(shape, 10)
    assert str(build(model_layers(name, shape))) == str(real)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_loss_and_gradients_are_those_of_auto_lirpa(step: str, norms: bool) -> None:
    case = tiny(step)
    if not norms:
        case = replace(case, layers=without_norms(case.layers))
    for rule in ("clean", "last-pass") if case.attack_steps else ("clean",):
        ours, theirs = (kind(case, SETTINGS).check(rule, "float64", 1e-3) for kind in (Ctkd, AutoLirpa))
        assert math.isclose(ours[0], theirs[0], rel_tol=1e-9)
        assert agreement.differences(ours[1], theirs[1])[0] < 1e-7
        assert max(float(g.abs().max()) for g in ours[1].values()) > 1e-3


def test_statistics_rules_differ() -> None:
    contender = Ctkd(tiny("cc-ibp-1"), SETTINGS)
    losses = [contender.check(rule, "float64", 0.05)[0] for rule in ("clean", "last-pass")]  # type: ignore[arg-type]
    assert abs(losses[0] - losses[1]) > 1e-6


def test_no_ratio_to_a_contender_that_computes_something_else() -> None:
    # ctkd with another L1 weight than the one agreed upon
    ours, peer = Entrant("ctkd", given={"l1": 0.1}), Entrant("autolirpa")
    result = steps.run(tiny(), [ours], [peer], 1, 1, guard=False)
    assert result["refused"] == ["autolirpa fp32"]
    assert result["ratios"]["ctkd fp32"] == {}
    steps.show([result])


def test_a_sample_that_others_disturbed_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([0.0, 0.5, 0.0, 0.02, *[0.9] * 100])
    monkeypatch.setattr(timing, "Others", lambda own: lambda: next(used))
    samples = timing.interleave({"a": lambda count: [1.0] * count}, 2, least=0.0)["a"]
    assert [s["kept"] for s in samples[:2]] == [False, True]
    assert len(samples) == 2 + timing.TRIES
    found = timing.summary(samples)
    assert (found["rounds"], found["taken_again"], found["disturbed"]) == (2, timing.TRIES, 1)


def test_what_others_use_is_seen_and_what_we_use_is_not() -> None:
    others = machine.Others([])
    if others.before is None:
        pytest.skip("there is no /proc/stat here")
    before = others._read()
    assert before is not None
    sum(i * i for i in range(2_000_000))
    after = others._read()
    assert after is not None
    total = machine.Others([])
    total.own = []
    everything = total._read()
    assert everything is not None
    assert everything[1] > after[1]  # this process's own time is left out


def test_ratios_are_of_medians_and_round_by_round() -> None:
    def samples(*values: float) -> list[timing.Sample]:
        return [{"round": i, "seconds": [v], "others": 0.0, "kept": True} for i, v in enumerate(values)]

    found = timing.ratio(samples(2, 4, 6), samples(1, 2, 1))
    assert found["of_medians"] == 4
    assert found["median"] == 2
    assert found["quartiles"] == [2, 4]


def test_a_loop_is_driven_step_by_step_and_the_end_of_an_epoch_is_left_out() -> None:
    done: list[str] = []

    def loop(driven: Driven) -> None:
        for i in range(4):
            driven.fetching()
            done.append(f"step {i}")
            if i == 1:
                done.append("epoch")
                driven.spoilt = True
        raise ValueError("over")

    driven = Driven(loop)
    assert done == []
    assert driven.step(lambda: None) > 0
    assert done == ["step 0"]
    driven.step(lambda: None)
    assert done == ["step 0", "step 1", "epoch", "step 2"]
    with pytest.raises(ValueError, match="over"):
        driven.step(lambda: None)


def test_random_images_are_like_uniform_noise() -> None:
    x, labels = images(tiny(batch=32), 4)
    assert x.shape == (128, *SHAPE)
    assert len(labels) == 128
    assert 0 <= float(x.min()) < 0.05
    assert 0.95 < float(x.max()) <= 1
    assert float(x.std(0).mean()) > 0.2


def test_the_floor_counts_each_pass_that_a_step_needs() -> None:
    def layer(name: str) -> floor.Layer:
        return floor.Layer(name, 10, {"forward": 1.0, "input_gradient": 2.0, "weight_gradient": 3.0})

    layers = [layer("first"), layer("second")]
    assert floor.floor(tiny("ibp"), layers) == {"seconds": 3 * (1 + 3) + 3 * 6, "flops": 3 * 20 + 3 * 30}
    attack = floor.floor(tiny("cc-ibp-8"), layers)["flops"] - floor.floor(tiny("cc-ibp-1"), layers)["flops"]
    assert attack == 2 * 10 * ((8 + 9) - 2)
    # The relaxation goes down to the images, the others stop before.
    relaxation = floor.floor(tiny("crown-ibp"), layers)["flops"] - floor.floor(tiny("ibp"), layers)["flops"]
    assert relaxation == 60
    free = [replace(one, seconds=dict.fromkeys(floor.PASSES, 0.0)) for one in layers]
    mixed = floor.floor(tiny("cc-ibp-8"), layers, free)["seconds"]
    assert mixed == 4 * (1 + 3) + 4 * 6


def test_layers_are_measured_at_their_own_shapes() -> None:
    case = tiny()
    layers = floor.measure(case, torch.float32, 1)
    assert [one.flops for one in layers] == [
        2 * 8 * 3 * 16 * 9,
        2 * 8 * 4 * 16 * 27,
        2 * 8 * 6 * 64,
        2 * 8 * 10 * 6,
    ]
    assert all(seconds > 0 for one in layers for seconds in one.seconds.values())


def test_stages_are_compared_with_equal_bounds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {"ibp": 6, "crown-ibp": 6, "crown": 3}
    rows = certify.run(tiny(), list(samples), ["float64"], samples, 2, 1, False)
    assert all(row["agree"] and row["ratio"]["of_medians"] > 0 and 0 < row["unstable"] < 1 for row in rows)
    certify.show(rows)
    monkeypatch.setattr(certify, "STAGES", {"crown-ibp": "IBP"})
    (row,) = certify.run(tiny(), ["crown-ibp"], ["float64"], samples, 2, 1, False)
    assert not row["agree"]
    assert row["ratio"] is None


def test_the_plain_module_is_the_network() -> None:
    case = tiny()
    network = certify.trained(case, 1)
    x = torch.rand(16, *SHAPE)
    torch.testing.assert_close(certify.plain(case, network)(x), network(x))


def test_growth_and_its_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "growth.png"
    arguments = "growth --tiny --json --rounds 1 --threads 1 --no-guard --axis classes --step ibp --plot"
    assert main([*arguments.split(), str(path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [r["value"] for r in document["results"]] == [10, 200]
    assert all(len(r["samples"][0]["seconds"]) == 1 for r in document["results"])
    assert document["versions"]["torch"] == torch.__version__
    assert path.read_bytes().startswith(b"\x89PNG")
    growth.show(document["results"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("step --step ipb", "'ipb' is unknown: did you mean 'ibp'? accepted: ibp, cc-ibp-1, cc-ibp-8, crown-ibp"),
        ("step --device cuda", "sees no GPU here"),
        ("gpu", "sees no GPU here"),
        ("step --rounds 0", "0 is not in the range"),
        ("step --set l1", "write key=value"),
        ("growth --plot x.doc", "accepted endings"),
    ],
)
def test_misuse_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU here")
    assert main(arguments.split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line


def test_a_missing_auto_lirpa_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ctkd_autolirpa import compat

    from ctkd.errors import RunFailed

    def missing() -> None:
        raise RunFailed(f"auto_LiRPA is not installed; run: {compat.INSTALL}")

    monkeypatch.setattr(compat, "load", missing)
    assert main(["certify"]) == 2
    assert "pip install --no-deps auto_LiRPA==0.3" in capsys.readouterr().err


def test_a_contender_that_raises_is_reported_with_its_log() -> None:
    with Worker(Entrant("ctkd"), tiny(), 1) as worker, pytest.raises(ContenderFailed, match="no_such_type"):
        worker.check("clean", "no_such_type", 0.1)


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(Unavailable, match="fp32 only"):
        AutoLirpa(tiny(), {**SETTINGS, "precision": "bf16"})
    with pytest.raises(Unavailable, match=r"no train\.l3; it has .*l1"):
        Ctkd(tiny(), {**SETTINGS, "set": {"l3": 1}})
    with pytest.raises(Unavailable, match="/nowhere/python cannot be started"):
        Worker(Entrant("ctrain", python="/nowhere/python"), tiny(), 1)


def test_the_gpu_script_on_the_cpu_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu

    def never(*_: Any) -> Callable[..., Any]:
        raise AssertionError("done twice")

    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert main(["gpu", "--device", "cpu", "--tiny", "--threads", "1", *folders]) == 0
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    parts = {entry["part"]: entry["result"] for entry in document["results"]}
    row = parts["step cnn7 cifar10 cc-ibp-8"]
    assert row["ratios"]["ctkd fp32"]["autolirpa fp32"]["of_medians"] > 0
    assert row["memory"]["ctkd fp32"]["peak"] > 10**7
    assert row["epoch_seconds"]["ctkd fp32"] == row["seconds"]["ctkd fp32"]["median"] * (50_000 // 8)
    assert parts["synchronisation"] is None
    assert parts["run"]["summary"]["certified_accuracy"] is not None
    assert any(name.endswith(".onnx") for name in parts["run"]["exported"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu.json"]
    for name in ("row", "run"):
        monkeypatch.setattr(gpu, name, never)
    assert main(["gpu", "--device", "cpu", "--tiny", "--threads", "1", *folders]) == 0
    assert capsys.readouterr().err.count("done before") == 3
