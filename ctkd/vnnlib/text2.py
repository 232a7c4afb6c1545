# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""VNN-LIB 2.0 through its reference parser, the ``vnnlib`` package: one network with one input and one output."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any

from ctkd.errors import BadInput
from ctkd.vnnlib.formula import All, AtMost, Either, Formula, Linear, Variable, specification
from ctkd.vnnlib.specification import Specification
from ctkd.vnnlib.text import STRICT, exact

if TYPE_CHECKING:
    import vnnlib


def read_text2(text: str) -> Specification:
    """Raises: BadInput; also where the package is not installed."""
    try:
        import vnnlib
    except ImportError:
        raise BadInput("it is VNN-LIB 2.0, which needs the vnnlib package: pip install 'ctkd[vnnlib2]'") from None
    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise BadInput(" ".join(str(error).split())[:300]) from None
    if len(query.networks) != 1:
        raise BadInput(f"it is about {len(query.networks)} networks; only specifications of one are read")
    network = query.networks[0]
    if (len(network.inputs), len(network.hidden), len(network.outputs)) != (1, 0, 1):
        raise BadInput(
            f"its network has {len(network.inputs)} inputs, {len(network.hidden)} hidden and {len(network.outputs)} "
            "outputs; only one input and one output are read"
        )
    return _Reader(vnnlib, network).specification(query)


class _Reader:
    def __init__(self, module: Any, network: vnnlib.Network) -> None:
        self.module = module
        self.shapes = {"X": tuple(network.inputs[0].shape), "Y": tuple(network.outputs[0].shape)}
        self.letters = {network.inputs[0].name: "X", network.outputs[0].name: "Y"}

    def specification(self, query: vnnlib.Query) -> Specification:
        sizes = {letter: math.prod(shape) for letter, shape in self.shapes.items()}
        if min(sizes.values()) < 1:
            raise BadInput(f"shapes {self.shapes['X']} and {self.shapes['Y']} hold no numbers")
        formulas = [self.formula(assertion.expr) for assertion in query.assertions]
        return specification(formulas, sizes["X"], sizes["Y"], "2.0")

    def formula(self, node: Any) -> Formula:
        kinds = self.module
        if isinstance(node, kinds.Connective):
            parts = tuple(self.formula(part) for part in node.args)
            return All(parts) if isinstance(node, kinds.And) else Either(parts)
        shown = " ".join(str(node).split())
        if isinstance(node, kinds.NotEqual):
            raise BadInput(f"{shown}: != is not read; accepted: <=, >= and ==")
        if isinstance(node, kinds.LessThan | kinds.GreaterThan):
            raise BadInput(f"{shown}: the comparison {STRICT}")
        difference = self.linear(node.lhs).plus(self.linear(node.rhs), Fraction(-1))
        negative = Linear({}).plus(difference, Fraction(-1))
        if isinstance(node, kinds.LessEqual):
            return AtMost(difference, shown)
        if isinstance(node, kinds.GreaterEqual):
            return AtMost(negative, shown)
        assert isinstance(node, kinds.Equal)
        return All((AtMost(difference, shown), AtMost(negative, shown)))

    def linear(self, node: Any) -> Linear:
        kinds = self.module
        if isinstance(node, kinds.Var):
            return Linear({self.variable(node): Fraction(1)})
        if isinstance(node, kinds.Literal):
            return Linear({}, exact(node.lexeme, f"line {node.line}"))
        if isinstance(node, kinds.Negate):
            return Linear({}).plus(self.linear(node.expr), Fraction(-1))
        if isinstance(node, kinds.Plus):
            return reduce(Linear.plus, map(self.linear, node.args))
        if isinstance(node, kinds.Multiply):
            return reduce(Linear.times, map(self.linear, node.args))
        if isinstance(node, kinds.Minus):
            return reduce(lambda a, b: a.plus(b, Fraction(-1)), map(self.linear, (node.head, *node.rest)))
        raise BadInput(f"{' '.join(str(node).split())}: {type(node).__name__} is not read")

    def variable(self, node: vnnlib.Var) -> Variable:
        letter = self.letters[node.name]
        flat = 0
        for index, size in zip(node.indices, self.shapes[letter], strict=True):
            flat = flat * size + index
        return letter, flat
