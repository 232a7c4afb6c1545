# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Recipes: configurations of published rows, each a TOML file in this folder with a table ``[recipe]`` of its own."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ctkd.errors import BadInput
from ctkd.options import validate
from ctkd.recipes.header import Header

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """A configuration file and what its header says of it.

    Attributes:
        tables: the file as it stands, ``recipe`` among them.
    """

    name: str
    header: Header
    tables: dict[str, Any]
    text: str

    @property
    def data(self) -> str:
        return str(self.tables["data"]["name"])

    @property
    def eps(self) -> str:
        """As it is written, such as ``2/255``."""
        return str(self.tables["train"]["eps"])

    @property
    def settings(self) -> str:
        """The file without its header, which comes first."""
        return self.text[self.text.index("\n[data]\n") + 1 :]

    def facts(self) -> dict[str, Any]:
        """All of it but the settings, as plain data."""
        return {"name": self.name, "data": self.data, "eps": self.eps, **self.header.model_dump(mode="json")}


def names() -> list[str]:
    """All recipes, by data set and radius."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def place(name: str) -> Path:
    """The file of a recipe. Raises: BadInput if there is none of that name."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
        raise BadInput(f"no recipe {name!r}: {hint}`ctkd recipes` lists all {len(names())}")
    return FOLDER / f"{name}.toml"


@cache
def load(name: str) -> Recipe:
    """A recipe. Raises: BadInput if there is none of that name."""
    text = place(name).read_text()
    tables = tomllib.loads(text)
    problems: list[str] = []
    header = validate(Header, tables.get("recipe", {}), "recipe", problems)
    if header is None:
        raise BadInput(*(f"recipe {name}: {problem}" for problem in problems))
    return Recipe(name, header, tables, text)


def source_of(file: Path) -> str:
    """What a configuration file is called where the source of a value is named."""
    return f"recipe {file.stem}" if file.parent == FOLDER else str(file)


def check_header(table: Any, problems: list[str]) -> None:
    """A configuration file may have a ``[recipe]`` table: that of the recipe it was copied from."""
    validate(Header, table, "recipe", problems)
