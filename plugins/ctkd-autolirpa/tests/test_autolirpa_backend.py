# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training bounds: those of ctkd's engine where it has the same relaxations, and bounds where it has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from autolirpa_nets import EQUAL, FOREIGN, OTHERS, SOFTPLUS, Net, batch, cases, least_margins, mlp, module, network
from ctkd_autolirpa.backend import AutoLirpa
from ctkd_autolirpa.options import BackendOptions
from torch import Tensor, nn

from ctkd.api import Needs, PropagationBackend, cross_entropy
from ctkd.boxes import Box, perturbation_box
from ctkd.errors import BadInput
from ctkd.options import Options
from ctkd.propagate import Network, at_classes, margin_specification, trace
from ctkd.propagate.native import Native
from ctkd.run import train

QUICK = {
    "train.epochs": 1,
    "train.warmup": 0,
    "train.ramp": 1.0,
    "train.threads": 1,
    "train.batch_size": 128,
    "attack.steps": 1,
    "teacher.name": "none",
    "certify.samples": 8,
    "certify.attack_steps": 2,
    "export.samples": 1,
}


@pytest.fixture(scope="module")
def backend() -> AutoLirpa:
    return AutoLirpa(BackendOptions())


def relaxed(
    backend: PropagationBackend, found: Network, bounds: dict[int, tuple[Tensor, Tensor]], box: Box, labels: Tensor
) -> Tensor:
    rows, others = margin_specification(labels, found.classes, box.lower.dtype)
    return at_classes(backend.relaxed_lower(found, bounds, box, rows), others)


def training_step(backend: PropagationBackend, made: nn.Module, shape: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """What a step computes, and the gradient of its losses with respect to all parameters."""
    made.train()
    made.zero_grad()
    x, labels = batch(shape)
    graph = backend.trace(made, shape)
    found = graph.bind(backend.clean_pass(graph, x).statistics)
    box = perturbation_box(x, 0.05)
    flow = backend.propagate(found, x, box, Needs())
    interval, _ = backend.interval_margins(found, flow, labels)
    backward = relaxed(backend, found, flow.pre_activation, box, labels)
    parts = [
        flow.value,
        flow.radius,
        interval,
        backward,
        *(end for pair in flow.pre_activation.values() for end in pair),
    ]
    if flow.features is not None and flow.feature_radius is not None:
        parts += [flow.features, flow.feature_radius]
    loss = cross_entropy(interval).mean() + cross_entropy(backward).mean() + flow.value[:3].square().mean()
    loss.backward()
    return parts, torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", EQUAL)
def test_a_step_is_that_of_the_native_engine(backend: AutoLirpa, name: str) -> None:
    made, shape = module(EQUAL[name])
    ours, gradient = training_step(backend, made, shape)
    theirs, expected = training_step(Native(Options()), made, shape)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert close(gradient, expected)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", [*OTHERS, *FOREIGN])
def test_bounds_hold_and_gradients_reach_all_parameters(backend: AutoLirpa, name: str) -> None:
    net = (OTHERS | FOREIGN)[name]
    for found, box, labels in cases(net):
        flow = backend.propagate(found, None, box, Needs())
        least = least_margins(found, box, labels)
        for bound in (
            backend.interval_margins(found, flow, labels)[0],
            relaxed(backend, found, flow.pre_activation, box, labels),
        ):
            assert bool((bound <= least + 1e-9).all())
    made, shape = module(net)
    _, gradient = training_step(backend, made, shape)
    assert gradient.isfinite().all()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_networks_of_one_structure_are_traced_once_and_not_confused(backend: AutoLirpa) -> None:
    first, second = (network(mlp(nn.ReLU), seed) for seed in (5, 6))
    x, _ = batch((5,))
    box = perturbation_box(x, 0.1)
    backend.engine.traced.clear()
    for found in (first, second, first):
        flow, native = (b.propagate(found, None, box, Needs()) for b in (backend, Native(Options())))
        assert close(flow.radius, native.radius)
    assert len(backend.engine.traced) == 1
    backend.propagate(network(mlp(nn.Tanh)), None, box, Needs())
    assert len(backend.engine.traced) == 2


def test_the_backward_pass_starts_from_the_bounds_it_is_given(backend: AutoLirpa) -> None:
    for net in (EQUAL["residual"], EQUAL["mlp"]):
        found, box, labels = list(cases(net))[1]
        given = Native(Options()).propagate(found, None, box, Needs()).pre_activation
        tight = {i: (low + (high - low) / 4, high - (high - low) / 4) for i, (low, high) in given.items()}
        ours, theirs = (relaxed(b, found, tight, box, labels) for b in (backend, Native(Options())))
        assert close(ours, theirs)
        assert not close(ours, relaxed(backend, found, given, box, labels))


def test_crown_instead_of_intervals(backend: AutoLirpa) -> None:
    crown = AutoLirpa(BackendOptions(intermediate="crown"))
    gained = 0.0
    for net in (EQUAL["residual"], EQUAL["mlp"], FOREIGN["silu"]):
        for found, box, labels in cases(net):
            bounds = backend.propagate(found, None, box, Needs()).pre_activation
            tight = relaxed(crown, found, bounds, box, labels)
            assert bool((tight <= least_margins(found, box, labels) + 1e-9).all())
            gained += float((tight - relaxed(backend, found, bounds, box, labels)).mean())
        made, shape = module(net)
        assert training_step(crown, made, shape)[1].isfinite().all()
    assert gained > 0.1


def refused(net: Net, backend: PropagationBackend) -> str:
    made, shape = module(net)
    with pytest.raises(BadInput) as caught:
        training_step(backend, made, shape)
    return str(caught.value.messages[0])


def test_refusals(backend: AutoLirpa) -> None:
    message = refused(SOFTPLUS["softplus"], backend)
    assert message.startswith("layer '3': auto_LiRPA 0.")
    assert "has no such bounds: NotImplementedError: Function `bound_relax` of `BoundSoftplus" in message
    assert "\n" not in message
    for name, net in (FOREIGN | SOFTPLUS).items():
        what = "a product or quotient" if name == "product" else f"{name} is not supported by this propagation backend"
        assert what in refused(net, Native(Options()))
    assert "GELU is not supported" in refused(mlp(nn.GELU), backend)


def test_intervals_of_softplus(backend: AutoLirpa) -> None:
    for found, box, labels in cases(SOFTPLUS["softplus"]):
        flow = backend.propagate(found, None, box, Needs())
        margins, _ = backend.interval_margins(found, flow, labels)
        assert bool((margins <= least_margins(found, box, labels) + 1e-12).all())
    # PyTorch's softplus jumps down at 20, and one that is bounded must not.
    x = torch.linspace(19.9999, 20.0001, 3, dtype=torch.float64).reshape(-1, 1)
    jump = trace(nn.Sequential(nn.Softplus(), nn.Linear(1, 2)).double(), (1,), functions=True).bind().detach()
    flow = backend.propagate(jump, None, Box(x[:1], x[2:]), Needs())
    assert flow.features is not None
    assert flow.feature_radius is not None
    assert float(flow.features + flow.feature_radius) >= float(torch.log1p(x[2].exp()))


@pytest.mark.parametrize("bound", ["cc-ibp", "crown-ibp"])
def test_a_run_is_that_of_the_native_engine(tmp_path: Path, bound: str) -> None:
    metrics: list[dict[str, Any]] = []
    for propagation in ("native", "autolirpa"):
        settings = {**QUICK, "bound.name": bound, "model.name": "resnet", "propagation.name": propagation}
        folder, _ = train(settings=settings, out=tmp_path / propagation, certify=False)
        metrics.append(json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[-1]))
    native, ours = metrics
    # In float32, where small radii are differences of large bounds: not as exact as ctkd's centres and radii.
    assert ours["losses"] == pytest.approx(native["losses"], rel=1e-3)
    # Two of 90 images, whose logits may be as good as equal.
    assert ours["validation"]["natural_accuracy"] == pytest.approx(native["validation"]["natural_accuracy"], abs=0.025)


def silu_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, 10))


def test_a_network_that_the_native_engine_refuses_is_trained_and_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = {
        **QUICK,
        "bound.name": "crown-ibp",
        "model.name": "test_autolirpa_backend:silu_net",
        "propagation.name": "autolirpa",
        "train.eps": 0.01,
        "train.epochs": 3,
        "train.batch_size": 64,
        "certify.stages": ["autolirpa-crown-ibp", "autolirpa-alpha-crown"],
    }
    with pytest.warns(UserWarning, match="not exported: layer '2' has no ONNX form"):
        folder, summary = train(settings=settings, out=tmp_path / "run")
    assert summary["certified_accuracy"] > 0
    stored = Network.load(folder.network)
    assert stored.sha256() == summary["student_sha256"]
    with pytest.raises(BadInput, match="silu is not supported by this propagation backend"):
        train(settings={**settings, "propagation.name": "native"}, out=tmp_path / "native")
