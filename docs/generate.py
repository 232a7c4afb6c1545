# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Writes the parts of the documentation that the code already says: plugins, options, commands, examples.

A page asks for one by a line such as ``<!-- generate: plugins bound -->``. mkdocs calls ``on_page_markdown``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ctkd import recipes
from ctkd.cli.plugins import describe
from ctkd.cli.recipes import described, percent
from ctkd.config import ROLES, SECTIONS
from ctkd.hookspecs import Paper, Registration
from ctkd.options import Options, type_text
from ctkd.plugins import load, options_class, registry

EXAMPLES = Path(__file__).parent.parent / "examples"
MARKER = re.compile(r"^<!-- generate: (\w+)(?: ([\w-]+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return MARKER.sub(lambda found: GENERATORS[found[1]](*filter(None, [found[2]])), markdown)


def built_in(kind: str) -> list[Registration]:
    """What ctkd itself registers; other packages that happen to be installed document themselves."""
    known = [registry().entries[kind, name] for name in registry().names(kind)]
    return [entry for entry in known if entry.origin.split()[0] == "ctkd"]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and sub-command with its full name."""
    for entry in built_in("command"):
        yield from _with_children(f"ctkd {entry.name}", load(entry.target, entry.origin))


def _with_children(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for child, below in sorted(command.commands.items()):
            yield from _with_children(f"{name} {child}", below)


# Pages ---------------------------------------------------------------------------------------------------


def plugins_page(kind: str) -> str:
    return "\n\n".join(_plugin(entry) for entry in built_in(kind))


def _plugin(entry: Registration) -> str:
    facts = describe(entry)
    parts = [f"## {entry.name} {{ #{entry.kind}-{entry.name} }}", f"{_sentence(entry.summary)}"]
    if facts["sound"] is not None:
        parts.append(f"Training loss: {'a sound bound' if facts['sound'] else 'an estimate, not a bound'}.")
    if doc := load(entry.target, entry.origin).__doc__:
        parts.append(inspect.cleandoc(doc))
    if entry.papers:
        parts.append("\n".join(["Papers:", "", *(f"- {_reference(paper)}" for paper in entry.papers)]))
    options = options_class(entry)
    # Stages and verifiers have no table of their own in the configuration.
    role = next((role for role, kind in ROLES.items() if kind == entry.kind), entry.name)
    parts.append(options_table(options, role) if options.model_fields else "No options.")
    return "\n\n".join(parts)


def _reference(paper: Paper) -> str:
    address = f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else paper.url
    short = f"[{paper}]({address})" if address else str(paper)
    return f"{short}: {paper.title}"


def section_page(role: str) -> str:
    options = SECTIONS[role]
    return f"{inspect.cleandoc(options.__doc__ or '')}\n\n{options_table(options, role)}"


def options_table(options: type[Options], role: str) -> str:
    """Name, type, default and help of every option, as ``--set`` takes it."""
    schema = options.model_json_schema()
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        default = "must be given" if name in schema.get("required", []) else f"`{_plain(field.get('default'))}`"
        rows.append(
            f"| `{role}.{name}` | {_cell(type_text(field))} | {default} | {_cell(field.get('description', ''))} |"
        )
    return "\n".join(rows)


def _plain(value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)


def commands_page() -> str:
    return "\n\n".join(_command(name, command) for name, command in commands())


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {name}", f"```text\n{name} {usage}\n```", inspect.cleandoc(command.help or "")]
    rows = [
        f"| `{_spelled(option, context)}` | {_cell(option.help or '')}{_shown(option)} |"
        for option in command.params
        if isinstance(option, click.Option)
    ]
    if rows:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    if command.epilog:
        lines = [line.strip() for line in command.epilog.splitlines() if line.strip().startswith("ctkd ")]
        parts.append("\n".join(["```sh", *lines, "```"]))
    return "\n\n".join(parts)


def _spelled(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.make_metavar(context)}"


def _shown(option: click.Option) -> str:
    must = " Must be given." if option.required else ""
    return f" Default: `{option.default}`." if option.show_default else must


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def recipes_page() -> str:
    found = [recipes.load(name) for name in recipes.names()]
    parts = []
    for data, eps in dict.fromkeys((recipe.data, recipe.eps) for recipe in found):
        rows = ["| recipe | method | settings of | natural | certified | run by ctkd |", "|---|---|---|---|---|---|"]
        rows += [_recipe_row(recipe) for recipe in found if (recipe.data, recipe.eps) == (data, eps)]
        parts += [f"## {data}, {eps}", "\n".join(rows)]
    parts += ["## Where each comes from", *(_recipe(recipe) for recipe in found)]
    return "\n\n".join(parts)


def _recipe_row(recipe: recipes.Recipe) -> str:
    header, first = recipe.header, next(iter(recipe.header.published), None)
    figures = (percent(getattr(first, key, None)) for key in ("natural", "certified"))
    link = f"[`{recipe.name}`](#recipe-{recipe.name.replace('.', '-')})"
    return f"| {link} | {header.method} | {header.code} | {' | '.join(figures)} | {'yes' if header.rerun else 'no'} |"


def _recipe(recipe: recipes.Recipe) -> str:
    title = f"### {recipe.name} {{ #recipe-{recipe.name.replace('.', '-')} }}"
    return "\n".join([title, "", *(f"- {line}" for line in described(recipe))])


def example_page(name: str) -> str:
    return f"```python\n{(EXAMPLES / f'{name}.py').read_text()}```"


GENERATORS: dict[str, Callable[..., str]] = {
    "plugins": plugins_page,
    "section": section_page,
    "commands": commands_page,
    "example": example_page,
    "recipes": recipes_page,
}
