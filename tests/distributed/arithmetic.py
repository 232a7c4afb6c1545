# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Run by two processes: steps on slices of a batch against the same steps on the whole batch, in float64."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctkd import distributed
from ctkd.accuracy import adversarial_accuracy, interval_report
from ctkd.api import Data, Needs, Split, Step, TeacherOutputs, full_box
from ctkd.data.augment import crop_and_flip
from ctkd.distributed import all_sum, apart, batch_mean, check_same, from_leader, gathered, share, sum_gradients, world
from ctkd.errors import RunFailed
from ctkd.interrupt import StopRequest
from ctkd.progress import Silent
from ctkd.propagate import trace
from ctkd.randomness import Noise
from ctkd.train.finish import population_statistics
from ctkd.train.loop import Plugins, Trainer
from ctkd.train.options import TrainOptions
from ctkd.train.step import Loss, TrainingStep, gradient_norms

from ..train.steps import FULL, RAMP, make

BATCH, CLASSES = 7, 4  # slices of 3 and 4


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left.detach(), right.detach(), rtol=1e-10, atol=1e-12)


class LocalMean:
    """A bound method whose scalar is a mean over the samples that it sees."""

    evaluates = frozenset({"box"})
    sound = True

    def needs(self, schedule: Any) -> Needs:
        return Needs(boxes={"full": full_box})

    def combine(self, step: Step) -> Tensor:
        return step.loss(step["full"]).mean()


def teacher(seed: int) -> Callable[[Tensor], TeacherOutputs]:
    torch.manual_seed(seed)
    hidden, last = nn.Linear(64, 8).double(), nn.Linear(8, CLASSES).double()

    @torch.no_grad()
    def outputs(x: Tensor) -> TeacherOutputs:
        features = hidden(x.flatten(1)).tanh()
        return TeacherOutputs(last(features), features)

    return outputs


def compare(bound: Any, objective: str = "none", teachers: int = 0, batch_norm: bool = True, **options: Any) -> None:
    """Two steps, with whatever state the objective keeps."""
    torch.manual_seed(3)
    module = make("model", "cnn-small", channels=3, hidden=8, batch_norm=batch_norm).build((1, 8, 8), CLASSES).double()
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64, generator=rng)
    labels = torch.randint(CLASSES, (BATCH,), generator=rng)
    given = TrainOptions(
        **{"eps": 0.05, "shi_weight": 0.5, "kappa_start": 0.3, "kappa_end": 0.2, "l1": 1e-3, **options}
    )

    def steps(rows: Tensor) -> list[tuple[Loss, dict[str, float], list[Tensor]]]:
        net = copy.deepcopy(module).train()
        parameters = list(net.parameters())
        step = TrainingStep(
            graph=trace(net, (1, 8, 8)),
            method=make("bound", bound) if isinstance(bound, str) else bound,
            objective=make("distill", objective),
            attack=make("attack", "pgd", steps=2),
            backend=make("propagation", "native"),
            options=given,
            teachers=[teacher(i) for i in range(teachers)],
        )
        found = []
        for i, schedule in enumerate((replace(RAMP, step=10), replace(FULL, step=11))):
            loss = step(x[rows], labels[rows], schedule, Noise(0, "test", i, samples=rows))
            norms = gradient_norms(loss, parameters)
            net.zero_grad()
            (loss.total / world()).backward()
            sum_gradients(parameters)
            for statistics in loss.statistics:
                step.graph.update_running(statistics)
            state = [value.clone() for name, value in net.state_dict().items() if "running" in name]
            found.append((loss, norms, [p.grad.clone() for p in parameters if p.grad is not None] + state))
        return found

    with apart():
        expected = steps(torch.arange(BATCH))
    shared = steps(torch.arange(BATCH)[share(BATCH)])
    for (loss, norms, tensors), (whole, whole_norms, whole_tensors) in zip(shared, expected, strict=True):
        close(loss.total, whole.total)
        assert len(tensors) == len(whole_tensors)
        for left, right in zip(tensors, whole_tensors, strict=True):
            close(left, right)
        assert list(norms) == list(whole_norms)
        for name, norm in norms.items():
            assert abs(norm - whole_norms[name]) <= 1e-9 * max(1, whole_norms[name]), name
        for name, term in loss.terms.items():
            each = batch_mean(term.expand(share(BATCH).stop - share(BATCH).start) if term.dim() == 0 else term)
            close(each, whole.terms[name].mean())


def means() -> None:
    """Means and sums with slices of two sizes, in float32 and bfloat16, twice differentiated."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        rng = torch.Generator().manual_seed(1)
        values = torch.rand(515, 3, 2, generator=rng).to(dtype)
        mine = values[share(515)]
        for dim in (None, 0, [0, 2]):
            expected = values.mean() if dim is None else values.mean(dim)
            torch.testing.assert_close(batch_mean(mine, dim), expected, rtol=tolerance, atol=tolerance)
    with apart():
        assert batch_mean(values) == values.mean()
    assert torch.equal(all_sum(torch.tensor([1.0 + distributed.rank()])), torch.tensor([3.0]))
    assert gathered(distributed.rank()) == [0, 1]
    assert from_leader(lambda: distributed.rank() + 5) == 5
    assert distributed.greatest(distributed.rank(), 1 - distributed.rank(), 0) == [1, 1, 0]
    x = torch.tensor([2.0 + distributed.rank()], dtype=torch.float64, requires_grad=True)
    # (x0^2 + x1^2)^2, each process's half of it: slopes 4 x s, curvature summed over both is 4 s + 8 x (x0 + x1).
    total = all_sum(x.square()).square() / 2
    (slope,) = torch.autograd.grad(total, x, create_graph=True)
    close(slope, 4 * x * 13)
    (curvature,) = torch.autograd.grad(slope, x)
    close(curvature, 4 * 13 + 8 * x * 5)


def accuracies() -> None:
    """Reports of a part of the samples each; the last batch is smaller than the number of processes."""
    torch.manual_seed(5)
    module = make("model", "cnn-small", channels=3, hidden=8).build((1, 8, 8), CLASSES).eval()
    images = torch.rand(41, 1, 8, 8)
    with torch.no_grad():  # so that it does not predict one class everywhere
        module[-1].bias -= module(images).mean(0)
    network = trace(module, (1, 8, 8)).bind().detach()
    split = Split(images, network(images).argmax(1))
    attack = make("attack", "pgd", steps=3)

    def figures() -> tuple[float, dict[str, Any]]:
        return adversarial_accuracy(network, split, 0.05, attack, 0, 20), interval_report(network, split, 0.01, 20)

    with apart():
        expected = figures()
    robust, report = figures()
    assert 0 < robust == expected[0] < 1, (robust, expected[0])
    for path, layer in report.pop("layers").items():
        for name, value in layer.items():
            assert abs(value - expected[1]["layers"][path][name]) < 1e-6
    expected[1].pop("layers")
    assert report == expected[1]


def statistics() -> None:
    """Population statistics of global batches."""
    torch.manual_seed(6)
    module = make("model", "cnn-small", channels=3, hidden=8).build((1, 8, 8), CLASSES).double().train()
    other, x = copy.deepcopy(module), torch.rand(2, BATCH, 1, 8, 8, dtype=torch.float64)
    with apart():
        population_statistics(trace(module, (1, 8, 8)), iter(x))
    population_statistics(trace(other, (1, 8, 8)), iter(x[:, share(BATCH)]))
    for left, right in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        close(left.double(), right.double())


def augmented() -> None:
    """Images that change at random are changed alike, in each epoch anew, and each process sees its slice of them."""
    rng = torch.Generator().manual_seed(7)
    splits = [Split(torch.rand(16, 1, 8, 8, generator=rng), torch.arange(16) % CLASSES) for _ in range(3)]
    data = Data("small", *splits, classes=CLASSES, augment=partial(crop_and_flip, crop=1, flip=True))
    plugins = Plugins(
        make("bound", "ibp"), make("distill", "none"), make("attack", "pgd"), make("propagation", "native")
    )
    options = TrainOptions(epochs=2, warmup=0, ramp=1, batch_size=BATCH)

    def seen(folder: str) -> list[Tensor]:
        module = make("model", "cnn-small", channels=3, hidden=8).build((1, 8, 8), CLASSES)
        run = Trainer(
            "student", "student", module, data, plugins, options, (), Path(folder), Silent(), StopRequest(), ""
        )
        found: list[Tensor] = []
        original = run._one_step

        def spy(x: Tensor, *arguments: Any, **more: Any) -> Any:
            found.append(x.clone())
            return original(x, *arguments, **more)

        run._one_step = spy  # type: ignore[method-assign]
        run.run()
        return found

    with apart(), tempfile.TemporaryDirectory() as folder:
        expected = seen(folder)
    shared = seen(from_leader(tempfile.mkdtemp))
    assert len(expected) == len(shared) == 4
    assert all(torch.equal(mine, whole[share(BATCH)]) for mine, whole in zip(shared, expected, strict=True))
    images = {image.numpy().tobytes() for image in splits[0].images}
    fresh = [image.numpy().tobytes() for whole in expected for image in whole]
    assert len(set(fresh)) > 20
    assert len(images & set(fresh)) < 8


def main() -> None:
    assert distributed.launched()[1] == 2
    with distributed.together():
        assert world() == 2
        means()
        compare("cc-ibp", "features", 1)
        compare("exp-ibp")
        compare("crown-ibp", batch_norm=False)
        compare("taps")
        compare("mtl-ibp", "b-mtard", 2, statistics="last-pass")
        compare(LocalMean())
        accuracies()
        statistics()
        augmented()
        with pytest.raises(RunFailed, match="a number came out differently in the 2 processes"):
            check_same(distributed.rank(), "a number")
    assert world() == 1


if __name__ == "__main__":
    main()
