# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""From an ``nn.Module`` to a graph of operators, by torch.fx. What is not supported is refused, never approximated."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ctkd.distributed import apart
from ctkd.errors import BadInput
from ctkd.propagate import ops
from ctkd.propagate.graph import BatchNorm, Graph, TracedNode
from ctkd.propagate.layers import (
    ADDS,
    DIVS,
    FUNCTIONS,
    MODULES,
    MULS,
    NORMS,
    PURE,
    RESHAPES,
    SUBS,
    SUPPORTED,
    Make,
    Unsupported,
)

BATCH = 3
"""Example batch. Odd on purpose: a literal batch size written into a model does not survive it."""


@dataclass(frozen=True)
class Ref:
    """A traced value that depends on the input; ``example`` carries its shape."""

    index: int
    example: Tensor


@dataclass(frozen=True)
class Constant:
    """A traced value made of the module's buffers alone; read anew at every use, like parameters."""

    read: Callable[[], Any]


def _read(value: Any) -> Any:
    """Arguments with the current values of the constants among them."""
    if isinstance(value, Constant):
        return value.read()
    if type(value) in (tuple, list):
        return type(value)(_read(part) for part in value)
    return {key: _read(part) for key, part in value.items()} if isinstance(value, dict) else value


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*MODULES, *NORMS, nn.Flatten)) or super().is_leaf_module(module, name)


@dataclass
class _Builder:
    module: nn.Module
    nodes: list[TracedNode]
    functions: bool
    problems: list[str] = field(default_factory=list)

    def add(self, example: Tensor, inputs: tuple[Ref, ...], path: str, make: Make | BatchNorm | None) -> Ref:
        if example.shape[0] != BATCH:
            raise Unsupported("the batch dimension does not stay first")
        op = None if make is None or isinstance(make, BatchNorm) else make()
        if isinstance(op, ops.Function) and not self.functions:
            raise Unsupported(f"{op.name} is not supported by this propagation backend; another one may bound it")
        self.nodes.append(TracedNode(path, tuple(ref.index for ref in inputs), tuple(example.shape[1:]), make))
        return Ref(len(self.nodes) - 1, example)

    def call_module(self, path: str, target: str, x: Any) -> Any:
        layer = self.module.get_submodule(target)
        if not isinstance(x, Ref):
            raise Unsupported("is applied to a constant")
        if type(layer) is nn.Flatten:
            return self.reshape(path, x, layer(x.example))
        if type(layer) in NORMS:
            if layer.num_features != x.example.shape[1]:
                raise Unsupported(f"batch norm of {layer.num_features} channels on {x.example.shape[1]}")
            if layer.momentum is None or not layer.track_running_stats:
                raise Unsupported("batch norm without momentum or running statistics")
            return self.add(x.example, (x,), path, BatchNorm(layer))  # type: ignore[arg-type]
        if type(layer) not in MODULES:
            raise Unsupported(f"{type(layer).__name__} is not supported")
        rule = MODULES[type(layer)]
        if rule is None:
            return x
        make = rule(layer, x.example)
        return self.add(make()(x.example), (x,), path, make)

    def reshape(self, path: str, x: Ref, result: Tensor) -> Ref:
        shape = tuple(result.shape[1:])
        if result.shape == x.example.shape:
            return x
        return self.add(result, (x,), path, lambda: ops.Reshape(shape))

    def scale(self, path: str, x: Ref, scale: Any, shift: Any) -> Ref:
        def constant(value: Any) -> Tensor:
            reference = next(self.module.parameters(), x.example)
            value = _read(value)
            tensor = torch.as_tensor(value, dtype=reference.dtype, device=reference.device).detach()
            if tensor.dim() < x.example.dim():
                tensor = tensor.reshape(*[1] * (x.example.dim() - tensor.dim()), *tensor.shape)
            if tensor.shape[0] != 1:
                raise Unsupported("a constant that differs between the samples of a batch")
            return tensor

        def make() -> ops.Op:
            return ops.Scale(constant(scale), constant(shift))

        result = make()(x.example)
        if result.shape != x.example.shape:
            raise Unsupported("a constant that broadcasts to a larger shape")
        return self.add(result, (x,), path, make)

    def arithmetic(self, path: str, target: Any, left: Any, right: Any) -> Any:
        if isinstance(left, Ref) and isinstance(right, Ref):
            if target in DIVS or (target in MULS and not self.functions):
                raise Unsupported("a product or quotient of two values that depend on the input")
            if left.example.shape != right.example.shape:
                what = "product" if target in MULS else "sum"
                raise Unsupported(f"a {what} of branches of shapes {_shape(left)} and {_shape(right)}")
            if target in MULS:
                return self.product(path, left, right)
            if target in SUBS:
                right = self.scale(path, right, -1.0, 0.0)
            return self.add(left.example + right.example, (left, right), path, ops.Add)
        if isinstance(left, Ref):
            x, constant = left, self.constant(right)
            if target in ADDS:
                return self.scale(path, x, 1.0, constant)
            if target in SUBS:
                return self.scale(path, x, 1.0, Constant(lambda: -_read(constant)))
            inverse = Constant(lambda: 1.0 / _read(constant))
            return self.scale(path, x, constant if target in MULS else inverse, 0.0)
        if target in DIVS:
            raise Unsupported("a constant divided by a value that depends on the input")
        left = self.constant(left)
        if target in ADDS:
            return self.scale(path, right, 1.0, left)
        return self.scale(path, right, -1.0, left) if target in SUBS else self.scale(path, right, left, 0.0)

    def product(self, path: str, left: Ref, right: Ref) -> Ref:
        name, inputs = ("square", (left,)) if left.index == right.index else ("mul", (left, right))
        return self.add(left.example * right.example, inputs, path, lambda: ops.Function(name))

    @staticmethod
    def constant(value: Any) -> Any:
        with torch.enable_grad():
            current = _read(value)
        if isinstance(current, nn.Parameter) or (isinstance(current, Tensor) and current.requires_grad):
            raise Unsupported("arithmetic with a trainable parameter; use a layer or a buffer")
        return value

    def call(self, path: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function or method call; ``target`` is the function, or the method's name."""
        if not args and "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        refs = [a for a in (*args, *kwargs.values()) if isinstance(a, Ref)]
        apply = target if callable(target) else lambda x, *rest, **named: getattr(x, target)(*rest, **named)
        if not refs:
            return Constant(lambda: apply(*_read(args), **_read(kwargs)))
        plain = tuple(a.example if isinstance(a, Ref) else a for a in _read(args))
        kwargs = _read(kwargs)
        if target in PURE:
            result = apply(*plain, **kwargs)
            if isinstance(result, Tensor):
                if target == "contiguous":
                    return args[0]
                raise Unsupported(f"{_name(target)} of a value that depends on the input")
            return result
        if target in RESHAPES:
            return self.reshape(path, args[0], apply(*plain, **kwargs))
        if target in FUNCTIONS:
            if not isinstance(args[0], Ref) or len(refs) > 1:
                raise Unsupported(f"{_name(target)} of more than one value that depends on the input")
            make = FUNCTIONS[target](*plain, **kwargs)
            return self.add(make()(args[0].example), (args[0],), path, make)
        if target is operator.neg or target in ("neg", torch.neg):
            return self.scale(path, args[0], -1.0, 0.0)
        if target in ADDS + SUBS + MULS + DIVS and len(args) == 2 and not kwargs:
            return self.arithmetic(path, target, *args)
        raise Unsupported(f"{_name(target)} is not supported")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _shape(ref: Ref) -> tuple[int, ...]:
    return tuple(ref.example.shape[1:])


def trace(module: nn.Module, input_shape: tuple[int, ...], *, functions: bool = False) -> Graph:
    """Trace a classifier.

    Args:
        module: maps (batch, *input_shape) to logits (batch, classes). Its parameters stay shared: the graph
            reads them at every use, so it follows training.
        input_shape: without the batch dimension.
        functions: whether functions are accepted that can be evaluated, but not bounded here (``ops.Function``).

    Raises:
        BadInput: one line per layer that is not supported, with the layer's path.
    """
    graph = _graph(module, input_shape, functions)
    _verify(module, graph, functions)
    return graph


def _graph(module: nn.Module, input_shape: tuple[int, ...], functions: bool) -> Graph:
    name = type(module).__name__
    original = module
    if _Tracer().is_leaf_module(module, ""):
        module = nn.Sequential(module)  # a single layer: fx would trace into it
    hooked = [path or "the model" for path, part in module.named_modules() if _has_hooks(part)]
    if hooked:
        raise BadInput(f"{name} has forward hooks at {', '.join(hooked)}; tracing does not see them, so remove them")
    attributes = set(vars(module))
    try:
        traced = _Tracer().trace(module)
    except Exception as error:  # tracing runs the user's forward: anything may come out of it
        reason = _first_line(error)
        raise BadInput(
            f"{name} cannot be traced: {reason}; its forward must not branch or loop on values that depend on the input"
        ) from None
    reference = next(module.parameters(), torch.zeros(()))
    example = torch.zeros(BATCH, *input_shape, dtype=reference.dtype, device=reference.device)
    builder = _Builder(module, [TracedNode("input", (), tuple(input_shape), None)], functions)
    result = _interpret(builder, traced, example, attributes)
    for left_behind in set(vars(module)) - attributes:
        delattr(module, left_behind)
    if builder.problems:
        raise BadInput(*builder.problems, f"supported: {SUPPORTED}")
    if not isinstance(result, Ref) or result.example.dim() != 2:
        found = f"{_shape(result)} after the batch dimension" if isinstance(result, Ref) else type(result).__name__
        raise BadInput(f"{name} must return logits of shape (batch, classes), found {found}")
    if result.index == 0:
        raise BadInput(f"{name} returns its input; there is nothing to train")
    return Graph(original, builder.nodes[: result.index + 1])


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@apart()
@torch.no_grad()
def _verify(module: nn.Module, graph: Graph, functions: bool) -> None:
    """Refuse what tracing misunderstood: a copy in float64 and its graph must agree, on images, in both modes."""
    name = type(module).__name__
    try:
        exact = copy.deepcopy(module).to("cpu").double()
    except Exception as error:  # a user's module: anything may come out of it
        raise BadInput(f"{name} cannot be copied: {_first_line(error)}") from None
    for training in (False, True):
        twin = _graph(exact.train(training), graph.input_shape, functions)
        if _shape_of(twin) != _shape_of(graph):
            raise BadInput(
                f"{name} runs other layers in training than in evaluation; its forward must not ask which it is"
            )
        for x in _trials(graph.input_shape):
            try:
                found = twin.clean_pass(x).logits if training else twin.bind()(x)
                expected = exact(x.clone())
            except RuntimeError as error:
                raise BadInput(f"{name} fails on a batch of {len(x)}: {_first_line(error)}") from None
            if not (expected.isfinite().all() and found.isfinite().all()):
                raise BadInput(f"{name} returns logits that are not finite on images in [0, 1]")
            if bool(((expected - found).abs() > 1e-9 * (1 + expected.abs().max())).any()):
                raise BadInput(
                    f"{name}: the traced graph computes something else than the module. Look for operations in "
                    "place, random numbers, and the batch size used as a number"
                )


def _shape_of(graph: Graph) -> list[Any]:
    return [(node.path, node.inputs, node.shape) for node in graph.nodes]


def _trials(input_shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    trials = [torch.rand(batch, *input_shape, dtype=torch.float64, generator=generator) for batch in (2, 5)]
    return [*trials, trials[1].round()]


@torch.no_grad()
def _interpret(builder: _Builder, traced: fx.Graph, example: Tensor, attributes: set[str]) -> Any:
    environment: dict[fx.Node, Any] = {}
    live = _live(traced)
    for node in traced.nodes:
        if node not in live:
            if _changes_in_place(node):
                builder.problems.append(f"layer {_where(node)!r}: {_name(node.target)} changes a value in place")
            continue
        args = fx.map_arg(node.args, lambda n: environment[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: environment[n])
        path = str(node.target) if node.op == "call_module" else _where(node)
        try:
            if node.op == "placeholder":
                if node is next(iter(traced.nodes)):
                    environment[node] = Ref(0, example)
                elif node.args:
                    environment[node] = node.args[0]  # its default
                else:
                    builder.problems.append(f"a second input, {node.target!r}; a classifier has one")
                    return None
            elif node.op == "get_attr":
                read = functools.partial(operator.attrgetter(node.target), builder.module)
                made = str(node.target) in set(vars(builder.module)) - attributes  # by the forward itself
                environment[node] = read() if made else Constant(read)
            elif node.op == "call_module":
                environment[node] = builder.call_module(path, node.target, *args)
            elif node.op == "output":
                return args[0]
            else:
                environment[node] = builder.call(path, node.target, args, kwargs)
        except Unsupported as problem:
            builder.problems.append(f"layer {path!r}: {problem}")
            environment[node] = _stand_in(builder, node, args, kwargs)
            if environment[node] is None:
                return None
        except Exception as error:  # a layer that does not fit its input
            builder.problems.append(f"layer {path!r}: {_first_line(error)}")
            return None
    return None


def _stand_in(builder: _Builder, node: fx.Node, args: Any, kwargs: Any) -> Ref | None:
    """The refused layer's value as a fresh input, so that the layers behind it are examined too."""
    plain = fx.map_arg(node.args, lambda n: None)  # keeps the structure
    plain = tuple(a.example if isinstance(a, Ref) else a for a in _read(args))
    try:
        if node.op == "call_module":
            example = builder.module.get_submodule(str(node.target))(*plain)
        elif node.op == "call_method":
            example = getattr(plain[0], str(node.target))(*plain[1:], **kwargs)
        else:
            example = node.target(*plain, **kwargs)  # type: ignore[operator]
    except Exception:
        return None
    if not isinstance(example, Tensor) or example.shape[:1] != (BATCH,):
        return None
    builder.nodes.append(TracedNode("refused", (), tuple(example.shape[1:]), None))
    return Ref(len(builder.nodes) - 1, example)


def _live(traced: fx.Graph) -> set[fx.Node]:
    """Nodes that the output depends on, and the input."""
    live: set[fx.Node] = set()
    for node in reversed(traced.nodes):
        if node.op in ("output", "placeholder") or any(user in live for user in node.users):
            live.add(node)
    return live


def _changes_in_place(node: fx.Node) -> bool:
    """Calls whose result nobody reads, and that matter all the same."""
    name = _name(node.target)
    mutates = name == "setitem" or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
    return node.op in ("call_method", "call_function") and mutates


def _where(node: fx.Node) -> str:
    """The path of the module whose forward made this call, and the call's name."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack)[-1] if stack else ""
    return f"{path}.{node.name}" if path else node.name
