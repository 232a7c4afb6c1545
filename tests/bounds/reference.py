# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A slow, literal second implementation of every bound method: one sample, one class, one neuron at a time.

Written from the formulas, on dense matrices and end points instead of centres and radii. Only tests use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Layers = list[tuple[Tensor, Tensor]]
"""Weight and bias of each affine layer, batch norm folded in; a ReLU stands between any two."""
Ends = tuple[Tensor, Tensor]


def dense_layers(module: nn.Module, x: Tensor) -> Layers:
    """The network with the statistics of the clean batch x, as dense matrices. Differentiable."""
    layers: Layers = []
    shape, values = tuple(x.shape[1:]), x.flatten(1)
    pending: tuple[Tensor, Tensor] | None = None
    for layer in module.children():
        if isinstance(layer, nn.Conv2d):
            size = math.prod(shape)
            basis = torch.eye(size, dtype=x.dtype).reshape(size, *shape)
            image = nn.functional.conv2d(basis, layer.weight, None, layer.stride, layer.padding)  # type: ignore[arg-type]
            shape = tuple(image.shape[1:])
            assert layer.bias is not None
            pending = (image.flatten(1).T, layer.bias.repeat_interleave(shape[1] * shape[2]))
        elif isinstance(layer, nn.Linear):
            shape, pending = (layer.out_features,), (layer.weight, layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert pending is not None
            weight, bias = pending
            before = values @ weight.T + bias
            per = before.shape[1] // shape[0]
            rows, shifts = [], []
            for channel in range(shape[0]):
                seen = before[:, channel * per : (channel + 1) * per]
                scale = layer.weight[channel] / (((seen - seen.mean()) ** 2).mean() + layer.eps).sqrt()
                rows.append(weight[channel * per : (channel + 1) * per] * scale)
                shifts.append((bias[channel * per : (channel + 1) * per] - seen.mean()) * scale + layer.bias[channel])
            pending = (torch.cat(rows), torch.cat(shifts))
        elif isinstance(layer, nn.ReLU):
            assert pending is not None
            layers.append(pending)
            values = (values @ pending[0].T + pending[1]).relu()
    assert pending is not None
    return [*layers, pending]


@dataclass
class Case:
    """One step: images, their boxes, attacked points (all flat), and the points that latent attacks return.

    ``fractions`` (batch, classes - 1, width of the latent layer): where in the latent box those lie.
    """

    layers: Layers
    labels: Tensor
    x: Tensor
    box: Ends
    attacked: Tensor
    eps: float
    progress: float
    fractions: Tensor | None

    @property
    def batch(self) -> range:
        return range(len(self.labels))

    def rivals(self, i: int) -> list[int]:
        return [j for j in range(len(self.layers[-1][1])) if j != self.labels[i]]


def forward(layers: Layers, x: Tensor) -> Tensor:
    for weight, bias in layers[:-1]:
        x = (weight @ x + bias).relu()
    return layers[-1][0] @ x + layers[-1][1]


def affine_ends(weight: Tensor, bias: Tensor, ends: Ends) -> Ends:
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    return plus @ ends[0] + minus @ ends[1] + bias, plus @ ends[1] + minus @ ends[0] + bias


def intervals(layers: Layers, ends: Ends, shrink: float = 1.0) -> tuple[list[Ends], Ends]:
    """Ends of every ReLU's input, and of the last layer's input."""
    inputs = []
    for weight, bias in layers[:-1]:
        lower, upper = affine_ends(weight, bias, ends)
        upper = torch.stack([high * shrink if low < 0 < high else high for low, high in zip(lower, upper, strict=True)])
        inputs.append((lower, upper))
        ends = (lower.relu(), upper.relu())
    return inputs, ends


def margin_ends(case: Case, i: int, ends: Ends, j: int) -> Ends:
    weight, bias = case.layers[-1]
    y = int(case.labels[i])
    lower, upper = affine_ends((weight[y] - weight[j])[None], (bias[y] - bias[j])[None], ends)
    return lower[0], upper[0]


def backward_bound(layers: Layers, inputs: list[Ends], box: Ends, row: Tensor) -> Tensor:
    """CROWN-IBP's lower bound of row . logits."""
    constant = torch.zeros((), dtype=row.dtype)
    for k in range(len(layers) - 1, -1, -1):
        constant = constant + row @ layers[k][1]
        row = row @ layers[k][0]
        if k == 0:
            break
        lower, upper = inputs[k - 1]
        coefficients = []
        for a, low, high in zip(row, lower, upper, strict=True):
            if low >= 0:
                coefficients.append(a)
            elif high <= 0:
                coefficients.append(a * 0)
            elif a >= 0:
                coefficients.append(a if high > -low else a * 0)
            else:
                coefficients.append(a * high / (high - low))
                constant = constant - a * high * low / (high - low)
        row = torch.stack(coefficients)
    return constant + sum(a * (low if a >= 0 else high) for a, low, high in zip(row, *box, strict=True))


def loss_of(margins: list[Tensor]) -> Tensor:
    return torch.log(1 + sum(torch.exp(-m) for m in margins))


def point_margins(case: Case, i: int, point: Tensor) -> list[Tensor]:
    logits = forward(case.layers, point)
    return [logits[case.labels[i]] - logits[j] for j in case.rivals(i)]


def box_margins(case: Case, i: int, ends: Ends, shrink: float = 1.0) -> list[Tensor]:
    _, last = intervals(case.layers, ends, shrink)
    return [margin_ends(case, i, last, j)[0] for j in case.rivals(i)]


def full(case: Case, i: int) -> Ends:
    return case.box[0][i], case.box[1][i]


def small(case: Case, i: int, lam: float) -> Ends:
    lower, upper = full(case, i)
    tau = lam * (upper - lower) / 2
    centre = torch.minimum(torch.maximum(case.attacked[i], lower + tau), upper - tau)
    return centre - tau, centre + tau


def each(per_sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The batch mean of a loss per sample."""

    def mean(case: Case, **options: Any) -> Tensor:
        return torch.stack([per_sample(case, i, **options) for i in case.batch]).mean()

    return mean


def adversarial(case: Case, i: int) -> Tensor:
    return loss_of(point_margins(case, i, case.attacked[i]))


def ibp(case: Case, i: int) -> Tensor:
    return loss_of(box_margins(case, i, full(case, i)))


def crown_ibp(case: Case, i: int, beta_start: float, beta_end: float, loss_fusion: bool = False) -> Tensor:
    beta = beta_start + (beta_end - beta_start) * case.progress
    box = full(case, i)
    inputs, last = intervals(case.layers, box)
    one = torch.eye(len(case.layers[-1][1]), dtype=case.x.dtype)
    rows = [one[case.labels[i]] - one[j] for j in case.rivals(i)]
    if not loss_fusion:
        relaxed = [backward_bound(case.layers, inputs, box, row) for row in rows]
        return loss_of([beta * r + (1 - beta) * m for r, m in zip(relaxed, box_margins(case, i, box), strict=True)])
    row, constant, plain = torch.zeros_like(one[0]), torch.zeros((), dtype=one.dtype), torch.zeros((), dtype=one.dtype)
    for j, spec in zip(case.rivals(i), rows, strict=True):
        zl, zu = margin_ends(case, i, last, j)
        slope = (torch.exp(-zu) - torch.exp(-zl)) / (zu - zl)  # of the chord of exp(-z), negative
        row = row - slope * spec
        constant = constant + torch.exp(-zl) - slope * zl
        plain = plain + torch.exp(-zl)
    chords = constant - backward_bound(case.layers, inputs, box, row)
    return torch.log(1 + beta * chords + (1 - beta) * plain)


def cc_ibp(case: Case, i: int, alpha: float) -> Tensor:
    pairs = zip(box_margins(case, i, full(case, i)), point_margins(case, i, case.attacked[i]), strict=True)
    return loss_of([alpha * m + (1 - alpha) * p for m, p in pairs])


def mtl_ibp(case: Case, i: int, alpha: float) -> Tensor:
    return alpha * ibp(case, i) + (1 - alpha) * adversarial(case, i)


def exp_ibp(case: Case, alpha: float) -> Tensor:
    return each(ibp)(case) ** alpha * each(adversarial)(case) ** (1 - alpha)


def sabr(case: Case, i: int, lam: float, relu_shrink: float = 1.0) -> Tensor:
    return loss_of(box_margins(case, i, small(case, i, lam), relu_shrink))


def linked(point: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The point's value, with the gradient link's gradients to both ends."""
    slack = 0.5 * (upper.detach() - lower.detach())
    to_upper, to_lower = [], []
    for p, low, high, s in zip(point, lower.detach(), upper.detach(), slack, strict=True):
        to_upper.append((p - (high - s)).relu() / s if s > 0 else torch.full_like(s, 0.5))
        to_lower.append(((low + s) - p).relu() / s if s > 0 else torch.full_like(s, 0.5))
    moves = torch.stack(to_upper) * (upper - upper.detach()) + torch.stack(to_lower) * (lower - lower.detach())
    return point + moves


def taps(case: Case, product: bool = True, gradient_scale: float = 5.0, **options: Any) -> Tensor:
    """While the radius grows the plain loss; then the attacks' batch mean, times the plain batch mean."""
    plain = sum(_plain(case, i, **options) for i in range(len(case.labels))) / len(case.labels)
    if case.progress < 1:
        return plain
    found = sum(_latent(case, i, **options) for i in range(len(case.labels))) / len(case.labels)
    return (found.detach() + gradient_scale * (found - found.detach())) * plain if product else found


def _plain(case: Case, i: int, split: int, relu_shrink: float = 1.0, lam: float = 1.0) -> Tensor:
    return loss_of(box_margins(case, i, small(case, i, lam), relu_shrink))


def _latent(
    case: Case,
    i: int,
    split: int,
    relu_shrink: float = 1.0,
    lam: float = 1.0,
) -> Tensor:
    inputs, _ = intervals(case.layers, small(case, i, lam), relu_shrink)
    lower, upper = (end.relu() for end in inputs[len(inputs) - split - 1])
    margins = []
    assert case.fractions is not None
    for k, j in enumerate(case.rivals(i)):
        point = (lower + case.fractions[i, k] * (upper - lower)).detach()
        logits = forward(case.layers[len(inputs) - split :], linked(point, lower, upper))
        margins.append(logits[case.labels[i]] - logits[j])
    return loss_of(margins)


def ibp_r(case: Case, i: int, weight: float) -> Tensor:
    inputs, _ = intervals(case.layers, full(case, i))
    area = torch.zeros((), dtype=case.x.dtype)
    for lower, upper in inputs:
        for low, high in zip(lower, upper, strict=True):
            if low < 0 < high:
                area = area - low * high / 2
    return adversarial(case, i) + weight * area


def forwabs(case: Case, i: int, weight: float) -> Tensor:
    width = (case.box[1][i] - case.box[0][i]) / 2
    for matrix, _ in case.layers:
        width = matrix.abs() @ width
    return adversarial(case, i) + weight * width.sum()


def singleprop(
    case: Case, i: int, variant: str = "fast-lin", nominal_start: float = 1.0, nominal_end: float = 0.5
) -> Tensor:
    k = nominal_start + (nominal_end - nominal_start) * case.progress
    z, v = case.x[i], torch.full_like(case.x[i], case.eps)
    for place, (weight, bias) in enumerate(case.layers):
        z, v = weight @ z + bias, weight.abs() @ v
        if place == len(case.layers) - 1:
            break
        widths = []
        for a, w in zip(z, v, strict=True):
            if a + w <= 0:
                widths.append(w * 0)
            elif a - w >= 0:
                widths.append(w)
            elif variant == "fast-lin":
                widths.append(3 * w / 4 + a / 2 - a**2 / (4 * w))
            elif variant == "crown" and a >= 0:
                widths.append(w)
            else:
                widths.append((a + w) / 2)
        z, v = z.relu(), torch.stack(widths)
    y = case.labels[i]
    nominal = loss_of([z[y] - z[j] for j in case.rivals(i)])
    surrogate = loss_of([(z[y] - v[y]) - (z[j] + v[j]) for j in case.rivals(i)])
    return k * nominal + (1 - k) * surrogate


def predictions(case: Case, i: int) -> tuple[Tensor, Tensor, Tensor]:
    clean, found = (forward(case.layers, point).softmax(0) for point in (case.x[i], case.attacked[i]))
    return clean, found, sum(p * (p / q).log() for p, q in zip(clean, found, strict=True))  # type: ignore[return-value]


def trades(case: Case, i: int, beta: float) -> Tensor:
    clean, _, divergence = predictions(case, i)
    return -clean[case.labels[i]].log() + beta * divergence


def mart(case: Case, i: int, weight: float) -> Tensor:
    clean, found, divergence = predictions(case, i)
    y = case.labels[i]
    rival = torch.stack([found[j] for j in case.rivals(i)]).max()
    return -found[y].log() - (1 - rival).log() + weight * (1 - clean[y]) * divergence
