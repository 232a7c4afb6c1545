# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Fast paths of margins and backward relaxation against the plain formulas: equal values, equal gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ctkd.propagate.spread as spread_module
import ctkd.propagate.windows as windows
from ctkd.boxes import perturbation_box
from ctkd.propagate import crown_pre_activation, lower_bounds, propagate, relax, trace
from ctkd.propagate.crown import _interval_is_exact
from ctkd.propagate.ops import Conv, Lines, Relu
from ctkd.propagate.spread import Spread

from .nets import Case, cases, close, quick

EXACT = {torch.float64: 1e-10, torch.float32: 1e-4}
DTYPES = list(EXACT)


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def alike(fast: tuple[Tensor, ...], plain: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
    """Values and gradients."""
    weights = [noise(*one.shape, dtype=one.dtype, seed=i) for i, one in enumerate(fast)]
    pairs = [*zip(fast, plain, strict=True)]
    pairs += zip(*(torch.autograd.grad(some, inputs, weights) for some in (fast, plain)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=EXACT[a.dtype], atol=EXACT[a.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 70, 2**20])
def test_spread_is_its_formula(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spread_module.CHUNK, "cpu", chunk)
    weight = noise(5, 7, dtype=dtype).requires_grad_()
    base = noise(9, 7, dtype=dtype, seed=1).requires_grad_()
    radius = noise(9, 7, dtype=dtype, seed=2).abs().requires_grad_()
    inputs = [base, weight, radius]
    plain = ((base.unsqueeze(1) - weight).abs() * radius.unsqueeze(1)).sum(2)
    alike((Spread.apply(*inputs),), (plain,), inputs)  # type: ignore[no-untyped-call]
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(Spread.apply, inputs)


def test_spread_asks_for_no_gradient_that_nobody_needs() -> None:
    weight, base, radius = (noise(*shape, dtype=torch.float64) for shape in ((5, 7), (3, 7), (3, 7)))
    weight.requires_grad_()
    Spread.apply(base, weight, radius).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    radius.requires_grad_()
    Spread.apply(base, weight.detach(), radius).sum().backward()  # type: ignore[no-untyped-call]
    assert radius.grad is not None
    assert Spread.apply(base[:0], weight, radius[:0]).shape == (0, 5)  # type: ignore[no-untyped-call]


def test_no_tensor_grows_with_batch_and_classes_and_features_at_once() -> None:
    classes, features, batch = 300, 64, 50
    weight, radius = noise(classes, features, dtype=torch.float32).requires_grad_(), torch.rand(batch, features)
    radius.requires_grad_()
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setitem(spread_module.CHUNK, "cpu", 2 * classes * features)
        Spread.apply(weight[:batch], weight, radius).sum().backward()  # type: ignore[no-untyped-call]
    assert largest == 2 * classes * features


def plain_lines(lines: Lines, rows: Tensor) -> tuple[Tensor, Tensor]:
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    result = positive * lines.lower_slope.unsqueeze(1) + negative * lines.upper_slope.unsqueeze(1)
    constant = rows.new_zeros(rows.shape[:2])
    for part, shift in ((positive, lines.lower_shift), (negative, lines.upper_shift)):
        if shift is not None:
            constant = constant + (part * shift.unsqueeze(1)).flatten(2).sum(2)
    return result, constant


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("specs", [1, 3])
@pytest.mark.parametrize("shifts", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lines_are_their_formula(
    dtype: torch.dtype, specs: int, shifts: tuple[bool, bool], layout: torch.memory_format
) -> None:
    parts = [noise(2, 3, 4, 5, dtype=dtype, seed=i).contiguous(memory_format=layout) for i in range(4)]
    rows = noise(2 * specs, 3, 4, 5, dtype=dtype, seed=9).contiguous(memory_format=layout).unflatten(0, (2, specs))
    used = [part.requires_grad_() for part, use in zip(parts, (True, True, *shifts), strict=True) if use]
    lines = Lines(*parts[:2], *(part if use else None for part, use in zip(parts[2:], shifts, strict=True)))
    rows.requires_grad_()
    result, constant = lines.backward(rows)
    assert (constant is None) == (shifts == (False, False))
    fast = (result,) if constant is None else (result, constant)
    alike(fast, plain_lines(lines, rows)[: len(fast)], [rows, *used])


def plain_relu(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    active, unstable = lower >= 0, Relu().unstable(lower, upper)
    width = torch.where(unstable, upper - lower, 1)
    chord = torch.where(unstable, upper / width, active.to(upper.dtype))
    return chord, torch.where(unstable, -chord * lower, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rectifiers_chord_is_its_formula(dtype: torch.dtype) -> None:
    lower = noise(500, dtype=dtype)
    ends = [lower.requires_grad_(), (lower + noise(500, dtype=dtype, seed=1).abs()).detach().requires_grad_()]
    lines = Relu().relax(*ends)
    assert lines.upper_shift is not None
    alike((lines.upper_slope, lines.upper_shift), plain_relu(*ends), ends)


def test_a_bound_of_a_rectifier_that_is_no_number_reaches_the_result() -> None:
    for ends in ((torch.nan, 1.0), (-1.0, torch.nan), (-torch.inf, torch.inf)):
        for row in (-1.0, 0.0, 1.0):
            lines = Relu().relax(*(torch.full((1, 2), end) for end in ends))
            _, constant = lines.backward(torch.full((1, 1, 2), row))
            assert constant is not None
            assert constant.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), [
    (3, 1, 1, 1, 1), (4, 2, 1, 1, 1), (3, 2, 0, 2, 1), (3, 2, 1, 1, 0), (1, 3, 0, 1, 1),
])  # fmt: skip
def test_convolutions_pull_back_by_their_transpose(
    dtype: torch.dtype, channels: int, kernel: int, stride: int, padding: int, dilation: int, groups: int
) -> None:
    groups = groups or channels
    weight = noise(8 * groups, channels // groups, kernel, kernel, dtype=dtype).requires_grad_()
    bias = noise(8 * groups, dtype=dtype, seed=1).requires_grad_()
    op = Conv(weight, bias, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    x = noise(2, channels, 10, 9, dtype=dtype, seed=2).requires_grad_()
    value = op(x)
    rows = noise(*value.shape, dtype=dtype, seed=3).requires_grad_()
    (pulled,) = torch.autograd.grad(value, x, rows, create_graph=True)
    alike(op.backward(rows, (channels, 10, 9)), (pulled, (rows.sum((2, 3)) * bias).sum(1)), [rows, weight, bias])


def in_whole_images(case: Case) -> dict[int, tuple[Tensor, Tensor]]:
    """CROWN by rows as large as each layer, without windows: two calls of ``lower_bounds`` for each layer."""
    network, box = case.network, case.box
    known: dict[int, tuple[Tensor, Tensor]] = {}

    def tighten(i: int, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        source, op = network.nodes[i].inputs[0], network.nodes[i].op
        chosen = op.unstable(lower, upper) & (source not in _interval_is_exact(network))  # type: ignore[union-attr]
        sample, neuron = chosen.flatten(1).nonzero(as_tuple=True)
        rows = torch.eye(lower[0].numel(), dtype=lower.dtype)[neuron].reshape(-1, *lower.shape[1:])
        low, high = lower.clone(), upper.clone()
        relaxations = relax(network, known)
        found = [lower_bounds(network, source, sign * rows, sample, relaxations, box) for sign in (1, -1)]
        low[chosen] = torch.maximum(low[chosen], found[0])
        high[chosen] = torch.minimum(high[chosen], -found[1])
        known[i] = torch.minimum(low, high), torch.maximum(low, high)
        return known[i]

    propagate(network, None, box, tighten=tighten)
    return known


@quick(30)
@given(cases(("conv", "residual", "curved", "pooled")))
def test_windows_change_nothing(case: Case) -> None:
    expected = in_whole_images(case)
    for share in (0.0, 0.5, 100.0):  # never, as usual, and even where they are larger than the image
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(windows, "SHARE", share)
            for i, bounds in crown_pre_activation(case.network, case.box).items():
                for found, wanted in zip(bounds, expected[i], strict=True):
                    close(found, wanted, 1e-10)


def deep(*layers: Any) -> Case:
    torch.manual_seed(0)
    for layer in layers:  # they were made when this file was read, from whatever random numbers
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    module = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.rand(2, 2, 12, 11, dtype=torch.float64)
    module(x)
    return Case(module.eval(), x, torch.tensor([0, 1]), 0.05)


WINDOWED = {
    "plain": (nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3)),
    "one after the other": (
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, padding=1),
        nn.Conv2d(4, 4, 2),
    ),
    "grouped, dilated": (nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, (2, 3), (1, 2), 2, (2, 1), groups=2)),
    "strided past the border": (nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 2, 3, 1)),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_of_deep_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = deep(*WINDOWED[name], nn.ReLU())
    used: list[int] = []
    pull = windows.Path.pull

    def spy(self: windows.Path, *args: Any) -> Any:
        used.append(len(self.nodes))
        return pull(self, *args)

    monkeypatch.setattr(windows.Path, "pull", spy)
    expected = in_whole_images(case)
    for i, bounds in crown_pre_activation(case.network, case.box).items():
        close(torch.stack(bounds), torch.stack(expected[i]), 1e-10)
    assert used
    single = trace(case.module.float(), (2, 12, 11)).bind().detach()
    for i, bounds in crown_pre_activation(single, perturbation_box(case.x.float(), case.eps)).items():
        torch.testing.assert_close(torch.stack(bounds).double(), torch.stack(expected[i]), rtol=1e-4, atol=1e-4)
