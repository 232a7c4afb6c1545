# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What every operator of a bound network can do.

A network is a directed acyclic graph of affine operators, which map a box's centre and radius separately,
sums of branches, and nonlinear operators, most of them elementwise activations. Adding an operator family
means adding one file beside this one and its row in ``ctkd.propagate.layers``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ctkd.propagate.ops.relaxation import Relaxation

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. Tensor fields are its parameters; every other field is plain data."""

    kinds: ClassVar[dict[str, type[Op]]] = {}

    def __init_subclass__(cls) -> None:
        Op.kinds[cls.__name__] = cls

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The operator's value at a batch of points."""
        raise NotImplementedError

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same operator with ``function`` applied to each of its tensors."""
        return dataclasses.replace(self, **{name: function(value) for name, value in self.tensors()})

    def attributes(self) -> dict[str, Any]:
        """The operator's plain fields, JSON-ready."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if not isinstance(value := getattr(self, field.name), Tensor)
        }

    @staticmethod
    def restore(kind: str, attributes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Op:
        """The inverse of ``attributes`` and ``tensors``."""
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()}
        return Op.kinds[kind](**plain, **tensors)


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """``x -> W x + b`` on one input."""

    def radius(self, radius: Tensor) -> Tensor:
        """``|W| radius``: the half-width of the image of a box."""
        raise NotImplementedError

    def backward(self, rows: Tensor, in_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Rows of a linear functional, pulled back through the operator.

        Args:
            rows: (rows, *out_shape), coefficients on the operator's output.
            in_shape: shape of the operator's input without the batch dimension.

        Returns:
            Coefficients on the input, (rows, *in_shape), and the constant each row gains, (rows,) or None.
        """
        raise NotImplementedError

    def then_scale(self, scale: Tensor, shift: Tensor) -> Affine | None:
        """This operator followed by a per-channel ``scale * y + shift`` as one operator; None if impossible."""
        return None


@dataclass(frozen=True, eq=False)
class Nonlinear(Op):
    """A function of one input with an interval image and a linear relaxation.

    ``lower`` and ``upper`` below bound its input, (batch, *in_shape).
    """

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the function over the box, (batch, *out_shape). Sound up to floating-point rounding."""
        raise NotImplementedError

    def joint(self, value: Tensor, radius: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Points and boxes in one: the first ``points`` rows of ``value`` are points, the others centres.

        Returns values and centres, and radii. An operator may override it with something faster of equal result.
        """
        centre = value[points:]
        lower, upper = self.interval(centre - radius, centre + radius)
        middle, half = (lower + upper) / 2, (upper - lower) / 2
        return (torch.cat([self(value[:points]), middle]) if points else middle), half

    def relax(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """Affine functions below and above the function over the box. Sound up to floating-point rounding."""
        raise NotImplementedError

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Which inputs' bounds could, if tighter, tighten the relaxation (boolean, the shape of ``lower``)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Activation(Nonlinear):
    """An elementwise function that never decreases, so that the image of a box is a box, exactly."""

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self(lower), self(upper)


def channels(vector: Tensor, rank: int) -> Tensor:
    """A per-channel vector, shaped to broadcast over (batch, channel, ...) of the given rank."""
    return vector.reshape(1, -1, *([1] * (rank - 2)))


def zeros_for(weight: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=weight.dtype, device=weight.device)
