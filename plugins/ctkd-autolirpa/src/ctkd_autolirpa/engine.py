# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""auto_LiRPA as an engine: one traced module for each structure, with the tensors of the network at hand put in."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctkd.boxes import Box
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import Bounds, Network
from ctkd.propagate.ops import Function, MaxPool, Nonlinear
from ctkd_autolirpa import compat
from ctkd_autolirpa.folded import Folded, structure, tensors

Tighten = Callable[[Nonlinear, Tensor, Tensor], tuple[Tensor, Tensor]]
BATCH = 2
"""Size of the example batch."""
KEPT = 2
"""How many structures an engine remembers: training needs one for each device, certification one."""


class Place:
    """Stands for a parameter of a traced module; holds any tensor, also one that was computed from others."""

    tensor: Tensor

    def __call__(self) -> Tensor:
        return self.tensor


class Engine:
    """Bounds of networks by auto_LiRPA. What was traced last is kept: networks of one training have one structure.

    Tensors are put in as they are, so gradients reach whatever they were computed from.
    """

    def __init__(self, **optimisation: Any) -> None:
        self.lirpa = compat.load()
        # Not in patches: CROWN through a grouped convolution is unsound there (0.3 and 0.7.1). The second option fails
        # on convolutions in 0.3.
        self.options = {
            "conv_mode": "matrix",
            "sparse_features_alpha": False,
            "optimize_bound_args": optimisation,
        }
        self.traced: dict[str, Any] = {}

    def bounded(self, network: Network) -> Any:
        """The ``BoundedModule`` with the network's tensors.

        Raises: BadInput naming what auto_LiRPA cannot trace.
        """
        key = structure(network)
        known = self.traced.get(key)
        module = self._trace(network) if known is None else known
        for name, tensor in tensors(network).items():
            module.places[name].tensor = tensor
        if known is None:
            self._verify(module, network)
            self.traced[key] = module
            for oldest in list(self.traced)[:-KEPT]:
                del self.traced[oldest]
        return module

    @torch.no_grad()
    def _verify(self, module: Any, network: Network) -> None:
        """What was traced must compute what the network computes."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(BATCH + 1, *network.input_shape, generator=generator).to(next(module.parameters()))
        with compat.quiet(network.dtype):
            found, expected = module(x), network(x)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            raise BadInput(f"auto_LiRPA {self.lirpa.__version__} takes this network for another function")

    def _trace(self, network: Network) -> Any:
        folded = Folded(network).eval()
        device = next((p.device for p in folded.parameters()), torch.device("cpu"))
        example = torch.full((BATCH, *network.input_shape), 0.5, dtype=network.dtype, device=device)
        try:
            with compat.quiet(network.dtype), compat.exporter_untouched():
                module = _bounded_class(self.lirpa)(folded, example, bound_opts=dict(self.options), device=str(device))
        except Exception as error:  # a foreign package: anything may come out of it
            raise BadInput(
                f"auto_LiRPA {self.lirpa.__version__} cannot trace this network: {_reason(error)}"
            ) from error
        module.eval()
        module.places = {}
        for node in list(module._modules.values()):
            if "param" in node._parameters:
                place = module.places[node.ori_name] = Place()
                del node._parameters["param"]
                object.__setattr__(node, "forward", place)
            if hasattr(node, "softplus"):
                # Its own is 2e-9 below the function from 20 on, which is not sound.
                del node.softplus
                object.__setattr__(node, "softplus", Function("softplus"))
        # It asks its first parameter for the dtype. (Its own method for this needs a part of torch that is gone.)
        module._parameters["dtype"] = nn.Parameter(torch.zeros((), dtype=network.dtype, device=device))
        return module

    def intervals(self, network: Network, box: Box, tighten: Tighten | None) -> tuple[Bounds, Bounds]:
        """Interval bounds of every node's output, and of the input of every nonlinear node after ``tighten``."""
        module = self.bounded(network)
        found: Bounds = {0: (box.lower, box.upper)}
        entering: Bounds = {}
        with compat.quiet(network.dtype):
            module.compute_bounds(x=(self._input(box),), method="IBP", final_node_name=module.taps[0])
            for i, entry in enumerate(network.nodes[1:], start=1):
                node, source = module[module.taps[i]], module[module.taps[entry.inputs[0]]]
                if not isinstance(entry.op, Nonlinear):
                    found[i] = self._explained(module, network, module.IBP_general, node)
                    continue
                entering[i] = found[entry.inputs[0]]
                if tighten is not None:  # for this operator alone: other readers of the node keep what it computed
                    entering[i] = tighten(entry.op, *entering[i])
                before, source.interval = source.interval, entering[i]
                found[i] = self._explained(module, network, module.IBP_general, node)
                source.interval = before
        return found, entering

    def lower(self, network: Network, box: Box, rows: Tensor, method: str, bounds: Bounds | None = None) -> Tensor:
        """Lower bounds of functionals of the logits, (batch, specs, classes) rows -> (batch, specs).

        Args:
            method: auto_LiRPA's name.
            bounds: bounds of the inputs of nonlinear nodes that are not computed again.
        """
        if method != "IBP":
            _refuse_pools(network)
        module = self.bounded(network)
        x = self._input(box)
        with compat.quiet(network.dtype):
            if bounds is not None:
                # Its own argument for this detaches them, and with them the gradient.
                compat.set_input(module, x)
                for i, (lower, upper) in bounds.items():
                    node = module[module.taps[network.nodes[i].inputs[0]]]
                    node.lower, node.upper = node.interval = (lower, upper)
            given = None if bounds is not None else (x,)
            compute = functools.partial(module.compute_bounds, x=given, C=rows, method=method, bound_upper=False)
            return self._explained(module, network, compute)[0]  # type: ignore[no-any-return]

    def _input(self, box: Box) -> Any:
        ball = self.lirpa.PerturbationLpNorm(norm=math.inf, x_L=box.lower, x_U=box.upper)
        return self.lirpa.BoundedTensor((box.lower + box.upper).detach() / 2, ball)

    def _explained(self, module: Any, network: Network, function: Callable[..., Any], *args: Any) -> Any:
        """Raises: BadInput for an operator without bounds of this kind, RunFailed for anything else."""
        try:
            return function(*args)
        except Exception as error:  # a foreign package: anything may come out of it
            self.traced.clear()  # half-way through, one keeps what changes its later bounds
            if not isinstance(error, NotImplementedError):
                raise RunFailed(f"auto_LiRPA {self.lirpa.__version__} failed: {_reason(error)}") from error
            where, version = _layer(module, network, error), self.lirpa.__version__
            raise BadInput(f"{where}auto_LiRPA {version} has no such bounds: {_reason(error)}") from error


def _refuse_pools(network: Network) -> None:
    """Newer auto_LiRPA bounds padded pools wrongly; overlapping ones are refused by all versions."""
    for node in network.nodes:
        if isinstance(node.op, MaxPool) and (node.op.padding != (0, 0) or node.op.stride != node.op.kernel):
            raise BadInput(
                f"layer {node.path!r}: auto_LiRPA has backward bounds of max pooling only where windows neither "
                "overlap nor are padded; intervals work"
            )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split(". ")[0].split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _layer(module: Any, network: Network, error: Exception) -> str:
    """The layer whose node auto_LiRPA's message names, ready to stand before a message; empty if there is none."""
    for name, entry in zip(module.taps[1:], network.nodes[1:], strict=True):
        if re.search(rf'name="?{re.escape(name)}[",]', str(error)):
            return f"layer {entry.path!r}: "
    return ""


@functools.cache
def _bounded_class(lirpa: Any) -> Any:
    class Module(lirpa.BoundedModule):  # type: ignore[misc]
        """Knows which of its nodes are the network's: those that the traced module returned, in their order."""

        taps: list[str]

        def _build_graph(self, operators: Any, inputs: Any, outputs: list[Any], template: Any) -> None:
            self.taps = [node.name for node in outputs]
            super()._build_graph(operators, inputs, outputs[:1], None)
            self.taps[0] = self.input_name[0]

        def replace_node(self, old: Any, new: Any) -> None:
            self.taps = [new.name if name == old.name else name for name in self.taps]
            super().replace_node(old, new)

    return Module
