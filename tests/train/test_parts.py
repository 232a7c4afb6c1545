# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A batch in parts has the gradient of the whole batch, whatever mixes its samples."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctkd import builtin
from ctkd.api import Schedule, TeacherOutputs, batch_mean
from ctkd.distributed import all_sum
from ctkd.propagate import trace
from ctkd.randomness import Noise
from ctkd.train.batch import Batch
from ctkd.train.options import TrainOptions
from ctkd.train.parts import backward_in_parts
from ctkd.train.step import Loss, TrainingStep

from .steps import CLASSES, FULL, RAMP, make

BATCH = 7
WARMUP = Schedule(eps=0.0, target=0.05, phase="warmup", epoch=0, step=1)


def teacher(seed: int) -> Any:
    torch.manual_seed(seed)
    hidden, last = nn.Linear(64, 8).double(), nn.Linear(8, CLASSES).double()

    @torch.no_grad()
    def outputs(x: Tensor) -> TeacherOutputs:
        features = hidden(x.flatten(1)).tanh()
        return TeacherOutputs(last(features), features)

    return outputs


class Nested:
    """A method whose sums over the batch depend on one another, three deep, and on what samples have apart."""

    evaluates = frozenset({"box"})
    sound = False

    def needs(self, schedule: Schedule) -> Any:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"adversarial"}), boxes={"full": full_box})

    def combine(self, step: Any) -> Tensor:
        own = step.loss(step["full"])
        mean = batch_mean(own)
        spread = all_sum((own - mean).square().sum())
        third = batch_mean((own / (1 + spread)).square())
        return own * mean + spread.sqrt() * third * step.loss(step["adversarial"])


def compare(
    bound: Any,
    objective: str = "none",
    teachers: int = 0,
    size: int = 3,
    loss: str = "loss",
    batch: int = BATCH,
    seed: int = 0,
    **options: Any,
) -> None:
    torch.manual_seed(3 + seed)
    norm = options.pop("batch_norm", True)
    module = make("model", "cnn-small", channels=3, hidden=8, batch_norm=norm).build((1, 8, 8), CLASSES).double()
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 1, 8, 8, dtype=torch.float64, generator=rng)
    labels = torch.randint(CLASSES, (batch,), generator=rng)
    samples = torch.arange(batch)
    given = TrainOptions(
        **{"eps": 0.05, "shi_weight": 0.5, "kappa_start": 0.3, "kappa_end": 0.2, "l1": 1e-3, "edac": 0.3, **options}
    )

    def steps(size: int | None) -> list[tuple[Loss, list[Tensor]]]:
        net = copy.deepcopy(module).train()
        parameters = list(net.parameters())
        step = TrainingStep(
            graph=trace(net, (1, 8, 8)),
            method=make("bound", bound) if isinstance(bound, str) else bound,
            objective=make("distill", objective),
            attack=make("attack", "pgd", steps=2, restarts=2),
            backend=make("propagation", "native"),
            options=given,
            teachers=[teacher(i) for i in range(teachers)],
        )
        found = []
        for i, schedule in enumerate((WARMUP, replace(RAMP, step=10), replace(FULL, step=11))):
            whole = Batch(x, labels, Noise(0, "test", i, samples=samples))
            plan, compute = step.plan(schedule, attacked=loss == "certainty"), getattr(step, loss)
            net.zero_grad()
            if size is None:
                result = compute(whole, plan, step.prepare(whole, plan))
                result.total.backward()
            else:
                result = backward_in_parts(step, whole, plan, compute, size, parameters)
            for statistics in result.statistics:
                step.graph.update_running(statistics)
            state = [value.clone() for name, value in net.state_dict().items() if "running" in name]
            if hasattr(step.objective, "state_dict"):
                state += [torch.tensor(step.objective.state_dict()[key]) for key in ("weights", "temperatures")]
            found.append((result, [p.grad.clone() for p in parameters if p.grad is not None] + state))
        return found

    for (part, tensors), (whole, expected) in zip(steps(size), steps(None), strict=True):
        close(part.total, whole.total)
        assert len(tensors) == len(expected)
        for left, right in zip(tensors, expected, strict=True):
            close(left, right)
        assert list(part.terms) == list(whole.terms)
        for name, term in whole.terms.items():
            close(part.terms[name], term)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right.detach(), rtol=1e-8, atol=1e-10)


BOUNDS = [entry.name for entry in builtin.ctkd_bound_methods()]
OBJECTIVES = [entry.name for entry in builtin.ctkd_objectives()]


@pytest.mark.parametrize("bound", BOUNDS)
def test_every_method_has_the_whole_gradient(bound: str) -> None:
    compare(bound)


def test_loss_fusion_too() -> None:
    compare(make("bound", "crown-ibp", loss_fusion=True))


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(BOUNDS),
    st.integers(2, 9).flatmap(lambda batch: st.tuples(st.just(batch), st.integers(1, batch - 1))),
    st.sampled_from(["clean", "last-pass"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_any_batch_in_any_parts(
    bound: str, sizes: tuple[int, int], statistics: str, batch_norm: bool, seed: int
) -> None:
    compare(bound, batch=sizes[0], size=sizes[1], statistics=statistics, batch_norm=batch_norm, seed=seed)


@pytest.mark.parametrize("options", [{"statistics": "last-pass"}, {"batch_norm": False}, {"size": 1}, {"size": 6}])
def test_statistics_and_sizes(options: dict[str, Any]) -> None:
    compare("mtl-ibp", **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_and_their_state(objective: str) -> None:
    compare("mtl-ibp", objective, make("distill", objective).teachers)


def test_sums_of_sums() -> None:
    compare(Nested())


@pytest.mark.parametrize("statistics", ["clean", "last-pass"])
def test_the_extra_step_too(statistics: str) -> None:
    compare("adversarial", loss="certainty", statistics=statistics)
