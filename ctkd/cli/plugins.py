# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd plugins``."""

from __future__ import annotations

from typing import Any

import click

from ctkd.cli.common import json_option, print_json
from ctkd.errors import BadInput, nearest
from ctkd.hookspecs import Registration
from ctkd.plugins import registry

EPILOG = """\b
Examples:
  ctkd plugins
  ctkd plugins --json
  ctkd plugins show cc-ibp
"""


@click.group(epilog=EPILOG, invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List everything that is registered: kind, name, origin, summary, papers."""
    if context.invoked_subcommand is not None:
        return
    entries = [entry for _, entry in sorted(registry().entries.items())]
    rows = [
        {"kind": e.kind, "name": e.name, "origin": e.origin, "summary": e.summary, "papers": list(e.papers)}
        for e in entries
    ]
    if as_json:
        print_json(rows)
        return
    width = max(len(entry.name) for entry in entries)
    for kind in dict.fromkeys(entry.kind for entry in entries):
        print(kind)
        for entry in entries:
            if entry.kind == kind:
                print(f"  {entry.name:<{width}}  {entry.summary} [{entry.origin}]")


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Options, defaults and papers of every plugin called NAME."""
    found = [entry for (_, known), entry in sorted(registry().entries.items()) if known == name]
    if not found:
        raise BadInput(f"no plugin {name!r}: {nearest(name, {known for _, known in registry().entries})}")
    described = [describe(entry) for entry in found]
    if as_json:
        print_json(described)
        return
    for plugin in described:
        print(f"{plugin['kind']} {plugin['name']}: {plugin['summary']} [{plugin['origin']}]")
        for paper in plugin["papers"]:
            print(f"  paper: {paper}")
        if plugin["sound"] is not None:
            print(f"  training loss: {'a sound bound' if plugin['sound'] else 'an estimate, not a bound'}")
        for option in plugin["options"]:
            print(f"  {option['name']} = {option['default']}  ({option['type']})  {option['help']}".rstrip())


def describe(entry: Registration) -> dict[str, Any]:
    """A plugin as plain data, with its options."""
    from ctkd.plugins import load, options_class

    options = []
    if entry.kind != "command":
        schema = options_class(entry).model_json_schema()
        required = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            options.append(
                {
                    "name": name,
                    "type": _type(field),
                    "default": "(must be given)" if name in required else field.get("default"),
                    "help": " ".join(field.get("description", "").split()),
                }
            )
    return {
        "kind": entry.kind,
        "name": entry.name,
        "origin": entry.origin,
        "summary": entry.summary,
        "papers": list(entry.papers),
        "options": options,
        "sound": bool(getattr(load(entry.target, entry.origin), "sound", False)) if entry.kind == "bound" else None,
    }


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    text = [f"{sign} {field[key]:g}" for key, sign in limits.items() if key in field]
    return " ".join([str(field.get("type", "any")), *text])
