# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Option classes: frozen, validated, and never importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from ctkd.errors import nearest


class Options(BaseModel):
    """Base of every plugin's options. Unknown keys and values outside a field's range are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: Any) -> Any:
        """``"none"`` for None where an option may be None: TOML has no word for it."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {key: None if key in optional and value == "none" else value for key, value in values.items()}


def parse_number(value: Any) -> Any:
    """A number, or a fraction written as text: ``"2/255"``."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if isinstance(value, str):
        try:
            return float(Fraction(value.strip()))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"{value!r} is not a finite number; write 0.1 or 8/255") from None
    return value


def parse_integer(value: Any) -> Any:
    """An integer; true and false are none."""
    if isinstance(value, bool):
        raise ValueError("must be an integer, not true or false")
    return value


def _check_radius(value: Any) -> Any:
    number = parse_number(value)
    if isinstance(number, int | float) and not 0 <= number <= 1:
        hint = f", did you mean {number:g}/255?" if 1 < number <= 255 else ""
        raise ValueError(f"outside [0, 1]; radii are in raw pixel units{hint}")
    return number


Number = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
"""A finite number; may be written as a fraction, "2/255"."""
Radius = Annotated[float, BeforeValidator(_check_radius), Field(allow_inf_nan=False)]
"""An L-infinity radius in pixel units, in [0, 1]; may be written as a fraction."""
Unit = Annotated[Number, Field(ge=0, le=1)]
"""A number in [0, 1]."""
Positive = Annotated[Number, Field(gt=0)]
"""A number above 0."""
NonNegative = Annotated[Number, Field(ge=0)]
"""A number that is not below 0."""
Count = Annotated[int, BeforeValidator(parse_integer), Field(ge=1)]
"""An integer from 1 on."""
Index = Annotated[int, BeforeValidator(parse_integer), Field(ge=0)]
"""An integer from 0 on."""
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
"""A path that means the same from another working directory."""


def _as_table(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and not isinstance(value.get("name"), str):
        raise ValueError("write a plugin's name, or a table with its name and options")
    return value


PluginTable = Annotated[
    dict[str, Any],
    BeforeValidator(_as_table),
    PlainSerializer(lambda table: table["name"] if len(table) == 1 else table),
]
"""A plugin by its name, or by a table of its name and options."""
PluginTables = Annotated[
    tuple[PluginTable, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str | dict) else value)
]
"""Several of them; one alone needs no list."""

O = TypeVar("O", bound=Options)  # noqa: E741


def validate(options: type[O], values: Mapping[str, Any], role: str, problems: list[str]) -> O | None:
    """Build options from plain values; each mistake becomes one line in ``problems`` and None is returned."""
    try:
        return options(**values)
    except ValidationError as error:
        problems += [_explain(options, role, dict(detail)) for detail in error.errors()]
        return None


LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
LIMITS |= {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}  # pydantic leaves a limit behind a validator under this name


def type_text(schema: Mapping[str, Any]) -> str:
    """What an option accepts, in words, from its JSON schema."""
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " or ".join("none" if part.get("type") == "null" else type_text(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {type_text(schema.get('items', {}))}"
    limits = " and ".join(f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema)
    return " ".join(filter(None, [schema.get("format") or schema.get("type", "any"), limits]))


def _explain(options: type[Options], role: str, detail: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    name = f"{role}.{where}" if role else where
    if detail["type"] == "extra_forbidden":
        if not options.model_fields:
            return f"{name} is not an option: there are none with this choice of {role}.name"
        return f"{name} is not an option: {nearest(where, options.model_fields)}"
    if detail["type"] == "missing":
        return f"{name} must be given"
    if detail["type"] in ("tuple_type", "list_type"):
        return f"{name}={detail['input']}: must be a list, such as [{detail['input']}]"
    reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name}={detail['input']}: {reason}" if where else f"{role}: {reason}"  # several options at odds
