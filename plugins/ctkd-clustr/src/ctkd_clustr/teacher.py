# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ClusTR (Alfarra et al. 2020, arXiv 2006.07682): clustering training, with or without adversarial examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctkd.api import Noise, TrainOptions
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import trace
from ctkd_clustr.clusters import Clusters, clustered, find_clusters, pick_clusters, trainable, variance_of
from ctkd_clustr.consistency import consistency
from ctkd_clustr.magnet import magnet_loss
from ctkd_clustr.options import ClusTROptions

if TYPE_CHECKING:
    from ctkd.api import Data, TeacherContext
    from ctkd.propagate import Network

CHUNK = 1000
"""Images whose features are computed at once."""


class ClusTRTeacher:
    """Trained naturally, then on clusters by the Magnet loss; answers by soft distances to the clusters.

    Each epoch k-means finds the clusters of every class's features. A batch is a cluster, drawn by its recent loss,
    and its nearest clusters of other classes. In the end each class's probability is proportional to the sum of
    ``exp(-|r - mu|^2 / 2 s^2)`` over its clusters, with s^2 the variance of the training images within clusters.
    ``consistency`` makes it ClusTR+QTRADES: such probabilities, by the clusters of the epoch, shall be the same near
    the images of a batch.

    Ours: the second training works on the folded network of the first, so batch norm is a part of the weights there;
    k-means comes before each epoch; all clusters vote, where the source takes the nearest 20 (all, with ten classes of
    two). Left out: the variants with the attack of TRADES and with free adversarial training, and the source's
    certificate, half the gap of the distances to two clusters, which speaks about features, not about images.
    """

    Options = ClusTROptions
    trains = True

    def __init__(self, options: ClusTROptions) -> None:
        self.options = options
        self.features = options.clusters == 1

    def obtain(self, context: TeacherContext) -> Network:
        """Raises: BadInput for a model that does not end in a fully connected layer, or a class with too few images."""
        options, data = self.options, context.data
        _check_model(context, options)
        _check_classes(data, options, context.role)
        natural = TrainOptions(
            eps=0.0,
            epochs=options.epochs,
            warmup=0.0,
            ramp=0.0,
            batch_size=options.batch_size,
            lr=options.lr,
            milestones=(0.5 * options.epochs, 0.75 * options.epochs),
            lr_decay=0.2,
            shi_weight=0.0,
            init="default",
            seed=context.seed,
            threads=context.threads,
            device=context.device,
        )
        network = context.fit(natural, {"name": "pgd"}, {"name": "adversarial"}, options.model)
        tuned = _Tuning(network, context, options).run()
        features = _features(tuned, data.train.images)
        clusters = find_clusters(features, data.train.labels, options.clusters, context.seed)
        return clustered(tuned, clusters, variance_of(features, clusters))


class _Tuning:
    """The training on clusters."""

    def __init__(self, network: Network, context: TeacherContext, options: ClusTROptions) -> None:
        self.data, self.options, self.seed, self.eps = context.data, options, context.seed, context.eps
        self.device = torch.device(context.device)
        self.network, self.parameters = trainable(network.to(self.device))
        self.images = self.data.train.images.to(self.device)
        self.losses = torch.full((len(self.images),), torch.nan)
        self.generator = torch.Generator().manual_seed(self.seed)

    def run(self) -> Network:
        """The network on the CPU, without gradient. Raises: RunFailed if the loss is not finite."""
        options = self.options
        optimizer = torch.optim.Adam(self.parameters, lr=options.cluster_lr)
        steps = max(1, len(self.images) // (options.batch_clusters * options.batch_samples))
        for epoch in range(options.cluster_epochs):
            drops = sum(epoch >= part * options.cluster_epochs for part in options.cluster_milestones)
            for group in optimizer.param_groups:
                group["lr"] = options.cluster_lr * options.cluster_lr_decay**drops
            features = _features(self.network.detach(), self.images)
            if not bool(features.isfinite().all()):
                raise _diverged(epoch)
            clusters = find_clusters(features, self.data.train.labels, options.clusters, self.seed)
            answers = clustered(self.network, clusters, variance_of(features, clusters)).to(self.device)
            for step in range(steps):
                self._step(clusters, answers, optimizer, epoch, step)
        return self.network.detach().to("cpu")

    def _step(self, clusters: Clusters, answers: Network, optimizer: torch.optim.Adam, epoch: int, step: int) -> None:
        """``answers``: the classifier by distances to these clusters, on the tensors that are trained."""
        options = self.options
        picked = pick_clusters(clusters, self.losses, options.batch_clusters, self.generator)
        rows, cluster_of = self._samples(clusters, picked)
        x = self.images[rows.to(self.device)]
        if self.data.augment is not None:
            x = self.data.augment(x, Noise(self.seed, "ctkd-clustr", epoch, step, samples=rows))
        tap = self.network.features_node
        assert tap is not None
        features, logits = answers.evaluate(x, tap, answers.output)
        losses = magnet_loss(
            features, cluster_of.to(self.device), clusters.class_of[picked].to(self.device), options.gap
        )
        if not bool(losses.isfinite().all()):
            raise _diverged(epoch)
        total = losses.mean()
        if options.consistency > 0:
            noise = Noise(self.seed, "ctkd-clustr-consistency", epoch, step, samples=rows)
            total = total + options.consistency * consistency(answers, x, logits, self.eps, noise).mean()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.losses[rows] = losses.detach().cpu()

    def _samples(self, clusters: Clusters, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Images of each picked cluster: which, and of which one, counted from 0."""
        rows = []
        for cluster in picked:
            members = (clusters.cluster_of == cluster).nonzero().squeeze(1)
            rows.append(members[torch.randperm(len(members), generator=self.generator)[: self.options.batch_samples]])
        sizes = torch.tensor([len(part) for part in rows])
        return torch.cat(rows), torch.arange(len(rows)).repeat_interleave(sizes)


@torch.no_grad()
def _features(network: Network, images: Tensor) -> Tensor:
    """(images, dim), on the CPU."""
    tap = network.features_node
    assert tap is not None
    parts = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
    return torch.cat([network.evaluate(part, tap)[0].cpu() for part in parts])


def _check_model(context: TeacherContext, options: ClusTROptions) -> None:
    fresh = trace(context.build_model(options.model), context.data.input_shape, functions=True).bind()
    if fresh.head is None:
        raise BadInput(
            f"{context.role}.name=clustr needs a model that ends in a fully connected layer, whose input are the "
            f"features that form clusters; set {context.role}.model to one, such as cnn-small"
        )


def _check_classes(data: Data, options: ClusTROptions, role: str) -> None:
    counts = data.train.labels.bincount(minlength=data.classes)
    least = int(counts.argmin())
    if counts[least] == 0:
        raise BadInput(
            f"class {least} of data set {data.name!r} has no training images; ClusTR needs some of each class"
        )
    if counts[least] < options.clusters:
        raise BadInput(
            f"{role}.clusters={options.clusters}: class {least} of data set {data.name!r} has only "
            f"{int(counts[least])} training images; set it to as many at most"
        )


def _diverged(epoch: int) -> RunFailed:
    return RunFailed(
        f"ClusTR: the loss is not finite in epoch {epoch + 1} of the training on clusters; a smaller cluster_lr often "
        "helps"
    )
