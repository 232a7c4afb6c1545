# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Defaults that ctkd ships for a data set and a radius, and what follows from them."""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from ctkd.options import NonNegative, Radius
from ctkd.settings import FILE, SHIPPED, Layers, teacher_roles
from ctkd.train.options import TrainOptions

SCHEDULE = ("warmup", "ramp", "milestones", "average_from")
"""Moments of the training that scale with its length unless they are set with it."""


def _default_files() -> list[str]:
    return sorted(f.name for f in importlib.resources.files("ctkd.defaults").iterdir() if f.name.endswith(".toml"))


def ship_radius(layers: Layers, dataset: str, chosen: Mapping[str, str]) -> None:
    """Lay the files for the data set, with what they say of the plugins chosen, and for the radius that is set.

    A radius is the same whether written ``2/255`` or as a number.
    """
    ship(layers, f"{dataset}.toml", chosen)
    eps = _number(layers.get("train", "eps"))
    for name in _default_files():
        stem, _, radius = name.removesuffix(".toml").rpartition("-")
        if stem == dataset and eps is not None and _number(radius.replace("_", "/")) == eps:
            ship(layers, name, chosen)


def ship(layers: Layers, name: str, chosen: Mapping[str, str]) -> None:
    """Lay one shipped file.

    Plain keys apply always, a sub-table only to the plugin it is named after, ``recipe.BOUND.ROLE`` only with that
    bound method.
    """
    path = importlib.resources.files("ctkd.defaults") / name
    if not path.is_file():
        return
    tables = tomllib.loads(path.read_text())
    for table_role, table in tables.items():
        if table_role == "recipe":
            continue
        for role in teacher_roles(layers) if table_role == "teacher" else [table_role]:
            _ship_members(layers, role, table)
            for key, value in table.items():
                if not isinstance(value, dict):
                    layers.put(SHIPPED, role, key, value, f"defaults/{name}")
                elif key == chosen.get(role):
                    for option, content in value.items():
                        layers.put(SHIPPED, role, option, content, f"defaults/{name}")
    for role, table in tables.get("recipe", {}).get(chosen.get("bound"), {}).items():
        for option, content in table.items():
            layers.put(SHIPPED, role, option, content, f"defaults/{name}")


def _ship_members(layers: Layers, role: str, shipped: Mapping[str, Any]) -> None:
    """Lay a file's options for sources of teachers below those of an ensemble's members from these sources."""
    found = layers.top(role, "members")
    if found is None or not isinstance(found[1], list | tuple):
        return
    rank, members, source = found
    filled = [
        {**member, **shipped.get(str(member.get("name")), {}), **member} if isinstance(member, dict) else member
        for member in members
    ]
    layers.put(rank, role, "members", filled, source)


def _number(value: Any) -> float | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Radius).validate_python(value)
    except ValidationError:
        return None


def scale_schedule(layers: Layers) -> None:
    """A longer or shorter training keeps its shape: moments set below the new length are scaled with it."""
    found = layers.top("train", "epochs")
    if found is None or found[0] <= SHIPPED or not isinstance(found[1], int) or found[1] < 1:
        return  # a wrong length is refused where the configuration is built
    rank, epochs, _ = found
    usual = layers.top("train", "epochs", below=rank)
    before = usual[1] if usual is not None else TrainOptions.model_fields["epochs"].default
    if not isinstance(before, int) or before < 1:  # refused where the configuration is built
        return
    # A file that sets its own length means its schedule for that; without one it means what it says.
    below = rank if usual is not None and usual[0] > SHIPPED else FILE
    for key in SCHEDULE:
        known = layers.top("train", key)
        if known is not None and known[0] >= below:
            continue
        value = known[1] if known is not None else TrainOptions.model_fields[key].default
        many = isinstance(value, list | tuple)
        parts = [_moment(part) for part in (value if many else [value])]
        if None in parts:  # "none", or refused where the configuration is built
            continue
        scaled = [round(part * epochs / before, 6) for part in parts if part is not None]
        layers.put(rank, "train", key, scaled if many else scaled[0], "scaled with epochs")


def _moment(value: Any) -> float | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(NonNegative).validate_python(value)
    except ValidationError:
        return None


def drop_milestones(layers: Layers) -> None:
    """Who asks for another schedule of the learning rate does not mean the shipped milestones."""
    found, known = layers.top("train", "lr_schedule"), layers.top("train", "milestones")
    if found is None or found[0] <= SHIPPED or found[1] == "milestones" or known is None:
        return
    if known[0] <= SHIPPED or known[2] == "scaled with epochs":
        layers.put(found[0], "train", "milestones", [], "follows train.lr_schedule")


def keep_one_epoch(layers: Layers) -> None:
    """Who asks for one epoch's weights means neither the shipped averaging nor the shipped use of validation images."""
    found = layers.top("train", "keep")
    if found is None or found[0] <= SHIPPED or found[1] == "last":
        return
    for key, value in (("average_from", None), ("final", False)):
        known = layers.top("train", key)
        if known is not None and (known[0] <= SHIPPED or known[2] == "scaled with epochs"):
            layers.put(found[0], "train", key, value, "follows train.keep")
