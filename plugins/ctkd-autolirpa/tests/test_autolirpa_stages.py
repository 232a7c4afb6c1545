# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certification stages: equal to ctkd's where they are the same, sound everywhere, and harmless where they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from autolirpa_nets import EQUAL, FOREIGN, OTHERS, SOFTPLUS, Apply, batch, cases, cnn, least_margins, mlp, network
from ctkd_autolirpa.engine import Engine
from ctkd_autolirpa.options import AlphaOptions
from ctkd_autolirpa.stages import AlphaCrownStage, CrownIBPStage, CrownStage, IBPStage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput, RunFailed
from ctkd.options import Options
from ctkd.propagate import Network, interval_margins, propagate, relaxed_margins
from ctkd.run import train

STAGES: dict[str, Any] = {
    "ibp": IBPStage(Options()),
    "crown-ibp": CrownIBPStage(Options()),
    "crown": CrownStage(Options()),
    "alpha-crown": AlphaCrownStage(AlphaOptions(iterations=5)),
}
NETS = EQUAL | OTHERS | FOREIGN


@pytest.mark.parametrize("name", EQUAL)
def test_margins_are_those_of_the_native_stages(name: str) -> None:
    for found, box, labels in cases(EQUAL[name]):
        flow = propagate(found, None, box)
        backward = relaxed_margins(found, flow.pre_activation, box, labels)
        assert torch.allclose(
            STAGES["ibp"].margins(found, box, labels), interval_margins(found, flow, labels)[0], atol=1e-10
        )
        assert torch.allclose(STAGES["crown-ibp"].margins(found, box, labels), backward, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_margins_hold_at_every_sampled_point(name: str) -> None:
    for found, box, labels in cases(NETS[name]):
        least = least_margins(found, box, labels)
        for stage in STAGES.values():
            margins = stage.margins(found, box, labels)
            assert margins.dtype == torch.float64
            assert bool((margins <= least + 1e-10 * (1 + least.abs())).all())
            assert not margins.gather(1, labels[:, None]).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 0.5), name=st.sampled_from(sorted(FOREIGN)))
def test_margins_of_foreign_functions_hold(seed: int, eps: float, name: str) -> None:
    found = network(FOREIGN[name], seed)
    x, labels = batch(found.input_shape, seed)
    box = perturbation_box(x, eps)
    least = least_margins(found, box, labels)
    for stage in ("crown-ibp", "crown"):
        assert bool((STAGES[stage].margins(found, box, labels) <= least + 1e-10 * (1 + least.abs())).all())


def test_stages_are_in_the_order_of_their_names() -> None:
    mean = dict.fromkeys(STAGES, 0.0)
    for net in (EQUAL["mlp"], EQUAL["batch norm"], EQUAL["residual"]):
        for found, box, labels in cases(net):
            for name, stage in STAGES.items():
                mean[name] += float(stage.margins(found, box, labels).mean())
    assert mean["ibp"] < mean["crown-ibp"] < mean["crown"] < mean["alpha-crown"]


def test_alpha_crown_is_never_below_crown() -> None:
    for net in NETS.values():
        found, box, labels = list(cases(net))[1]
        crown = STAGES["crown"].margins(found, box, labels)
        assert bool((STAGES["alpha-crown"].margins(found, box, labels) >= crown - 1e-12).all())


def test_float64_is_kept() -> None:
    """Bounds in float32 differ from those in float64, which are equal to ctkd's (above), by the former's rounding."""
    found, box, labels = list(cases(EQUAL["residual"]))[1]
    margins = STAGES["crown-ibp"].margins(found, box, labels)
    single = STAGES["crown-ibp"].margins(found.to(torch.float32), box.to(torch.float32), labels)
    assert single.dtype == torch.float32
    assert 1e-9 < float((margins - single).abs().max()) < 1e-4


def test_other_precisions_are_refused() -> None:
    found, box, labels = next(cases(EQUAL["mlp"]))
    with pytest.raises(BadInput, match=r"float32 or float64, not in torch\.bfloat16"):
        STAGES["ibp"].margins(found.to(torch.bfloat16), box.to(torch.bfloat16), labels)


def test_infinite_bounds_prove_nothing_and_spoil_no_other_sample() -> None:
    layers = [nn.Linear(5, 8), Apply(torch.exp), nn.Linear(8, 7), Apply(torch.abs), nn.Linear(7, 4)]
    found, box, labels = next(cases(lambda: (nn.Sequential(*layers), (5,))))
    far = Box(box.lower.clone(), box.upper.clone())
    far.upper[1] = 1e4
    for name, stage in STAGES.items():
        margins, usual = stage.margins(found, far, labels), stage.margins(found, box, labels)
        others = [0, 2, 3, 4]
        assert torch.allclose(margins[others], usual[others], atol=1e-3 if name == "alpha-crown" else 1e-10)
        assert margins[1].scatter(0, labels[1], -torch.inf).isneginf().all()


def test_a_wrong_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Engine.lower

    def wrong(self: Engine, *args: Any, **kwargs: Any) -> Tensor:
        return right(self, *args, **kwargs) + 1e3

    monkeypatch.setattr(Engine, "lower", wrong)
    found, box, labels = next(cases(EQUAL["mlp"]))
    with pytest.raises(RunFailed, match=r"auto_LiRPA 0.* gave a wrong bound \(CROWN-IBP\): .* nothing was certified"):
        STAGES["crown-ibp"].margins(found, box, labels)


def test_what_auto_lirpa_would_bound_wrongly_is_refused() -> None:
    for pool in (nn.MaxPool2d(2, 2, 1), nn.MaxPool2d(3, 2)):
        found = network(lambda pool=pool: cnn(nn.ReLU(), pool))  # type: ignore[misc]
        x, labels = batch(found.input_shape)
        box = perturbation_box(x, 0.1)
        with pytest.raises(
            BadInput, match="layer '2': auto_LiRPA has backward bounds of max pooling only where windows"
        ):
            STAGES["crown-ibp"].margins(found, box, labels)
        least = least_margins(found, box, labels)
        assert bool((STAGES["ibp"].margins(found, box, labels) <= least + 1e-12).all())


def test_an_operator_without_backward_bounds_is_named() -> None:
    found, box, labels = next(cases(SOFTPLUS["softplus"]))
    assert STAGES["ibp"].margins(found, box, labels).isfinite().all()
    for name in ("crown-ibp", "crown", "alpha-crown"):
        with pytest.raises(BadInput, match=r"layer '\d': auto_LiRPA 0\.\S+ has no such bounds: .*BoundSoftplus"):
            STAGES[name].margins(found, box, labels)


def test_samples_are_done_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    found, box, labels = next(cases(EQUAL["mlp"]))
    whole = {name: stage.margins(found, box, labels) for name, stage in STAGES.items() if name != "alpha-crown"}
    monkeypatch.setattr("ctkd_autolirpa.stages.ELEMENTS", 1)
    for name, margins in whole.items():
        assert torch.allclose(STAGES[name].margins(found, box, labels), margins, atol=1e-12)
    assert STAGES["ibp"].margins(found, box[:0], labels[:0]).shape == (0, found.classes)


def test_networks_stay_as_they_are() -> None:
    found: Network = network(mlp(nn.ReLU))
    before = found.sha256()
    x, labels = batch((5,))
    for stage in STAGES.values():
        stage.margins(found, perturbation_box(x, 0.1), labels)
    assert found.sha256() == before
    assert not any(tensor.requires_grad for node in found.nodes if node.op for _, tensor in node.op.tensors())


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "certify.stages: ibp: "),
        ({"bound.name": "forwabs", "certify.stages": ["autolirpa-ibp"]}, "bound.name=forwabs knows no widths through"),
        ({"bound.name": "singleprop", "certify.stages": ["autolirpa-ibp"]}, "has rules for ReLUs only"),
    ],
)
def test_what_does_not_know_a_function_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], words: str
) -> None:
    (tmp_path / "smooth_nets.py").write_text(
        "from torch import nn\n\n\ndef smooth():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    common = {"model.name": "smooth_nets:smooth", "propagation.name": "autolirpa", "teacher.name": "none"}
    with pytest.raises(BadInput, match=words):
        train(settings={"bound.name": "ibp", **common, **chosen}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
