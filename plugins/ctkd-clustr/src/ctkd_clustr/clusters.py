# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Clusters of the training images' features, batches of them, and the classifier by distances to them."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ctkd.propagate import Network, Node
from ctkd.propagate.ops import Add, Conv, Function, Linear, Op, Scale

ROUNDS = 20
"""Of k-means, as in the published code for CIFAR-10."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Means of features by cluster; no cluster is empty.

    Attributes:
        centres: (clusters, dim).
        class_of: (clusters,), in ascending order.
        cluster_of: (images,).
    """

    centres: Tensor
    class_of: Tensor
    cluster_of: Tensor


def find_clusters(features: Tensor, labels: Tensor, count: int, seed: int) -> Clusters:
    """k-means within each class.

    Args:
        features: (images, dim), on the CPU.
        labels: (images,), on the CPU; each class has ``count`` images at least.
        count: clusters per class; fewer where features coincide.
        seed: of the first centres.
    """
    from sklearn.cluster import KMeans  # importing it draws from Python's global random numbers
    from threadpoolctl import threadpool_limits

    centres: list[Tensor] = []
    class_of: list[int] = []
    cluster_of = torch.empty_like(labels)
    for label in labels.bincount().nonzero().flatten().tolist():
        rows = labels == label
        own = features[rows]
        # With several threads the order of its sums, and the last bits of its result, would be left to chance.
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about features that coincide
            search = KMeans(count, n_init=1, max_iter=ROUNDS, random_state=seed)
            found = torch.from_numpy(search.fit_predict(own.double().numpy())).long()
        used = found.bincount().nonzero().flatten().tolist()
        places = torch.zeros_like(found)
        for place in used:
            members = found == place
            places[members] = len(class_of)
            centres.append(own[members].mean(0))
            class_of.append(label)
        cluster_of[rows] = places
    return Clusters(torch.stack(centres), torch.tensor(class_of), cluster_of)


def pick_clusters(clusters: Clusters, losses: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """One cluster, drawn by the mean loss of its images, and the nearest ones of other classes: (count,) at most.

    ``losses``: (images,), NaN where unknown. A cluster without any known loss counts like the mean of the others;
    where all are zero or unknown each is drawn alike.
    """
    known = ~losses.isnan()
    size = len(clusters.class_of)
    sums = torch.bincount(clusters.cluster_of[known], losses[known].double(), minlength=size)
    seen = torch.bincount(clusters.cluster_of[known], minlength=size)
    weights = torch.where(seen > 0, sums / seen.clamp(min=1), sums.sum() / seen.sum().clamp(min=1))
    if not bool(weights.sum() > 0):
        weights = torch.ones(size, dtype=torch.float64)
    first = torch.multinomial(weights, 1, generator=generator)
    rivals = (clusters.class_of != clusters.class_of[first]).nonzero().squeeze(1)
    distances = (clusters.centres[rivals] - clusters.centres[first]).square().sum(1)
    nearest = distances.argsort(stable=True)[: count - 1]
    return torch.cat([first, rivals[nearest]])


def variance_of(features: Tensor, clusters: Clusters) -> float:
    """The squared distance of the images to their cluster's centre, summed, over their number less one."""
    distances = (features - clusters.centres[clusters.cluster_of]).double().square().sum()
    least: float = torch.finfo(torch.float32).tiny ** 0.5
    return max(float(distances) / (len(features) - 1), least)


def clustered(network: Network, clusters: Clusters, variance: float) -> Network:
    """The network with another end: logits ``log sum over the class's clusters of exp(-|r - mu|^2 / 2 variance)``.

    What all classes share, the part with |r|^2, is left out: what remains of each exponent is linear in the features
    r. One cluster per class makes the logits the last, fully connected layer; for more, sums of exponentials are built
    of additions and softplus.
    """
    tap = network.features_node
    assert tap is not None
    centres = clusters.centres.double()
    middle = centres.mean(0)  # distances do not change if all is shifted, and numbers stay small
    shifted = centres - middle
    weight, bias = shifted / variance, -(shifted * middle + shifted.square() / 2).sum(1) / variance
    nodes = list(network.nodes[:-1])

    def add(op: Op, inputs: tuple[int, ...], path: str) -> int:
        nodes.append(Node(op, inputs, (network.classes,), path))
        return len(nodes) - 1

    end = -1
    for rank in range(int(clusters.class_of.bincount().max())):
        place = add(_of_rank(clusters, rank, network.classes, weight, bias), (tap,), f"clusters.{rank}")
        if end >= 0:  # log(exp(a) + exp(b)) = a + softplus(b - a)
            minus = Scale(-torch.ones(1, 1), torch.zeros(1, 1))
            less = add(Add(), (place, add(minus, (end,), f"minus.{rank}")), f"difference.{rank}")
            place = add(Add(), (end, add(Function("softplus"), (less,), f"softplus.{rank}")), f"sum.{rank}")
        end = place
    return Network(tuple(nodes))


ABSENT = -1e30
"""Exponent of a cluster that a class does not have."""


def _of_rank(clusters: Clusters, rank: int, classes: int, weight: Tensor, bias: Tensor) -> Linear:
    """The exponents of each class's cluster number ``rank``."""
    rows = torch.zeros(classes, weight.shape[1])
    shifts = torch.full((classes,), ABSENT)
    for label in range(classes):
        own = (clusters.class_of == label).nonzero().squeeze(1)
        if rank < len(own):
            rows[label], shifts[label] = weight[own[rank]].float(), bias[own[rank]].float()
    return Linear(rows, shifts)


def trainable(network: Network) -> tuple[Network, list[Tensor]]:
    """A copy whose convolutions and fully connected layers but the last can be trained, and their tensors."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    *nodes, last = network.nodes
    copied = [
        dataclasses.replace(node, op=node.op.map(leaf)) if isinstance(node.op, Conv | Linear) else node
        for node in nodes
    ]
    return Network((*copied, last)), leaves
