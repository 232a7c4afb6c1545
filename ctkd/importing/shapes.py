# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Changes of shape that keep the order of the numbers and the batch in front, and padding with zeros."""

from __future__ import annotations

from math import prod

from ctkd.importing.builder import Call, Ref, Refused


def flatten(call: Call) -> Ref:
    x = call.ref()
    axis = call.take("axis", 1)
    if axis % (len(x.shape) + 1) != 1:
        raise Refused(f"axis={axis} does not keep the batch apart; accepted: axis=1")
    return call.builder.reshaped(x, (prod(x.shape),), call.path)


def reshape(call: Call) -> Ref:
    x = call.ref()
    wanted = call.integers(1, "shape")
    sizes = [call.builder.batch, *x.shape]
    if not call.take("allowzero", 0):
        wanted = [sizes[i] if size == 0 and i < len(sizes) else size for i, size in enumerate(wanted)]
    if wanted.count(-1) > 1 or any(size < -1 or size == 0 for size in wanted):
        raise Refused(f"to {wanted}; accepted: sizes above 0, and one -1")
    if -1 in wanted:
        known = prod(size for size in wanted if size != -1)
        if prod(sizes) % known:
            raise Refused(f"to {wanted} from {sizes}, which does not divide evenly")
        wanted = [prod(sizes) // known if size == -1 else size for size in wanted]
    if prod(wanted) != prod(sizes):
        literal = (
            f"; the model's batch dimension is symbolic, and {wanted} holds a fixed one"
            if call.builder.batch > 1
            else ""
        )
        raise Refused(f"to {wanted} from {sizes}, which has another number of elements{literal}")
    return _kept(call, x, wanted)


def squeeze(call: Call) -> Ref:
    x = call.ref()
    sizes = [call.builder.batch, *x.shape]
    axes = call.take("axes") or (call.integers(1, "axes") if call.has(1) else None)
    if axes is None:
        raise Refused("names no axes, so it may remove the batch dimension; name them")
    axes = [axis % len(sizes) for axis in axes]
    if any(sizes[axis] != 1 for axis in axes):
        raise Refused(f"removes axes {axes} of {sizes}; accepted: axes of size 1")
    return _kept(call, x, [size for i, size in enumerate(sizes) if i not in axes] if 0 not in axes else [])


def unsqueeze(call: Call) -> Ref:
    x = call.ref()
    axes = call.take("axes") or call.integers(1, "axes")
    rank = len(x.shape) + 1 + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter([call.builder.batch, *x.shape])
    if len(places) != len(axes) or 0 in places:
        raise Refused(f"adds axes {axes}; accepted: behind the batch dimension")
    return _kept(call, x, [1 if i in places else next(rest) for i in range(rank)])


def transpose(call: Call) -> Ref:
    """Only where nothing moves but dimensions of size 1."""
    x = call.ref()
    sizes = [call.builder.batch, *x.shape]
    order = call.take("perm", list(range(len(sizes)))[::-1])
    moved = [i for i in order if sizes[i] != 1 or i == 0]
    if sorted(order) != list(range(len(sizes))) or order[0] != 0 or moved != sorted(moved):
        raise Refused(
            f"perm={order} of {sizes} moves numbers; accepted: where only dimensions of size 1 move. "
            "Export the model with channels first (batch, channels, height, width)"
        )
    return _kept(call, x, [sizes[i] for i in order])


def _kept(call: Call, x: Ref, sizes: list[int]) -> Ref:
    if len(sizes) < 2 or sizes[0] != call.builder.batch:
        raise Refused(f"to {sizes}, where the batch dimension does not stay first")
    if x.pads != (0, 0, 0, 0):
        raise Refused("it reads zeros that a Pad has added; only a Conv may do so")
    return call.builder.reshaped(x, tuple(sizes[1:]), call.path)


def pad(call: Call) -> Ref:
    """Zeros around an image, which the Conv behind takes over."""
    x = call.image()
    call.only("mode", "constant", "constant")
    pads = call.take("pads") or call.integers(1, "pads")
    value = call.take("value", 0.0)
    if call.has(2):
        value = float(call.array(2, "value").reshape(-1)[0])
    if call.has(3):
        raise Refused("pads chosen axes; write pads for all four dimensions")
    if len(pads) != 8 or value != 0 or any(pads[i] for i in (0, 1, 4, 5)) or not all(0 <= v <= 2**15 for v in pads):
        raise Refused(f"pads={pads} with {value}; accepted: zeros around height and width, before a Conv")
    top, left, bottom, right = (a + b for a, b in zip(x.pads, (pads[2], pads[3], pads[6], pads[7]), strict=True))
    return Ref(x.index, x.shape, (top, left, bottom, right))
