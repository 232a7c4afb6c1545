# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd recipes``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from ctkd import recipes
from ctkd.cli.common import json_option, print_json, print_table
from ctkd.errors import BadInput
from ctkd.recipes.header import Figures

EPILOG = """\b
Examples:
  ctkd recipes
  ctkd recipes --json
  ctkd recipes show cifar10-2-255-cc-ibp
  ctkd recipes copy cifar10-2-255-cc-ibp my.toml
  ctkd train --recipe cifar10-2-255-cc-ibp --data-dir data
"""


@click.group(epilog=EPILOG, invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the configurations of published rows: what was published, and whether ctkd ran it.

    `ctkd train --recipe NAME` trains one; further options override it.
    """
    if context.invoked_subcommand is not None:
        return
    found = [recipes.load(name) for name in recipes.names()]
    if as_json:
        print_json([recipe.facts() for recipe in found])
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in ("recipe", "method", "settings of", "natural", "certified", "run by ctkd"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("natural", "certified") else "left")
    for recipe in found:
        first = next(iter(recipe.header.published), None)
        natural, certified = (percent(getattr(first, key, None)) for key in ("natural", "certified"))
        ran = "yes" if recipe.header.rerun else "no"
        table.add_row(recipe.name, recipe.header.method, recipe.header.code, natural, certified, ran)
    print_table(table)
    print("published figures in percent; `ctkd recipes show NAME` says where they stand")


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """What is known of the recipe NAME, and its settings."""
    recipe = recipes.load(name)
    settings = {role: table for role, table in recipe.tables.items() if role != "recipe"}
    if as_json:
        print_json({**recipe.facts(), "config": settings})
        return
    for line in described(recipe):
        print(line)
    print()
    print(recipe.settings, end="")


@command.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def copy(name: str, file: Path, as_json: bool) -> None:
    """Write the recipe NAME to FILE, to be changed and trained with --config."""
    from ctkd.storage import write_text

    text = recipes.load(name).text
    if file.exists():
        raise BadInput(f"{file} exists already; name another file")
    if not file.parent.is_dir():
        raise BadInput(f"{file}: there is no folder {file.parent}")
    write_text(file, text)
    if as_json:
        print_json({"recipe": name, "file": str(file)})
        return
    print(f"{file}: train it with: ctkd train --config {file}")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def described(recipe: recipes.Recipe) -> list[str]:
    """A recipe's header in lines."""
    header = recipe.header
    lines = [header.title, f"paper: {header.paper}", f"settings: {header.settings}"]
    lines += _figures("published", header.published) or ["published: no figures of these settings are known"]
    lines += _figures("run by ctkd", header.rerun) or ["run by ctkd: no"]
    lines += [f"differs: {text}" for text in header.differences]
    lines += [f"not known: {text}" for text in header.unknown]
    return lines


def _figures(what: str, found: Iterable[Figures]) -> list[str]:
    return [
        f"{what}: natural {percent(each.natural)}, certified {percent(each.certified)} ({each.verifier}); {each.source}"
        for each in found
    ]
