# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Functions that are evaluated and stored, and bounded by other backends only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctkd.accuracy import interval_report
from ctkd.api import Split
from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput
from ctkd.export import to_onnx
from ctkd.propagate import Network, crown_pre_activation, propagate, relaxed_margins, trace
from ctkd.propagate.native import Native
from ctkd.propagate.ops import Function
from ctkd.train.finish import finalise

from .nets import Apply, close

FUNCTIONS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "abs": [torch.abs, lambda x: x.abs(), lambda x: abs(x)],
    "exp": [torch.exp, lambda x: x.exp()],
    "silu": [F.silu, nn.SiLU()],
    "softplus": [F.softplus, nn.Softplus()],
    "square": [torch.square, lambda x: x * x, lambda x: x**2, lambda x: torch.pow(x, 2)],
    "mul": [lambda x: x * torch.relu(x)],
}
CASES = [(name, function) for name, functions in FUNCTIONS.items() for function in functions]


def module(function: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    applied = function if isinstance(function, nn.Module) else Apply(function)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), applied, nn.Linear(5, 3)).double().eval()


@pytest.mark.parametrize(("name", "function"), CASES)
def test_a_function_is_traced_where_it_is_asked_for(name: str, function: Callable[[Tensor], Tensor]) -> None:
    made = module(function)
    network = trace(made, (4,), functions=True).bind().detach()
    ops = [node.op for node in network.nodes if isinstance(node.op, Function)]
    assert [op.name for op in ops] == [name]
    x = 4 * torch.randn(6, 4, dtype=torch.float64)
    with torch.no_grad():
        close(network(x), made(x), 1e-8)
    assert trace(made, (4,), functions=True).clean_pass(x).logits.requires_grad
    with pytest.raises(BadInput) as caught:
        trace(made, (4,))
    # A product has always been refused with these words.
    product = "a product or quotient of two values that depend on the input"
    said = f"{name} is not supported by this propagation backend; another one may bound it"
    assert str(caught.value.messages[0]).endswith((said, product))
    assert "\n" not in caught.value.messages[0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x**3, "a power other than 2"),
        (lambda x: x / (1 + x.abs()), "a product or quotient of two values"),
        (lambda x: F.softplus(x, beta=2), "Softplus with beta other than 1"),
        (nn.Softplus(threshold=5), "Softplus with beta other than 1 or a threshold below 20"),
        (lambda x: x * x[:1], "getitem of a value that depends on the input"),
        (nn.GELU(), "GELU is not supported"),
    ],
)
def test_what_is_near_them_stays_refused(function: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        trace(module(function), (4,), functions=True)
    assert words in str(caught.value)


def test_the_native_engine_has_points_and_no_bounds() -> None:
    network = trace(module(torch.exp), (4,), functions=True).bind().detach()
    x, labels = torch.rand(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    box = perturbation_box(x, 0.1)
    close(propagate(network, x, None).value, network(x), 1e-12)
    words = "layer 'exp': ctkd's own engine has no bounds of exp; use those of another backend".replace(
        "'exp'", "'2.exp'"
    )
    for bound in (
        lambda: propagate(network, x, box),
        lambda: crown_pre_activation(network, box),
        lambda: relaxed_margins(network, {}, box, labels),
    ):
        with pytest.raises(BadInput) as caught:
            bound()
        assert str(caught.value) == words


def test_it_is_stored_and_hashed(tmp_path: Path) -> None:
    network = finalise(module(torch.exp), (4,))
    assert network.sha256() != finalise(module(torch.abs), (4,)).sha256()
    network.save(tmp_path / "n.safetensors")
    loaded = Network.load(tmp_path / "n.safetensors")
    assert loaded.sha256() == network.sha256()
    x = torch.rand(3, 4)
    assert torch.equal(loaded(x), network(x))
    with pytest.raises(BadInput, match="no ONNX form"):
        to_onnx(network)


@pytest.mark.parametrize("name", ["erf", "sigmoid", "eval", "", 3, ["exp"]])
def test_a_stored_network_calls_nothing_else(tmp_path: Path, name: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = finalise(module(torch.exp), (4,))
    structure = network.structure()
    next(entry for entry in structure if entry["op"] == "Function")["attributes"]["name"] = name
    monkeypatch.setattr(Network, "structure", lambda self: json.loads(json.dumps(structure)))
    network.save(tmp_path / "n.safetensors")
    with pytest.raises(BadInput, match="the network's structure cannot be read"):
        Network.load(tmp_path / "n.safetensors")


def test_softplus_never_decreases() -> None:
    x = torch.linspace(-60, 60, 100_001, dtype=torch.float64)
    assert bool((Function("softplus")(x).diff() >= 0).all())
    close(Function("softplus")(x), torch.logaddexp(x, torch.zeros_like(x)), 1e-12)


def test_the_report_of_an_epoch_asks_the_backend() -> None:
    asked = []

    class Asked(Native):
        def propagate(self, *args: object) -> object:
            asked.append(args)
            return super().propagate(*args)

    split = Split(torch.rand(6, 4), torch.zeros(6, dtype=torch.long))
    network = finalise(module(torch.relu), (4,))
    from ctkd.options import Options

    assert interval_report(network, split, 0.1, backend=Asked(Options())) == interval_report(network, split, 0.1)
    assert len(asked) == 1
