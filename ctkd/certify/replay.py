# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The checker of stored proofs. Small and slow on purpose: it shares no code with the bounds and searches it checks.

From the rest it takes networks and what their operators compute at points. Rows are pulled back through an affine
operator by automatic differentiation, and all else is written here again. The form of proofs, and why the steps below
prove what they claim, is in docs/proofs.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ctkd.certify.proofs import Proof
from ctkd.errors import RunFailed
from ctkd.propagate import Network
from ctkd.propagate.ops import Add, Affine, LeakyRelu, Op, Relu

PROVED = 1e-10
"""A bound counts as above zero from here on, times the largest bound (at least 1)."""
CANCELLED = 1e-13
"""Bounds are lowered by this times the sizes of what multipliers add: such terms may cancel, which leaves rounding."""
ELEMENTS = 2**22
"""How many numbers one batch of rows may have at the widest node."""
FORM = {
    "unit.node": (torch.int32, 1),
    "unit.place": (torch.int32, 1),
    "leaf.rival": (torch.int32, 1),
    "leaf.depth": (torch.int32, 1),
    "leaf.slope": (torch.uint8, 2),
    "path.split": (torch.int32, 1),
    "path.multiplier": (torch.float32, 1),
    "box.lower": (torch.float32, None),
    "box.upper": (torch.float32, None),
}
Lines = tuple[Tensor, Tensor, Tensor, Tensor]
"""Slope below, slope above, shift above, and what is subtracted from rows; each broadcasts over (rows, *shape)."""


@torch.no_grad()
def replay(network: Network, proof: Proof) -> float:
    """The smallest margin that the proof shows for its network, label and box, in float64.

    Raises: RunFailed, with one line, if it proves nothing.
    """
    t = proof.tensors
    _check_form(network, proof)
    _check_trees(t, [j for j in range(network.classes) if j != proof.claim["label"]])
    network = network.to(torch.float64)
    lower, upper = t["box.lower"].double()[None], t["box.upper"].double()[None]
    bounds = _rectifier_inputs(network, lower, upper)
    found = torch.full((network.classes,), torch.inf, dtype=torch.float64)
    ends = t["leaf.depth"].long().cumsum(0)
    step = _rows_at_once(network)
    for start in range(0, len(ends), step):
        leaves = range(start, min(start + step, len(ends)))
        values = _leaves(network, proof, bounds, leaves, ends.tolist(), (lower, upper))
        for k, value in zip(leaves, values.tolist(), strict=True):
            rival = int(t["leaf.rival"][k])
            found[rival] = min(float(found[rival]), value) if value == value else -torch.inf
    least, size = float(found.min()), float(found[found < torch.inf].abs().max())
    if not least > PROVED * max(1.0, size):
        raise RunFailed(f"the bound of rival class {int(found.argmin())} is {least:.3g}, not above zero")
    return least


def _check_form(network: Network, proof: Proof) -> None:
    t = proof.tensors
    for name, (dtype, rank) in FORM.items():
        if name not in t or t[name].dtype != dtype or (rank is not None and t[name].dim() != rank):
            raise RunFailed(f"tensor {name} is missing, or not of type {dtype} and rank {rank}")
    if proof.claim.get("network") != network.sha256():
        raise RunFailed("it is about another network")
    if proof.claim.get("label") not in range(network.classes):
        raise RunFailed(f"its label {proof.claim.get('label')} is no class of the network")
    for name in ("box.lower", "box.upper"):
        if tuple(t[name].shape) != network.input_shape:
            raise RunFailed(f"{name} has shape {tuple(t[name].shape)}; the network takes {network.input_shape}")
    if not bool((t["box.lower"] <= t["box.upper"]).all()):
        raise RunFailed("its box is empty")
    leaves, units, total = len(t["leaf.rival"]), len(t["unit.node"]), int(t["leaf.depth"].sum())
    sizes = {"unit.place": units, "leaf.depth": leaves, "path.split": total, "path.multiplier": total}
    for name, count in sizes.items():
        if len(t[name]) != count:
            raise RunFailed(f"tensor {name} has {len(t[name])} entries; the others need {count}")
    if tuple(t["leaf.slope"].shape) != (leaves, units) or (leaves and int(t["leaf.depth"].min()) < 0):
        raise RunFailed("the slopes, or the depths, of its leaves do not fit")
    if not bool((t["path.multiplier"] >= 0).all() & t["path.multiplier"].isfinite().all()):
        raise RunFailed("a multiplier is negative or not finite")
    for i, node in enumerate(network.nodes[1:], start=1):
        leak = _leak(node.op)
        if not isinstance(node.op, Affine | Add) and (leak is None or not 0 <= leak < 1):
            raise RunFailed(f"node {i} ({type(node.op).__name__}) is neither affine nor a rectifier")
    pairs = list(zip(t["unit.node"].tolist(), t["unit.place"].tolist(), strict=True))
    for node, place in pairs:
        inside = 0 < node < len(network.nodes) and _leak(network.nodes[node].op) is not None
        if not inside or not 0 <= place < prod(network.nodes[node].shape):
            raise RunFailed(f"unit ({node}, {place}) is not a rectifier of the network")
    if len(set(pairs)) != len(pairs):
        raise RunFailed("a unit is listed twice")


def _check_trees(t: Mapping[str, Tensor], rivals: list[int]) -> None:
    """For each rival the leaves must cover the box: at every inner node both signs of one unit."""
    paths: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    splits, units, at = t["path.split"].tolist(), len(t["unit.node"]), 0
    for rival, depth in zip(t["leaf.rival"].tolist(), t["leaf.depth"].tolist(), strict=True):
        path = tuple(splits[at : at + depth])
        at += depth
        if any(not 1 <= abs(split) <= units for split in path) or len({abs(s) for s in path}) != depth:
            raise RunFailed("a path splits what is no unit, or a unit twice")
        paths[rival].append(path)
    if sorted(paths) != rivals:
        raise RunFailed(f"its leaves are about classes {sorted(paths)}, and the other classes are {rivals}")
    for rival, leaves in paths.items():
        waiting = [(leaves, 0)]
        while waiting:
            group, depth = waiting.pop()
            if len(group) == 1 and len(group[0]) == depth:
                continue
            if any(len(path) <= depth for path in group) or len({abs(path[depth]) for path in group}) != 1:
                raise RunFailed(f"the leaves of rival class {rival} are not those of a tree")
            for sign in (1, -1):
                part = [path for path in group if path[depth] * sign > 0]
                if not part:
                    raise RunFailed(f"the leaves of rival class {rival} do not cover the box: one is missing")
                waiting.append((part, depth + 1))


def _leak(op: Op | None) -> Tensor | None:
    """A rectifier's slope below zero; None for other operators."""
    if isinstance(op, Relu):
        return torch.zeros((), dtype=torch.float64)
    return op.negative_slope.double() if isinstance(op, LeakyRelu) else None


def _rows_at_once(network: Network) -> int:
    return max(1, ELEMENTS // max(prod(node.shape) for node in network.nodes))


def _lines(low: Tensor, high: Tensor, leak: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lines around a rectifier between two bounds; ``chosen`` is the slope below where it is unstable."""
    unstable = (low < 0) & (high > 0)
    stable = torch.where(low >= 0, torch.ones_like(low), leak)
    chord = (high - leak * low) / torch.where(unstable, high - low, 1)
    above = torch.where(unstable, chord, stable)
    return torch.where(unstable, chosen, stable), above, torch.where(unstable, (leak - chord) * low, 0)


def _crown_slope(low: Tensor, high: Tensor, leak: Tensor) -> Tensor:
    return torch.where(high > -low, torch.ones_like(low), leak)


def _least(network: Network, node: int, rows: Tensor, lines: dict[int, Lines], box: tuple[Tensor, Tensor]) -> Tensor:
    """Lower bounds over the box of functionals of a node, (rows, *shape) to (rows,)."""
    pending = {node: rows}
    constant = torch.zeros(len(rows), dtype=torch.float64)
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        current, entry = pending.pop(i), network.nodes[i]
        if _leak(entry.op) is not None:
            below, above, shift, push = lines[i]
            positive, negative = current.clamp(min=0), current.clamp(max=0)
            constant = constant + (negative * shift).flatten(1).sum(1)
            pulled: tuple[Tensor, ...] = (positive * below + negative * above - push,)
        else:
            assert entry.op is not None
            with torch.enable_grad():
                at_zero = [torch.zeros(len(rows), *network.nodes[j].shape, dtype=torch.float64) for j in entry.inputs]
                value = entry.op(*(x.requires_grad_() for x in at_zero))
                pulled = torch.autograd.grad(value, at_zero, current)
            constant = constant + (current * value.detach()).flatten(1).sum(1)
        for source, part in zip(entry.inputs, pulled, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    lower, upper = (end.flatten(1) for end in box)
    at_input = pending[0].flatten(1)
    return constant + (at_input.clamp(min=0) * lower + at_input.clamp(max=0) * upper).sum(1)


def _rectifier_inputs(network: Network, lower: Tensor, upper: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Bounds of every rectifier's input: intervals, and CROWN's where those leave the sign open."""
    known = {0: (lower, upper)}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    lines: dict[int, Lines] = {}
    for i, node in enumerate(network.nodes[1:], start=1):
        assert node.op is not None
        leak = _leak(node.op)
        given = [known[source] for source in node.inputs]
        if leak is None:
            middle = node.op(*((low + high) / 2 for low, high in given))
            widths = [(high - low) / 2 for low, high in given]
            size = node.op.map(Tensor.abs)  # its difference has the absolute weights alone
            spread = size(*widths) - size(*(torch.zeros_like(width) for width in widths))
            known[i] = middle - spread, middle + spread
            continue
        low, high = (end.clone() for end in given[0])
        places = ((low < 0) & (high > 0)).flatten().nonzero().squeeze(1)
        for some in torch.split(places, _rows_at_once(network)):
            rows = torch.zeros(len(some), low.numel(), dtype=torch.float64).scatter_(1, some[:, None], 1.0)
            rows = rows.reshape(-1, *node.shape)
            at = node.inputs[0]
            low.view(-1)[some] = low.view(-1)[some].maximum(_least(network, at, rows, lines, (lower, upper)))
            high.view(-1)[some] = high.view(-1)[some].minimum(-_least(network, at, -rows, lines, (lower, upper)))
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        found[i] = low, high
        lines[i] = (*_lines(low, high, leak, _crown_slope(low, high, leak)), torch.zeros_like(low))
        known[i] = node.op(low), node.op(high)
    return found


def _leaves(
    network: Network,
    proof: Proof,
    bounds: dict[int, tuple[Tensor, Tensor]],
    leaves: range,
    ends: list[int],
    box: tuple[Tensor, Tensor],
) -> Tensor:
    """Lower bounds of the margins of some leaves to their rivals, each within what its path fixes."""
    t, count = proof.tensors, len(leaves)
    sign, push = (torch.zeros(count, len(t["unit.node"]), dtype=torch.float64) for _ in range(2))
    for row, k in enumerate(leaves):
        path = slice(ends[k] - int(t["leaf.depth"][k]), ends[k])
        split = t["path.split"][path].long()
        sign[row, split.abs() - 1] = split.sign().double()
        push[row, split.abs() - 1] = t["path.multiplier"][path].double() * split.sign()
    share = t["leaf.slope"][leaves.start : leaves.stop].double() / 255
    rounding = torch.zeros(count, dtype=torch.float64)
    lines: dict[int, Lines] = {}
    for i, (low, high) in bounds.items():
        leak = _leak(network.nodes[i].op)
        assert leak is not None
        mine = (t["unit.node"] == i).nonzero().squeeze(1)
        places = t["unit.place"][mine].long()
        flat_low, flat_high = (end.flatten(1).repeat(count, 1) for end in (low, high))
        slope, pushed = _crown_slope(flat_low, flat_high, leak), torch.zeros_like(flat_low)
        slope[:, places] = leak + (1 - leak) * share[:, mine]
        pushed[:, places] = push[:, mine]
        rounding += CANCELLED * (pushed.abs() * flat_low.abs().maximum(flat_high.abs())).sum(1)
        fixed = sign[:, mine]
        flat_low[:, places] = torch.where(fixed > 0, flat_low[:, places].clamp(min=0), flat_low[:, places])
        flat_high[:, places] = torch.where(fixed < 0, flat_high[:, places].clamp(max=0), flat_high[:, places])
        shape = (count, *network.nodes[i].shape)
        parts = (*_lines(flat_low, flat_high, leak, slope), pushed)
        lines[i] = tuple(part.reshape(shape) for part in parts)  # type: ignore[assignment]
    eye = torch.eye(network.classes, dtype=torch.float64)
    rows = eye[proof.claim["label"]] - eye[t["leaf.rival"][leaves.start : leaves.stop].long()]
    return _least(network, network.output, rows, lines, box) - rounding
