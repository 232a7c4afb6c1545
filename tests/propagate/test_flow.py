# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Joint passes of points and boxes, and pieces of a network."""

from __future__ import annotations

import torch
from hypothesis import given

from ctkd.boxes import centre_radius
from ctkd.propagate import Flow, interval_margins, margins_of, propagate

from .nets import Case, at_least, cases, close, make, points, quick, values_at


@quick(40)
@given(cases())
def test_points_and_boxes_do_not_see_each_other(case: Case) -> None:
    network, box = case.network, case.box
    x = torch.cat([box.lower, case.x, box.upper])
    joint = propagate(network, x, box)
    only_points, only_boxes = propagate(network, x, None), propagate(network, None, box)
    assert (joint.points, only_points.points, only_boxes.points) == (6, 6, 0)
    assert joint.box is box
    close(joint.value[:6], only_points.value)
    close(joint.value[:6], network(x))
    close(joint.value[6:], only_boxes.value)
    close(joint.radius, only_boxes.radius)
    assert not only_points.pre_activation
    assert only_points.box is None
    for i, bounds in only_boxes.pre_activation.items():
        close(torch.stack(joint.pre_activation[i]), torch.stack(bounds))
    for one, other in zip(*(interval_margins(network, flow, case.labels) for flow in (joint, only_boxes)), strict=True):
        close(one, other)
    if network.features_node is not None:
        close(joint.features[:6], network.evaluate(x, network.features_node)[0])
        close(joint.features[6:], only_boxes.features)
        close(joint.feature_radius, only_boxes.feature_radius)
    else:
        assert joint.features is joint.feature_radius is None


@quick(20)
@given(cases())
def test_samples_do_not_see_each_other(case: Case) -> None:
    whole = propagate(case.network, None, case.box)
    for b in range(2):
        one = propagate(case.network, None, case.box[b : b + 1])
        close(whole.value[b : b + 1], one.value)
        close(whole.radius[b : b + 1], one.radius)


def cuts(case: Case) -> list[int]:
    """Nodes that every path from the input to the logits passes."""
    edges = [(source, i) for i, node in enumerate(case.network.nodes) for source in node.inputs]
    return [k for k in range(len(case.network.nodes)) if not any(a < k < b for a, b in edges)]


def same(left: Flow, right: Flow) -> None:
    close(left.value, right.value)
    close(left.radius, right.radius)
    for i in set(left.pre_activation) & set(right.pre_activation):
        close(torch.stack(left.pre_activation[i]), torch.stack(right.pre_activation[i]))


@quick(40)
@given(cases())
def test_two_pieces_make_the_whole(case: Case) -> None:
    network = case.network
    whole = propagate(network, case.x, case.box)
    for cut in cuts(case):
        first = propagate(network, case.x, case.box, stop=cut)
        close(first.value[:2], network.evaluate(case.x, cut)[0])
        second = propagate(network, first.value[:2], (first.value[2:], first.radius), start=cut)
        assert set(first.pre_activation) | set(second.pre_activation) == set(whole.pre_activation)
        assert not set(first.pre_activation) & set(second.pre_activation)
        assert second.box is None
        same(second, whole)
        tap = network.features_node
        if tap is None or cut <= tap:
            margins = [interval_margins(network, flow, case.labels)[0] for flow in (second, whole)]
            close(*margins)
        if tap is not None and cut <= tap:
            close(second.features, whole.features)


@quick(20)
@given(cases())
def test_a_piece_in_the_middle_bounds_what_passes_it(case: Case) -> None:
    network, x = case.network, points(case)
    inner = cuts(case)[1:-1]
    if len(inner) < 2:
        return
    start, stop = inner[0], inner[-1]
    before = propagate(network, None, case.box, stop=start)
    piece = propagate(network, None, (before.value, before.radius), start=start, stop=stop)
    (value,) = values_at(case, x, stop)
    at_least(piece.radius.expand_as(value), (value - piece.value).abs())


@quick(20)
@given(cases(kinds=("residual",)))
def test_a_piece_may_end_inside_a_branch(case: Case) -> None:
    for stop in range(1, len(case.network.nodes)):
        flow = propagate(case.network, case.x, case.box, stop=stop)
        close(flow.value[:2], case.network.evaluate(case.x, stop)[0])
        assert max(flow.pre_activation, default=0) <= stop


def test_boxes_may_start_inside() -> None:
    case = make("mlp", 3)
    network = case.network
    start = network.activations[0]
    flow = propagate(network, None, case.box, stop=start)
    box = type(case.box)(flow.value - flow.radius, flow.value + flow.radius)
    same(propagate(network, None, box, start=start), propagate(network, None, centre_radius(box), start=start))


def test_more_points_than_boxes() -> None:
    case = make("conv", 4, batch=3)
    x = torch.rand(7, *case.x.shape[1:], dtype=torch.float64)
    flow = propagate(case.network, x, case.box[1:])
    assert flow.value.shape == (9, 3)
    assert flow.radius.shape == (2, 3)
    close(
        margins_of(flow.value[:7], torch.zeros(7, dtype=torch.long)),
        margins_of(case.network(x), torch.zeros(7, dtype=torch.long)),
    )


def test_evaluate_returns_the_nodes_asked_for() -> None:
    case = make("residual", 2)
    network = case.network
    every = network.evaluate(case.x, *range(len(network.nodes)))
    assert torch.equal(every[0], case.x)
    for i, value in enumerate(every):
        assert tuple(value.shape[1:]) == network.nodes[i].shape
        assert torch.equal(network.evaluate(case.x, i)[0], value)
    assert torch.equal(every[-1], network(case.x))
