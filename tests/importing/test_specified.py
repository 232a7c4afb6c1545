# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""VNN-LIB specifications by ctkd's own stages: against what every sampled input says, and as a verifier."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctkd.api import Found
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.specified import MOST_ROWS, settle, specified
from ctkd.certify.stages import CrownIBPStage, CrownStage, IBPStage
from ctkd.errors import BadInput
from ctkd.export import RobustnessProperty, write_vnnlib
from ctkd.export.onnx_writer import to_onnx
from ctkd.options import Options
from ctkd.plugins import create_from
from ctkd.propagate import Network, margins_of
from ctkd.testing.nets import NETS, batch, network
from ctkd.verifiers.own import Own, OwnOptions
from ctkd.verifying import Query
from ctkd.vnnlib import Specification, parse_specification

from .models import model, node, written

STAGES = {"ibp": IBPStage(Options()), "crown-ibp": CrownIBPStage(Options()), "crown": CrownStage(Options())}


def attack(steps: int = 20) -> Any:
    return create_from(
        "attack", {"name": "pgd", "objective": "margin", "steps": steps, "restarts": 2, "step_size": 0.2}
    )


def text(lower: Any, upper: Any, outputs: int, formula: str) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    lines += [f"(assert (>= X_{i} {v:.17f}))" for i, v in enumerate(lower)]
    lines += [f"(assert (<= X_{i} {v:.17f}))" for i, v in enumerate(upper)]
    return "\n".join([*lines, f"(assert {formula})"])


def sampled(net: Network, specification: Specification, count: int = 200) -> bool:
    """Whether a random input or corner of a box violates it, in float64."""
    generator = np.random.default_rng(0)
    for box in specification.boxes:
        lower, upper = box.inner
        for k in range(count):
            share = generator.random(len(lower))
            x = lower + (share if k % 2 else share.round()) * (upper - lower)
            x = np.clip(x, lower, upper)
            with torch.no_grad():
                y = net.to(torch.float64)(torch.from_numpy(x).reshape(1, *net.input_shape))[0].numpy()
            if specification.violated(x, y):
                return True
    return False


@pytest.mark.parametrize("name", NETS)
def test_robustness_is_settled_as_by_the_cascade(name: str) -> None:
    net = network(name, trained=True, dtype=torch.float32)
    x, labels = batch(torch.float32, size=6)
    box = perturbation_box(x, 0.03)
    verdicts = []
    for k, label in enumerate(labels.tolist()):
        flat = [part[k].reshape(-1).numpy() for part in (box.lower, box.upper)]
        read = parse_specification(write_vnnlib(RobustnessProperty(*flat, label, net.classes), eps=0.03))
        found = settle(net, read, STAGES, attack())
        verdicts.append(found.verdict)
        wide, one = net.to(torch.float64), box[k : k + 1].to(torch.float64)
        margins = STAGES["crown"].margins(wide, one, labels[k : k + 1])
        others = torch.arange(net.classes) != label
        if found.verdict == "verified":
            assert found.lower is not None
            assert found.lower > 0
            assert found.stage in STAGES
        if found.verdict == "unknown":
            assert found.lower == pytest.approx(float(margins[0, others].min()), abs=1e-9)
        if found.verdict == "falsified":
            assert found.witness is not None
            assert read.inside(found.witness)
            y = net(torch.from_numpy(found.witness).float().reshape(1, *net.input_shape))
            assert float(margins_of(y, labels[k : k + 1])[0, others].min()) <= 0
        else:
            assert not sampled(net, read, 40)
    assert len(set(verdicts)) > 1 or name in ("narrow", "linear")


FORMULAS = st.recursive(
    st.builds(
        lambda a, b, sign, c: f"({sign} (+ (* {a} Y_0) (* {b} Y_1) (* -1 Y_2)) {c})",
        st.integers(-2, 2),
        st.integers(-2, 2),
        st.sampled_from(["<=", ">="]),
        st.floats(-3, 3).map(lambda v: f"{v:.3f}"),
    ),
    lambda inner: st.builds(
        lambda word, parts: f"({word} {' '.join(parts)})",
        st.sampled_from(["and", "or"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(FORMULAS, st.integers(0, 50), st.sampled_from([0.01, 0.1, 0.5]))
def test_no_verified_formula_is_violated_and_every_witness_is_one(formula: str, seed: int, eps: float) -> None:
    """Any formula of linear comparisons; verified where no disjunct can be reached."""
    generator = np.random.default_rng(seed)
    net = random_network(seed)
    x = generator.random(4)
    specification = parse_specification(text(x - eps, x + eps, 3, formula))
    found = settle(net, specification, STAGES, attack(5))
    if found.verdict == "verified":
        assert not sampled(net, specification)
    elif found.verdict == "falsified":
        assert found.witness is not None
        assert specification.inside(found.witness)
    else:
        assert found.verdict == "unknown"


def random_network(seed: int) -> Network:
    from ctkd.train.finish import finalise

    torch.manual_seed(seed)
    layers = [torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)]
    if seed % 3 == 0:
        layers.append(torch.nn.LeakyReLU(0.2))  # no last affine layer to join with
    return finalise(torch.nn.Sequential(*layers), (4,))


@pytest.mark.parametrize(
    ("formula", "verdict"),
    [
        ("(and (<= Y_0 1) (<= Y_1 1))", "verified"),
        ("(or (<= Y_0 -1) (<= Y_1 1))", "verified"),
        ("(or (<= Y_0 1) (<= Y_1 1))", "falsified"),
        ("(<= Y_0 0.0)", "falsified"),  # a tie is a violation
    ],
)
def test_a_conjunction_needs_one_row_and_a_disjunction_all(formula: str, verdict: str) -> None:
    """Y_0 is 0, and Y_1 is 5."""
    net = specified(random_network(1).to(torch.float64), torch.zeros(1, 3).double(), torch.tensor([5.0]).double())
    found = settle(
        net.to(torch.float32), parse_specification(text([0.0] * 4, [1.0] * 4, 2, formula)), STAGES, attack(3)
    )
    assert found.verdict == verdict


def test_every_disjunct_of_a_disjunction_has_to_be_out_of_reach() -> None:
    net = specified(random_network(1).to(torch.float64), torch.zeros(1, 3).double(), torch.tensor([5.0]).double())
    read = parse_specification(text([0.0] * 4, [1.0] * 4, 2, "(or (<= Y_0 1) (<= Y_1 1))"))
    found = settle(net.to(torch.float32), read, STAGES, None)
    assert (found.verdict, found.lower) == ("unknown", -1.0)


def test_several_boxes_are_all_settled() -> None:
    net = random_network(1)
    one, two = "(and (<= X_0 0.1) (<= Y_0 -100))", "(and (>= X_0 0.9) (<= Y_0 1000))"
    read = parse_specification(text([0.0] * 4, [1.0] * 4, 3, f"(or {one} {two})"))
    assert len(read.boxes) == 2
    found = settle(net, read, STAGES, attack(3))
    assert found.verdict == "falsified"
    assert found.witness is not None
    assert found.witness[0] >= 0.9
    other = parse_specification(text([0.0] * 4, [1.0] * 4, 3, f"(or {one} {two.replace('1000', '-100')})"))
    assert settle(net, other, STAGES, attack(3)).verdict == "verified"


def test_time_that_is_over_is_a_timeout() -> None:
    read = parse_specification(text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 -100)"))
    found = settle(random_network(1), read, STAGES, attack(3), stop=lambda: True)
    assert found.verdict == "timeout"
    assert found.lower is None


def test_a_stage_that_refuses_is_passed_over_and_nan_proves_nothing() -> None:
    class Refuses:
        def margins(self, *_: Any) -> Any:
            raise BadInput("no such layer")

    class Nonsense:
        def margins(self, net: Network, *_: Any) -> Any:
            return torch.full((1, net.classes), torch.nan, dtype=torch.float64)

    read = parse_specification(text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 -100)"))
    found = settle(random_network(1), read, {"a": Refuses(), "b": Nonsense()}, None)  # type: ignore[dict-item]
    assert (found.verdict, found.refused) == ("unknown", {"a": "no such layer"})


def test_stages_bound_the_whole_exact_box() -> None:
    """Decimals such as 0.1 are no doubles: the box of the stages is rounded outward."""
    boxes = []

    class Watched:
        def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
            boxes.append(box)
            return torch.ones(1, net.classes, dtype=torch.float64)

    read = parse_specification(text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 0)").replace("X_0 0.00", "X_0 0.1000"))
    settle(random_network(1), read, {"watched": Watched()}, None)
    (box,), (exact,) = boxes, read.boxes
    assert exact.lower[0] == Fraction(1, 10) != Fraction(0.1)
    assert all(Fraction(v) <= end for v, end in zip(box.lower.flatten().tolist(), exact.lower, strict=True))
    assert all(Fraction(v) >= end for v, end in zip(box.upper.flatten().tolist(), exact.upper, strict=True))


@pytest.mark.parametrize("formula", ["(<= Y_0 -100)", "(>= Y_0 -100)"])
def test_what_a_stage_calls_a_violation_is_replayed(formula: str) -> None:
    class Points:
        def search(self, net: Network, box: Box, labels: torch.Tensor, stop: Any) -> Found:
            lower = torch.full((1, net.classes), -torch.inf, dtype=torch.float64)
            return Found(lower, points=box.upper + 5)

    read = parse_specification(text([0.0] * 4, [1.0] * 4, 3, formula))
    found = settle(random_network(1), read, {"points": Points()}, None)  # type: ignore[dict-item]
    if formula.startswith("(<="):
        assert (found.verdict, found.witness) == ("unknown", None)
    else:
        assert (found.verdict, found.stage) == ("falsified", "points")
        assert found.witness is not None
        assert read.inside(found.witness)


def test_a_specification_for_another_network_and_too_many_rows_are_refused() -> None:
    with pytest.raises(BadInput, match="it is about 5 inputs and 3 outputs, the model has 4 and 3"):
        settle(random_network(1), parse_specification(text([0.0] * 5, [1.0] * 5, 3, "(<= Y_0 0)")), STAGES, None)
    many = " ".join(f"(<= Y_0 -{k}.5)" for k in range(MOST_ROWS + 1))
    with pytest.raises(BadInput, match=f"has {MOST_ROWS + 1} different constraints about one box; at most {MOST_ROWS}"):
        settle(random_network(1), parse_specification(text([0.0] * 4, [1.0] * 4, 3, f"(or {many})")), STAGES, None)


# The verifier --------------------------------------------------------------------------------------------


def query(tmp_path: Path, model_path: Path, spec: str, timeout: float = 30.0) -> Query:
    (tmp_path / "spec.vnnlib").write_text(spec)
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return Query(model_path, tmp_path / "spec.vnnlib", timeout, tmp_path / "scratch")


def test_the_verifier_answers(tmp_path: Path) -> None:
    net = random_network(1)
    path = written(tmp_path / "m.onnx", to_onnx(net))
    verifier = Own(OwnOptions())
    assert "torch" in verifier.check()
    answer = verifier.verify(query(tmp_path, path, text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 -100)")))
    assert answer.verdict == "verified"
    answer = verifier.verify(query(tmp_path, path, text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 100)")))
    assert answer.verdict == "falsified"
    assert answer.witness is not None
    assert answer.witness.shape == (4,)
    answer = verifier.verify(query(tmp_path, path, text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 -100)"), timeout=0.0))
    assert answer.verdict == "timeout"


def test_the_verifier_says_what_it_cannot_read(tmp_path: Path) -> None:
    verifier = Own(OwnOptions())
    bad = written(tmp_path / "bad.onnx", model([node("Elu", "x", "y")], {}, shape=("n", 4), out=("n", 4)))
    answer = verifier.verify(query(tmp_path, bad, text([0.0] * 4, [1.0] * 4, 4, "(<= Y_0 0)")))
    assert answer.verdict == "error"
    assert "(Elu): no operator that is bounded here" in answer.message
    good = written(tmp_path / "m.onnx", to_onnx(random_network(1)))
    answer = verifier.verify(query(tmp_path, good, "(assert nonsense)"))
    assert answer.verdict == "error"
    answer = Own(OwnOptions(stages=("nothing",))).verify(
        query(tmp_path, good, text([0.0] * 4, [1.0] * 4, 3, "(<= Y_0 -100)"))
    )
    assert answer.verdict == "error"


def test_a_model_that_changed_is_read_again(tmp_path: Path) -> None:
    verifier, x = Own(OwnOptions()), np.full(4, 0.5)
    path = written(tmp_path / "m.onnx", to_onnx(random_network(1)))
    first = verifier.outputs(path, x)
    written(path, to_onnx(random_network(2)))
    assert not np.allclose(first, verifier.outputs(path, x))
