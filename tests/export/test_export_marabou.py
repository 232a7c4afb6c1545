# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The Marabou program reads exported files as what they are, and agrees with our certificates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ctkd.boxes import perturbation_box
from ctkd.export import RobustnessProperty, export_instances, read_vnnlib, runner, write_onnx, write_vnnlib
from ctkd.propagate import Network, crown_pre_activation, relaxed_margins

from .conftest import Answer, Digits, ask

INPUT_TOLERANCE, OUTPUT_TOLERANCE = 1e-6, 1e-4  # Marabou prints six decimals


def test_it_computes_the_same_function(tmp_path: Path, marabou: str, network: Network) -> None:
    """At one point, where the property asked for is violated, so that the outputs are printed."""
    path = tmp_path / "net.onnx"
    write_onnx(network, path)
    run = runner(onnx.load(path))
    for seed in range(2):
        x = torch.rand(1, *network.input_shape, generator=torch.Generator().manual_seed(seed))
        expected = run(x.numpy())[0]
        box = perturbation_box(x, 0.0)
        assert torch.equal(box.lower, x)
        assert torch.equal(box.upper, x)
        flat = x.flatten().numpy()
        prop = RobustnessProperty(flat, flat, int(expected.argmin()), network.classes)
        specification = tmp_path / f"point{seed}.vnnlib"
        specification.write_text(write_vnnlib(prop, eps=0.0))
        answer = ask(marabou, path, specification)
        assert answer.verdict == "sat"
        assert np.abs(answer.x - flat).max() <= INPUT_TOLERANCE
        assert np.abs(answer.y - expected).max() <= 2e-6 * max(1, np.abs(expected).max())


def test_a_negative_zero_and_a_denormal_are_read(tmp_path: Path, marabou: str, trained: dict[str, Network]) -> None:
    write_onnx(trained["mlp"], tmp_path / "net.onnx")
    x = np.zeros(64, np.float32)
    x[:3] = [-0.0, 1e-45, 1e-20]
    expected = runner(onnx.load(tmp_path / "net.onnx"))(x.reshape(1, 1, 8, 8))[0]
    specification = tmp_path / "point.vnnlib"
    specification.write_text(write_vnnlib(RobustnessProperty(x, x, int(expected.argmin()), 10), eps=0.0))
    answer = ask(marabou, tmp_path / "net.onnx", specification)
    assert answer.verdict == "sat"
    assert np.abs(answer.y - expected).max() <= 2e-6 * max(1, np.abs(expected).max())


def certify(network: Network, images: torch.Tensor, labels: torch.Tensor, eps: float) -> torch.Tensor:
    """Which samples CROWN proves, in float64, on exactly the float32 box that is exported."""
    wide = network.to(torch.float64)
    box = perturbation_box(images, eps).to(torch.float64)
    margins = relaxed_margins(wide, crown_pre_activation(wide, box), box, labels)
    return (margins > 0).sum(1) == network.classes - 1


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, marabou: str, trained: dict[str, Network], digits: Digits
) -> list[tuple[Path, Path, bool, Answer]]:
    """Two networks at three radii: model, specification, certified by us, Marabou's answer."""
    result = []
    for kind, network in trained.items():
        right = network(digits.images).argmax(1) == digits.labels
        rows = right.nonzero().flatten()[:3]
        images, labels = digits.images[rows], digits.labels[rows]
        for eps in (0.02, 0.06, 0.3):
            proved = certify(network, images, labels, eps)
            report = export_instances(
                network,
                images,
                labels,
                rows.tolist(),
                eps,
                tmp_path_factory.mktemp("export") / kind,
                name=kind,
                timeout=20,
                certified=rows[proved].tolist(),
            )
            for line, certified in zip(
                (report.folder / "instances.csv").read_text().splitlines(), proved.tolist(), strict=True
            ):
                model, specification, timeout = line.split(",")
                paths = report.folder / model, report.folder / specification
                result.append((*paths, certified, ask(marabou, *paths, int(timeout))))
    return result


def test_both_answers_occur(answers: list[tuple[Path, Path, bool, Answer]]) -> None:
    verdicts = [answer.verdict for *_, answer in answers]
    assert len(verdicts) == 18
    assert set(verdicts) <= {"sat", "unsat", "TIMEOUT"}
    assert min(verdicts.count("sat"), verdicts.count("unsat")) >= 3
    assert sum(certified for *_, certified, _ in answers) >= 3


def test_no_certificate_is_contradicted(answers: list[tuple[Path, Path, bool, Answer]]) -> None:
    assert not [spec.name for _, spec, certified, answer in answers if certified and answer.verdict == "sat"]


def test_every_witness_replays(answers: list[tuple[Path, Path, bool, Answer]]) -> None:
    for model, specification, _, answer in answers:
        if answer.verdict != "sat":
            continue
        prop = read_vnnlib(specification.read_text())
        assert (answer.x >= prop.lower - INPUT_TOLERANCE).all()
        assert (answer.x <= prop.upper + INPUT_TOLERANCE).all()
        run = runner(onnx.load(model))
        logits = run(np.clip(answer.x, prop.lower, prop.upper).reshape(1, 1, 8, 8))[0]
        assert np.delete(logits, prop.label).max() >= logits[prop.label] - OUTPUT_TOLERANCE
        assert np.abs(logits - answer.y).max() <= OUTPUT_TOLERANCE


def test_it_proves_what_we_prove(tmp_path: Path, marabou: str, network: Network) -> None:
    """Each kind of network around one point, where its own class wins."""
    write_onnx(network, tmp_path / "net.onnx")
    x = torch.rand(1, *network.input_shape, generator=torch.Generator().manual_seed(4))
    label = network(x).argmax(1)
    eps = next(eps for eps in (0.02, 0.005, 0.001, 1e-4) if certify(network, x, label, eps))
    box = perturbation_box(x, eps)
    prop = RobustnessProperty(box.lower.flatten().numpy(), box.upper.flatten().numpy(), int(label), network.classes)
    (tmp_path / "box.vnnlib").write_text(write_vnnlib(prop, eps=eps))
    assert ask(marabou, tmp_path / "net.onnx", tmp_path / "box.vnnlib").verdict == "unsat"
