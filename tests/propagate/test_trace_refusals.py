# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What tracing refuses and with which words, so that no layer is ever bounded as another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput
from ctkd.propagate import SUPPORTED, crown_pre_activation, propagate, relaxed_margins, trace

from .nets import Apply, close
from .test_trace import Layers, agrees, layers


def refused(module: nn.Module, shape: tuple[int, ...] = (4,)) -> str:
    with pytest.raises(BadInput) as caught:
        trace(module, shape)
    return str(caught.value)


def test_an_unsupported_layer_is_named_with_its_path_and_what_is_supported() -> None:
    message = refused(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.GELU()), nn.Linear(4, 3)))
    assert message == f"layer '1.1': GELU is not supported\nsupported: {SUPPORTED}"


def test_all_problems_are_reported_at_once() -> None:
    module = nn.Sequential(
        nn.Linear(4, 4),
        nn.GELU(),
        Apply(torch.exp),
        nn.Dropout(),
        nn.Linear(4, 4),
        nn.Softplus(),
        nn.Linear(4, 3),
    )
    with pytest.raises(BadInput) as caught:
        trace(module, (4,))
    *problems, supported = caught.value.messages
    assert [problem.split(":")[0] for problem in problems] == [
        "layer '1'",
        "layer '2.exp'",
        "layer '3'",
        "layer '5'",
    ]
    assert supported == f"supported: {SUPPORTED}"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda m, x: m.head(torch.exp(x)), "layer 'exp': exp is not supported"),
        (lambda m, x: m.head(F.leaky_relu(x, -0.1)), "LeakyReLU with negative_slope=-0.1; accepted: a number of at"),
        (lambda m, x: m.head(F.leaky_relu(x, m.shift[0])), "accepted: a number of at least 0, less than 1"),
        (lambda m, x: m.head(F.leaky_relu(x, 1.0)), "LeakyReLU with negative_slope=1.0; accepted"),
        (lambda m, x: m.head(F.max_pool2d(x, 2)), "acts on images (channels, height, width), found (4,)"),
        (lambda m, x: m.head(F.leaky_relu(x, x.mean())), "layer 'mean': mean is not supported"),
        (lambda m, x: m.head(x.transpose(1, 0)), "transpose is not supported"),
        (lambda m, x: F.softmax(m.head(x), 1), "softmax is not supported"),
        (lambda m, x: m.head(x * x), "a product or quotient of two values that depend on the input"),
        (lambda m, x: m.head(1 / x), "a constant divided by a value that depends on the input"),
        (lambda m, x: m.head(torch.add(x, x, alpha=2)), "add is not supported"),
        (lambda m, x: m.head(x[:, :4]), "getitem of a value that depends on the input"),
        (lambda m, x: m.head(x + m.gain), "arithmetic with a trainable parameter; use a layer or a buffer"),
        (lambda m, x: m.head(m.gain * x), "arithmetic with a trainable parameter"),
        (lambda m, x: m.head(x + torch.zeros(4, 1).double()), "a constant that differs between the samples of a batch"),
        (lambda m, x: m.head(x) + torch.zeros(3, 3).double(), "a constant that differs between the samples of a batch"),
        (lambda m, x: m.head(x.view(7, -1)), "layer 'view': shape '[7, -1]' is invalid"),
        (lambda m, x: m.head(x.view(2, 6)), "layer 'view': the batch dimension does not stay first"),
        (lambda m, x: m.head(x.view(-1)), "the batch dimension does not stay first"),
        (lambda m, x: m.head(x if x.sum() > 0 else -x), "must not branch or loop on values that depend on the input"),
        (lambda m, x: sum(m.head(row) for row in x), "must not branch or loop"),
        (lambda m, x: (m.head(x), x), "must return logits of shape (batch, classes)"),
        (lambda m, x: {"logits": m.head(x)}, "must return logits of shape (batch, classes)"),
        (lambda m, x: m.head(x).view(-1, 3, 1), "must return logits of shape (batch, classes), found (3, 1)"),
        (lambda m, x: m.gain, "must return logits of shape (batch, classes)"),
    ],
)  # fmt: skip
def test_refusals(function: Callable[[Layers, Tensor], object], words: str) -> None:
    assert words in refused(layers(function))


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), (4,), "layer '0': Dropout is random in training"),
        (nn.Sequential(nn.Dropout2d(), nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), "layer '0': Dropout is random"),
        (nn.Sequential(nn.Linear(4, 3)), (5,), "layer '0': "),
        (nn.Sequential(nn.Linear(4, 3)), (2, 4), "Linear acts on 2 dimensions (2, 4); flatten the input before it"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (1, 8, 8), "layer '0': "),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), (1, 8, 8), "must return logits of shape (batch, classes), found (4, 6, 6)"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding_mode="reflect")), (1, 4, 4), "padding_mode='reflect'"),
        (nn.Sequential(nn.Conv2d(1, 1, 2, padding="same"), nn.Flatten()), (1, 4, 4), "only symmetric padding"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten()), (1, 5, 5), "ceil_mode"),
        (nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False)), (1, 4, 4), "count_include_pad=False"),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Flatten()), (1, 4, 4), "divisor_override"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()), (1, 5, 5), "ceil_mode or return_indices"),
        (nn.Sequential(nn.MaxPool2d(2, dilation=2), nn.Flatten()), (1, 5, 5), "MaxPool2d with dilation"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), (1, 4, 4), "layer '0': MaxPool2d with dilation"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Linear(2, 3)), (4, 4), "acts on images (channels, height, width)"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), (1, 5, 4), "from (5, 4) to (2, 2); only sizes that"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten()), (1, 4, 4), "from (4, 4) to (8, 8); only sizes that"),
        (nn.Sequential(nn.LeakyReLU(1.5), nn.Linear(4, 3)), (4,), "layer '0': LeakyReLU with negative_slope=1.5"),
        (nn.Sequential(nn.LeakyReLU(float("nan")), nn.Linear(4, 3)), (4,), "negative_slope=nan"),
        (nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3)), (4,), "batch norm without momentum"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)), (4,), "running statistics"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), (4,), "not supported"),
    ],
)  # fmt: skip
def test_refused_layers(module: nn.Module, shape: tuple[int, ...], words: str) -> None:
    assert words in refused(module, shape)


# Silent changes of meaning: each of these must be refused, or bounded as what it is ---------------------


def refused_or_right(module: nn.Module, shape: tuple[int, ...] = (4,)) -> None:
    try:
        graph = trace(module, shape)
    except BadInput:
        return
    for batch in (2, 5):
        x = torch.randn(batch, *shape, dtype=torch.float64)
        with torch.no_grad():
            close(graph.bind()(x), module(x.clone()), 1e-9)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, shift: float = 0.5) -> Tensor:
        return self.head(x + shift)


class Loud(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def _in_place(m: Layers, x: Tensor) -> object:
    hidden = m.inner(x)
    return m.head(m.rectify(hidden) + hidden)


def _functional_in_place(m: Layers, x: Tensor) -> object:
    hidden = m.inner(x)
    return m.head(F.relu(hidden, inplace=True) + hidden)


def _in_place_through_a_view(m: Layers, x: Tensor) -> object:
    hidden = m.inner(x)
    return m.head(m.rectify(hidden.view(-1, 2, 2)).flatten(1) + hidden)


def _in_place_sum(m: Layers, x: Tensor) -> object:
    hidden = m.inner(x)
    kept = hidden.view(-1, 4)
    hidden += 1.0
    return m.head(hidden + kept)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Shifted().double(), id="second argument with a default"),
        pytest.param(layers(_in_place), id="in-place layer, input read again"),
        pytest.param(layers(_functional_in_place), id="in-place function, input read again"),
        pytest.param(layers(_in_place_through_a_view), id="in-place through a view"),
        pytest.param(layers(_in_place_sum), id="in-place sum"),
        pytest.param(layers(lambda m, x: m.head(x * x.size(0))), id="batch size as a number"),
        pytest.param(layers(lambda m, x: m.head(x / len(m.shift) * x.shape[0])), id="batch size in a product"),
        pytest.param(layers(lambda m, x: m.head(x + torch.randn(1, 4).double())), id="random constant"),
        pytest.param(nn.Sequential(Loud(4), nn.Linear(4, 3)).double().eval(), id="subclass of batch norm"),
    ],
)
def test_no_silent_change_of_meaning(module: nn.Module) -> None:
    refused_or_right(module)


def test_hooks_are_not_ignored() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    module[0].register_forward_hook(lambda layer, inputs, output: output * 2)
    refused_or_right(module)


def test_a_parameter_changed_on_the_way_is_still_trainable() -> None:
    """``gain.abs()`` is no constant: it must be refused like ``gain``, or follow the parameter."""
    for function in (
        lambda m, x: m.head(x * m.gain.abs()),
        lambda m, x: m.head(x * m.gain.view(1, -1)),
        lambda m, x: m.head(x * (m.gain * 2)),
        lambda m, x: m.head(x + torch.exp(m.gain)),
    ):
        assert "trainable parameter" in refused(layers(function))


@pytest.mark.parametrize("width", [1, 5])
def test_batch_norm_of_another_width_is_refused(width: int) -> None:
    assert "layer '0'" in refused(nn.Sequential(nn.BatchNorm1d(width), nn.Linear(4, 3)))


def test_images_without_a_channel_dimension_are_refused_or_bounded() -> None:
    """Pooling reads (batch, H, W) as one image; convolution would read the batch as channels."""
    refused(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(16, 3)), (4, 4))
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.ReLU(), nn.Linear(4, 3)).double()
    try:
        network = trace(pooled, (4, 4)).bind()
    except BadInput:
        return
    box = perturbation_box(torch.rand(2, 4, 4, dtype=torch.float64), 0.1)
    assert relaxed_margins(network, crown_pre_activation(network, box), box, torch.tensor([0, 1])).shape == (
        2,
        3,
    )
    assert propagate(network, None, box).value.shape == (2, 3)


def test_a_single_layer_is_a_classifier() -> None:
    agrees(nn.Linear(4, 3).double(), (4,))


class InPlaceOnASlice(nn.Module):
    """Nobody reads the call's result, and it matters all the same."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.fc, self.amount = nn.Linear(4, 3), amount

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y[:, 1].add_(self.amount)
        return y


class AsksForItsMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * 2 if self.training else self.fc(x)


@pytest.mark.parametrize("amount", [9.0, 1e-4])
def test_a_change_in_place_that_nobody_reads_is_refused(amount: float) -> None:
    with pytest.raises(BadInput, match="add_ changes a value in place"):
        trace(InPlaceOnASlice(amount), (4,))


@pytest.mark.parametrize("training", [True, False])
def test_a_module_that_asks_for_its_mode_is_refused(training: bool) -> None:
    with pytest.raises(BadInput, match="runs other layers in training than in evaluation"):
        trace(AsksForItsMode().train(training), (4,))


def test_forward_hooks_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda layer, inputs, output: output * (1 if inputs[0].max() < 1 else -1))
    with pytest.raises(BadInput, match="has forward hooks at 0; tracing does not see them"):
        trace(module, (4,))


def test_logits_that_are_not_finite_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        module[0].weight.fill_(torch.inf)
    with pytest.raises(BadInput, match="logits that are not finite on images"):
        trace(module, (4,))
