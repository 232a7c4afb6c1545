# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The figures of docs/results/rounding.md: ``python docs/results/rounding/search.py RUN [--data-dir DIR]``, JSON on
standard output. It tries to break certified samples by rounding alone, on networks shifted so that little more than the
rounding bound is left of a sample's margin, and measures how much of the bound is ever reached. It changes nothing."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctkd.accuracy import smallest_margin
from ctkd.attacks.pgd import PGD, PGDOptions
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.store import Row, Store
from ctkd.config import resolve
from ctkd.export.check import runner
from ctkd.export.onnx_writer import to_onnx
from ctkd.propagate import Network, crown_pre_activation, margins_of, relaxed_margins
from ctkd.propagate.ops import Conv, Linear
from ctkd.randomness import Noise
from ctkd.rounding import rounding
from ctkd.runfolder import RunFolder
from ctkd.session import load_data

WEAKEST = 30
"""Samples with the smallest certified margins."""
SHARES = (1.001, 0.1, 0.01, 0.003, 0.001)
"""What is left of the margin, as shares of the rounding bound; below 1 nothing is claimed."""
STEPS = 30
"""Of the climb towards large errors."""

Engine = Callable[[Tensor], Tensor]


def one_by_one(network: Network, seed: int | None) -> Engine:
    """Float32, every sum one addend at a time: in storage order, or shuffled."""

    def total(terms: Tensor) -> Tensor:  # (..., n)
        order = np.arange(terms.shape[-1]) if seed is None else np.random.default_rng(seed).permutation(terms.shape[-1])
        return torch.from_numpy(np.add.accumulate(terms.numpy()[..., order], axis=-1)[..., -1].copy())

    def run(x: Tensor) -> Tensor:
        values: dict[int, Tensor] = {0: x}
        for i, node in enumerate(network.nodes[1:], start=1):
            op, source = node.op, values[node.inputs[0]]
            if isinstance(op, Linear):
                values[i] = total(source[:, None] * op.weight) + op.bias
            elif isinstance(op, Conv) and op.groups == 1:
                patches = F.unfold(
                    source, op.weight.shape[2:], op.dilation, op.padding, op.stride
                )  # (batch, n, places)
                sums = [total(patches[k].t()[:, None] * op.weight.flatten(1)) + op.bias for k in range(len(source))]
                values[i] = torch.stack(sums).transpose(1, 2).reshape(-1, *node.shape)
            else:
                values[i] = node.apply(values)
        return values[len(network.nodes) - 1]

    return run


def engines(network: Network) -> dict[str, Engine]:
    """Ways of computing the same network in float32, which differ in nothing but the order of sums."""
    run = runner(to_onnx(network))

    def single(x: Tensor) -> Tensor:
        return torch.cat([network(x[k : k + 1]) for k in range(len(x))])

    return {
        "torch": network,
        "torch, one image at a time": single,
        "torch, repeated 8 times": lambda x: network(x.repeat(8, *[1] * (x.dim() - 1)))[: len(x)],
        "onnxruntime": lambda x: torch.from_numpy(run(x.numpy())),
        "one by one": one_by_one(network, None),
        "one by one, shuffled": one_by_one(network, 1),
        "one by one, shuffled again": one_by_one(network, 2),
    }


def points(network: Network, box: Box, label: Tensor, wide: Network) -> Iterator[Tensor]:
    """Inputs where the margin is small: by PGD in float32 and in float64, by the sign of the gradient, and corners."""
    x = (box.lower + box.upper) / 2
    for net, dtype in ((network, torch.float32), (wide, torch.float64)):
        for seed in range(2):
            attack = PGD(PGDOptions(steps=40, restarts=4, objective="margin"))
            noise = Noise(seed, "search", samples=torch.zeros(1, dtype=torch.long))
            found = attack.perturb(net, x.to(dtype), label, box.to(dtype), noise)
            yield box.clamp(found.float())
    centre = x.double().requires_grad_()
    margins = margins_of(wide(centre), label)
    rival = int(margins.scatter(1, label[:, None], torch.inf).argmin())
    (slope,) = torch.autograd.grad(margins[0, rival], centre)
    yield torch.where(slope > 0, box.lower, box.upper)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        yield torch.where(torch.rand(x.shape, generator=generator) < 0.5, box.lower, box.upper)


def shifted(network: Network, label: int, by: float) -> Network:
    """The same network with the label's logit lowered."""
    node = network.nodes[-1]
    assert isinstance(node.op, Linear)
    bias = node.op.bias.clone()
    bias[label] -= by
    return Network((*network.nodes[:-1], replace(node, op=Linear(node.op.weight, bias))))


@torch.no_grad()
def certified_margin(network: Network, box: Box, label: Tensor) -> float:
    wide, box = network.to(torch.float64), box.to(torch.float64)
    return float(smallest_margin(relaxed_margins(wide, crown_pre_activation(wide, box), box, label), label))


def narrowed(network: Network, box: Box, label: Tensor, share: float) -> tuple[Network, float, float]:
    """A network whose certified margin is just above ``share`` of its rounding bound; that margin and the bound."""
    current, step = network, 0.0
    for _ in range(4):
        errors = rounding(current, box, label).largest()
        bound = float(errors.deployed + errors.bounds)
        margin = certified_margin(current, box, label)
        step += margin - share * bound
        current = shifted(network, int(label), step)
    while (margin := certified_margin(current, box, label)) <= share * bound:  # the bias is rounded to float32
        step -= 0.05 * share * bound + abs(step) * 2**-24
        current = shifted(network, int(label), step)
        errors = rounding(current, box, label).largest()
        bound = float(errors.deployed + errors.bounds)
    return current, margin, bound


@torch.no_grad()
def climb(network: Network, engine: Engine, wide: Network, box: Box, label: Tensor, deployed: Tensor) -> float:
    """The largest share of the bound that a walk over corners finds."""
    generator = torch.Generator().manual_seed(1)
    count = 32
    rows = Box(box.lower.expand(count, *box.lower.shape[1:]), box.upper.expand(count, *box.upper.shape[1:]))
    labels = label.expand(count)

    def shares(x: Tensor) -> Tensor:
        error = (margins_of(engine(x).double(), labels) - margins_of(wide(x.double()), labels)).abs()
        return (error / deployed.scatter(1, label[:, None], torch.inf)).amax(1)

    x = torch.where(torch.rand(rows.lower.shape, generator=generator) < 0.5, rows.lower, rows.upper)
    best = shares(x)
    for _ in range(STEPS):
        flip = torch.rand(x.shape, generator=generator) < 0.02
        other = torch.where(flip, rows.lower + rows.upper - x, x)
        other = rows.clamp(other)
        found = shares(other)
        better = found > best
        x[better], best[better] = other[better], found[better]
    return float(best.max())


@torch.no_grad()
def touching(network: Network, box: Box, label: Tensor, inputs: list[Tensor], share: float) -> tuple[Network, Tensor]:
    """A network in which the input of the smallest margin keeps ``share`` of the rounding bound; and that input."""

    def exact(net: Network, x: Tensor) -> float:
        return float(smallest_margin(margins_of(net.to(torch.float64)(x.double()), label), label))

    worst = min(inputs, key=lambda x: exact(network, x))
    current, step = network, 0.0
    for _ in range(4):
        bound = float(rounding(current, box, label).deployed.amax())
        step += exact(current, worst) - share * bound
        current = shifted(network, int(label), step)
    while exact(current, worst) <= share * float(rounding(current, box, label).deployed.amax()):
        step -= 0.05 * share * bound + abs(step) * 2**-24
        current = shifted(network, int(label), step)
    return current, worst


@torch.no_grad()
def broken(network: Network, inputs: list[Tensor], label: Tensor) -> int:
    """How many pairs of an engine and an input have a margin that is not positive."""
    return sum(
        int(smallest_margin(margins_of(engine(x), label), label) <= 0)
        for engine in engines(network).values()
        for x in inputs
    )


def search(network: Network, rows: list[Row], images: Tensor, labels: Tensor, eps: float) -> dict[str, Any]:
    certified = [row for row in rows if row.status == "certified"]
    weakest = sorted(certified, key=lambda row: row.lower_margin or 0.0)[:WEAKEST]
    reached: dict[str, float] = {}
    as_they_are, narrow = 0, 0
    touched = dict.fromkeys(SHARES, 0)
    tried = 0
    for row in weakest:
        x, label = images[row.sample : row.sample + 1], labels[row.sample : row.sample + 1]
        box = perturbation_box(x, eps)
        inputs = list(points(network, box, label, network.to(torch.float64)))
        tried += len(inputs) * len(engines(network))
        as_they_are += bool(broken(network, inputs, label))
        small = narrowed(network, box, label, SHARES[0])[0]
        narrow += bool(broken(small, list(points(small, box, label, small.to(torch.float64))), label))
        for share in SHARES:
            net, worst = touching(network, box, label, inputs, share)
            touched[share] += bool(broken(net, [worst], label))
        deployed = rounding(network, box, label).deployed
        for name, engine in engines(network).items():
            found = climb(network, engine, network.to(torch.float64), box, label, deployed)
            reached[name] = max(reached.get(name, 0.0), found)
    return {
        "samples": len(weakest),
        "evaluations of each network": tried,
        "broken as they are": as_they_are,
        "broken with the certified margin just above the bound": narrow,
        "broken with the attacked margin at a share of the bound": {str(k): v for k, v in touched.items()},
        "largest share of the bound reached": reached,
    }


def certificates(network: Network, rows: list[Row], images: Tensor, labels: Tensor, eps: float) -> dict[str, Any]:
    """What ``ctkd certify`` reports, and how the two errors spread."""
    certified = [row for row in rows if row.status == "certified"]
    began, deployed, bounds = time.monotonic(), [], []
    for start in range(0, len(certified), 250):
        indices = [row.sample for row in certified[start : start + 250]]
        found = rounding(network, perturbation_box(images[indices], eps), labels[indices]).largest()
        deployed.append(found.deployed)
        bounds.append(found.bounds)
    own, stages = torch.cat(deployed), torch.cat(bounds)
    margins = torch.tensor([row.lower_margin for row in certified], dtype=torch.float64)
    return {
        "certified": len(certified),
        "fall": int((margins <= own + stages).sum()),
        "smallest margin": float(margins.min()),
        "deployed": {"median": float(own.median()), "largest": float(own.max())},
        "bounds": {"median": float(stages.median()), "largest": float(stages.max())},
        "largest share of the margin": float(((own + stages) / margins).max()),
        "seconds per 1000 samples": round(1000 * (time.monotonic() - began) / len(certified), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = RunFolder.open(given.run)
    config = resolve({"data.dir": given.data_dir} if given.data_dir else {}, folder.config, trained=True)
    split = getattr(load_data(config), config.certify.split)
    network, eps = Network.load(folder.network), config.train.eps
    with Store(folder.results) as store:
        (settings,) = store.connection.execute("SELECT MAX(id) FROM settings WHERE eps = ?", (eps,)).fetchone()
        rows = store.rows(int(settings), range(len(split)))
    given_data = rows, split.images, split.labels, eps
    print(json.dumps({**certificates(network, *given_data), **search(network, *given_data)}, indent=2))


if __name__ == "__main__":
    main()
