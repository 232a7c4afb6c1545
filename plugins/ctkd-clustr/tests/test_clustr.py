# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ClusTR: the loss by hand and by loops, clusters, batches, the classifier by distances, conformance, a short run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctkd_clustr.teacher
import pytest
import torch
from ctkd_clustr.clusters import Clusters, clustered, find_clusters, pick_clusters, trainable, variance_of
from ctkd_clustr.consistency import consistency
from ctkd_clustr.magnet import magnet_loss
from ctkd_clustr.options import ClusTROptions
from ctkd_clustr.teacher import ClusTRTeacher
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctkd.api import Data, Noise, Split
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import Network, trace
from ctkd.run import train
from ctkd.testing import conformance

SHORT: dict[str, Any] = {"epochs": 6, "lr": 5e-3, "cluster_epochs": 2}

test_two_clusters_conform = conformance("teacher", "clustr", options=SHORT)
test_one_cluster_conforms = conformance("teacher", "clustr", options={**SHORT, "clusters": 1})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss ------------------------------------------------------------------------------------------------


def test_a_hand_computed_case() -> None:
    """On a line: 0 and 2 (mean 1), 5 and 7 (mean 6), another class. Own distances are 1, s^2 = 4/3."""
    features = torch.tensor([[0.0], [2.0], [5.0], [7.0]])
    found = magnet_loss(features, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]), 10.0)
    far, near = 10 + 3 / 8 * (1 - 36), 10 + 3 / 8 * (1 - 16)
    assert found.tolist() == pytest.approx([max(far, 0), near, near, max(far, 0)])
    assert far < 0 < near  # so both sides of the ramp are seen


def literal(features: list[list[float]], cluster_of: list[int], class_of: list[int], gap: float) -> list[float]:
    """Sample by sample."""
    means = []
    for cluster in range(len(class_of)):
        own = [r for r, c in zip(features, cluster_of, strict=True) if c == cluster]
        means.append([sum(values) / len(own) for values in zip(*own, strict=True)])

    def distance(r: list[float], mu: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(r, mu, strict=True))

    pairs = list(zip(features, cluster_of, strict=True))
    variance = sum(distance(r, means[c]) for r, c in pairs) / (len(features) - 1)
    losses = []
    for r, c in pairs:
        numerator = math.exp(-distance(r, means[c]) / (2 * variance) - gap)
        others = [k for k in range(len(class_of)) if class_of[k] != class_of[c]]
        denominator = sum(math.exp(-distance(r, means[k]) / (2 * variance)) for k in others)
        losses.append(max(0.0, -math.log(numerator / denominator)))
    return losses


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), gap=st.floats(0, 5))
def test_the_loss_is_the_literal_one(seed: int, gap: float) -> None:
    features = random(12, 3, seed=seed)
    cluster_of, class_of = torch.arange(12) // 3, torch.tensor([0, 1, 1, 2])
    found = magnet_loss(features, cluster_of, class_of, gap)
    expected = literal(features.tolist(), cluster_of.tolist(), class_of.tolist(), gap)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_scale_and_place_of_the_features_do_not_matter() -> None:
    features, cluster_of, class_of = random(8, 4), torch.arange(8) // 2, torch.tensor([0, 0, 1, 2])
    found = magnet_loss(features, cluster_of, class_of, 1.0)
    torch.testing.assert_close(magnet_loss(30 * features + 7, cluster_of, class_of, 1.0), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_coincide_give_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    features = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
    losses = magnet_loss(features, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]), 2.0)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.tolist() == [2.0] * 4
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


# Clusters and batches ------------------------------------------------------------------------------------


def blobs() -> tuple[Tensor, Tensor, Tensor]:
    """Six of 20 images each, two per class, far from one another."""
    blob = torch.arange(6).repeat(20)
    places = 10 * torch.tensor([[0, 0], [5, 5], [0, 1], [5, 6], [1, 0], [9, 9]]).float()
    return places[blob] + 0.5 * random(120, 2).float(), blob // 2, blob


def test_clusters_are_found_within_classes() -> None:
    features, labels, blob = blobs()
    found = find_clusters(features, labels, 2, seed=0)
    assert found.class_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.class_of[found.cluster_of].equal(labels)
    assert len({(a, b) for a, b in zip(blob.tolist(), found.cluster_of.tolist(), strict=True)}) == 6
    for cluster, centre in enumerate(found.centres):
        torch.testing.assert_close(centre, features[found.cluster_of == cluster].mean(0))
    spread = torch.stack([(r - found.centres[c]).square().sum() for r, c in zip(features, found.cluster_of)])  # noqa: B905
    assert variance_of(features, found) == pytest.approx(float(spread.sum()) / 119, rel=1e-5)


def test_features_that_coincide_form_fewer_clusters() -> None:
    features = torch.tensor([[0.0], [0.0], [0.0], [1.0], [2.0], [2.0]])
    found = find_clusters(features, torch.tensor([0, 0, 0, 1, 1, 1]), 2, seed=0)
    assert found.class_of.tolist() == [0, 1, 1]
    assert sorted(found.centres.flatten().tolist()) == [0, 1, 2]


def test_a_batch_is_a_cluster_and_its_nearest_rivals() -> None:
    features, labels, _ = blobs()
    clusters = find_clusters(features, labels, 2, seed=0)
    losses = torch.where(clusters.cluster_of == 3, 1.0, 0.0)
    picked = pick_clusters(clusters, losses, 3, torch.Generator().manual_seed(0))
    assert picked[0] == 3  # the only one with a loss
    rivals = clusters.class_of != clusters.class_of[3]
    distances = (clusters.centres - clusters.centres[3]).norm(dim=1)
    nearest = [k for k in distances.argsort().tolist() if rivals[k]][:2]
    assert picked[1:].tolist() == nearest
    assert len(pick_clusters(clusters, losses, 99, torch.Generator().manual_seed(0))) == 5  # itself, and all rivals


def test_the_first_cluster_is_drawn_by_its_loss() -> None:
    features, labels, _ = blobs()
    clusters, generator = find_clusters(features, labels, 2, seed=0), torch.Generator().manual_seed(0)
    losses = torch.full((120,), torch.nan)
    losses[clusters.cluster_of == 0] = 1.0
    losses[clusters.cluster_of == 1] = 3.0
    drawn = torch.stack([pick_clusters(clusters, losses, 2, generator)[0] for _ in range(2000)]).bincount()
    shares = (drawn / 2000).tolist()
    assert shares == pytest.approx([1 / 12, 3 / 12, *[2 / 12] * 4], abs=0.03)  # unknown ones count like the mean
    for flat in (torch.full((120,), torch.nan), torch.zeros(120)):
        drawn = torch.stack([pick_clusters(clusters, flat, 2, generator)[0] for _ in range(1200)]).bincount()
        assert (drawn / 1200).tolist() == pytest.approx([1 / 6] * 6, abs=0.04)


# The classifier ------------------------------------------------------------------------------------------


def network(head: bool = True) -> Network:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3), *([] if head else [nn.ReLU()])]
        return trace(nn.Sequential(*layers), (1, 3, 3)).bind().detach()


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]])
def test_probabilities_are_soft_distances(classes: list[int]) -> None:
    net, class_of, variance = network(), torch.tensor(classes), 0.7
    centres = 0.5 * random(len(classes), 5).float() + 3
    found = clustered(net, Clusters(centres, class_of, torch.empty(0)), variance)
    x = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    assert net.features_node is not None
    (features,) = net.evaluate(x, net.features_node)
    weights = (-torch.cdist(features, centres).square() / (2 * variance)).exp()
    sums = torch.stack([weights[:, class_of == label].sum(1) for label in range(3)], 1)
    torch.testing.assert_close(found(x).softmax(1), sums / sums.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert (found.features_node is not None) == (len(classes) == 3)


def test_far_away_from_all_clusters_logits_and_gradients_are_finite() -> None:
    centres = random(5, 5).float()
    found = clustered(network(), Clusters(centres, torch.tensor([0, 1, 1, 2, 2]), torch.empty(0)), 1e-6)
    x = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = found(x)
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert bool(logits.isfinite().all())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


# Consistency ---------------------------------------------------------------------------------------------


def answers(x: Tensor) -> tuple[Network, Tensor]:
    """A classifier by distances to clusters, and its logits at x, on weights with gradient."""
    net, _ = trainable(network())
    found = clustered(net, Clusters(random(6, 5).float(), torch.arange(6) // 2, torch.empty(0)), 0.7)
    return found, found(x)


def test_consistency_is_the_cross_entropy_one_signed_step_from_a_random_start() -> None:
    x = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    net, logits = answers(x)
    found = consistency(net, x, logits, 0.2, Noise(0, "test", samples=torch.arange(7)))
    targets = logits.softmax(1)
    uniform = Noise(0, "test", samples=torch.arange(7)).uniform(x)
    near = (x + 0.2 * (2 * uniform - 1)).clamp(0, 1).requires_grad_()
    loss = -(targets.detach() * net(near).softmax(1).log()).sum()
    (gradient,) = torch.autograd.grad(loss, near)
    near = torch.minimum(torch.maximum(near + 0.25 * gradient.sign(), x - 0.2), x + 0.2).clamp(0, 1).detach()
    torch.testing.assert_close(found, -(targets * net(near).softmax(1).log()).sum(1))


def test_gradient_of_consistency_flows_through_both_points() -> None:
    x = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    net, logits = answers(x)
    found = consistency(net, x, logits.detach().requires_grad_(), 0.2, Noise(0, "test", samples=torch.arange(7)))
    assert found.requires_grad  # by the second point alone
    free = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        consistency(net.detach(), x, free, 0.2, Noise(0, "test", samples=torch.arange(7))).sum(), free
    )
    assert bool(gradient.abs().sum(1).gt(0).all())


def test_consistency_without_a_radius_is_the_entropy() -> None:
    x = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    net, logits = answers(x)
    found = consistency(net, x, logits, 0.0, Noise(0, "test", samples=torch.arange(7)))
    torch.testing.assert_close(found, torch.distributions.Categorical(logits=logits).entropy())


def test_what_is_trained_is_a_copy() -> None:
    net = network()
    copy, leaves = trainable(net)
    assert [tuple(leaf.shape) for leaf in leaves] == [(5, 9), (5,)]
    assert copy.sha256() == net.sha256()
    with torch.no_grad():
        leaves[0].zero_()
    assert copy.sha256() != net.sha256()


# The teacher ---------------------------------------------------------------------------------------------


class Context(SimpleNamespace):
    """A run's context, whose natural training is none at all."""

    def __init__(self, net: Network, labels: Tensor, head: bool = True) -> None:
        images = torch.rand(len(labels), 1, 3, 3, generator=torch.Generator().manual_seed(0))
        split = Split(images, labels)
        super().__init__(data=Data("toy", split, split, split, 3), seed=0, role="teacher.2", threads=1, device="cpu")
        self.eps = 0.1
        self.net, self.head = net, head

    def build_model(self, name: str | None = None) -> nn.Module:
        layers = [nn.Flatten(), nn.Linear(9, 3), *([] if self.head else [nn.ReLU()])]
        return nn.Sequential(*layers)

    def fit(self, *arguments: Any, **named: Any) -> Network:
        return self.net


def obtain(context: Any, **options: Any) -> Network:
    return ClusTRTeacher(ClusTROptions(**options)).obtain(context)


def test_training_on_clusters_lowers_their_loss() -> None:
    net, labels = network(), torch.arange(60) % 3
    context = Context(net, labels)
    context.data.train.images[torch.arange(60), 0, labels] += 1  # so that there is something to tell them by
    assert net.features_node is not None
    values = []
    for epochs in (1, 60):
        tuned = obtain(context, cluster_epochs=epochs, cluster_lr=0.01, clusters=1, gap=2.0)
        (features,) = tuned.evaluate(context.data.train.images, net.features_node)
        values.append(float(magnet_loss(features, labels, torch.arange(3), 2.0).mean()))
    assert values[1] < 0.8 * values[0]


def test_training_for_consistency_brings_it() -> None:
    labels, values = torch.arange(60) % 3, []
    for weight in (0.0, 8.0):
        context = Context(network(), labels)
        context.eps = 0.2
        context.data.train.images[torch.arange(60), 0, labels] += 1
        x = context.data.train.images.div_(2)
        tuned = obtain(context, cluster_epochs=40, cluster_lr=0.01, clusters=1, gap=2.0, consistency=weight)
        assert tuned(x).argmax(1).equal(labels)
        values.append(float(consistency(tuned, x, tuned(x), 0.2, Noise(0, "test", samples=torch.arange(60))).mean()))
    assert values[1] < 0.85 * values[0]


def test_the_first_training_is_natural() -> None:
    asked: list[Any] = []
    context = Context(network(), torch.arange(60) % 3)
    context.fit = lambda *arguments: (asked.extend(arguments), context.net)[1]
    obtain(context, epochs=8, cluster_epochs=1, model="mlp")
    options, _, bound, model = asked
    assert (options.eps, options.shi_weight, options.epochs, options.milestones) == (0, 0, 8, (4, 6))
    assert (bound, model) == ({"name": "adversarial"}, "mlp")


def test_steps_and_learning_rates_are_those_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Watched(torch.optim.Adam):
        def step(self, *arguments: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    values = {"cluster_epochs": 6, "cluster_lr": 0.01, "batch_clusters": 3, "batch_samples": 10, "clusters": 1}
    obtain(Context(network(), torch.arange(60) % 3), **values)
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 4 + [0.0001] * 4)  # two steps of 30 images an epoch


def test_losses_of_a_batch_are_remembered_and_images_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    picked = ctkd_clustr.teacher.pick_clusters

    def watched(clusters: Clusters, losses: Tensor, *rest: Any) -> Tensor:
        seen.append(losses.clone())
        return picked(clusters, losses, *rest)

    monkeypatch.setattr(ctkd_clustr.teacher, "pick_clusters", watched)
    obtain(Context(network(), torch.arange(60) % 3), cluster_epochs=3, batch_samples=10, clusters=1)
    known = [~losses.isnan() for losses in seen]
    assert [int(rows.sum()) for rows in known][:2] == [0, 30]
    assert int(known[2].sum()) > 30  # other images than in the batch before
    assert bool((seen[1][known[1]] >= 0).all())


def test_an_augmentation_is_used() -> None:
    context = Context(network(), torch.arange(60) % 3)
    plain = obtain(context, cluster_epochs=2, clusters=1)
    called = []

    def flip(x: Tensor, noise: Any) -> Tensor:
        called.append((len(x), len(noise)))
        return x.flip(-1)

    context.data = replace(context.data, augment=flip)
    assert obtain(context, cluster_epochs=2, clusters=1).sha256() != plain.sha256()
    assert called == [(60, 60)] * 2


def test_what_cannot_be_clustered_is_refused_before_any_training() -> None:
    context = Context(network(), torch.tensor([0, 0, 0, 1, 1, 1, 2]))
    context.fit = None
    with pytest.raises(BadInput, match=r"teacher\.2\.clusters=3: class 2 of data set 'toy' has only 1 training images"):
        obtain(context, clusters=3)
    context = Context(network(), torch.tensor([0, 0, 2, 2]))
    context.fit = None
    with pytest.raises(BadInput, match="class 1 of data set 'toy' has no training images; ClusTR needs some of each"):
        obtain(context, clusters=1)
    context = Context(network(), torch.arange(9) % 3, head=False)
    context.fit = None
    with pytest.raises(BadInput, match=r"teacher\.2\.name=clustr needs a model that ends in a fully connected layer"):
        obtain(context)


def test_a_loss_that_is_not_finite_is_said() -> None:
    broken = network().map(lambda tensor: tensor * torch.nan)
    with pytest.raises(RunFailed, match=r"the loss is not finite in epoch 1 .* a smaller cluster_lr often helps"):
        obtain(Context(broken, torch.arange(9) % 3))


@pytest.mark.parametrize(("clusters", "distill"), [(1, "features"), (2, "logits")])
def test_a_student_learns_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clusters: int, distill: str) -> None:
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "cache"))  # train it here and now
    settings = {
        "bound.name": "mtl-ibp",
        "distill.name": distill,
        "train.eps": 0.02,
        "train.epochs": 4,
        "train.ramp": 2.0,
        "train.batch_size": 64,
        "train.lr": 5e-3,
        "train.threads": 1,
        "certify.samples": 40,
        "teacher.name": "clustr",
        "teacher.epochs": 6,
        "teacher.lr": 5e-3,
        "teacher.cluster_epochs": 3,
        "teacher.clusters": clusters,
    }
    _, summary = train(settings=settings, out=tmp_path / "run")
    assert summary["teacher"]["natural_accuracy"] > 0.8
    assert summary["certified_accuracy"] > 0.2


def test_features_of_several_clusters_are_refused_at_once(tmp_path: Path) -> None:
    settings = {"bound.name": "mtl-ibp", "distill.name": "features", "teacher.name": "clustr"}
    with pytest.raises(BadInput, match="'clustr' gives logits only"):
        train(settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
