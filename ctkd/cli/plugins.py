# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd plugins``."""

from __future__ import annotations

import importlib.metadata
import textwrap
from pathlib import Path
from typing import Any

import click

from ctkd import scaffold
from ctkd.cli.common import json_option, parse_setting, print_json
from ctkd.errors import BadInput, RunFailed, nearest
from ctkd.hookspecs import KINDS, Hooks, Registration
from ctkd.plugins import GROUP, options_from, registry

EPILOG = """\b
Examples:
  ctkd plugins
  ctkd plugins --json
  ctkd plugins show cc-ibp
  ctkd plugins new ctkd-my-method --kind bound
  ctkd plugins check bound my-method
"""


@click.group(epilog=EPILOG, invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List everything that is registered: kind, name, origin, summary, papers."""
    if context.invoked_subcommand is not None:
        return
    entries = registered()
    if as_json:
        print_json([_facts(entry) for entry in entries])
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
    entries = registered()
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise BadInput(f"no plugin {name!r}: {nearest(name, {entry.name for entry in entries})}")
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
            default = option["default"]
            if default is None or isinstance(default, bool):  # as a configuration writes it
                default = str(default).lower()
            print(f"  {option['name']} = {default}  ({option['type']})  {option['help'].replace('``', '')}".rstrip())


NEW_EPILOG = """\b
Examples:
  ctkd plugins new ctkd-my-method --kind bound
  ctkd plugins new my-net --kind model --json
"""


@command.command(epilog=NEW_EPILOG)
@click.argument("name")
@click.option("--kind", type=click.Choice(list(scaffold.KINDS)), required=True, help="What the plugin brings.")
@json_option
def new(name: str, kind: str, as_json: bool) -> None:
    """Write a plugin to start from: an installable package in a new folder NAME.

    NAME is the name of the distribution. Users of the plugin write it without a leading "ctkd-".
    """
    names, files = scaffold.write(name, kind, Path())
    steps = [f'pip install -e "{name}[test]"', f"pytest {name}"]
    if as_json:
        print_json(
            {
                "folder": name,
                "kind": kind,
                "name": names.plugin,
                "module": names.module,
                "files": [str(file) for file in files],
                "next": steps,
            }
        )
        return
    print(f"{kind} {names.plugin}: {scaffold.KINDS[kind].summary}")
    print(*(f"  {file}" for file in files), "Go on with:", *(f"  {step}" for step in steps), sep="\n")


CHECK_EPILOG = """\b
Examples:
  ctkd plugins check bound my-method
  ctkd plugins check bound cc-ibp --set alpha=0.3
"""


@command.command(epilog=CHECK_EPILOG)
@click.argument("kind")
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set an option of it; repeatable.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with a data set's files.")
@json_option
def check(kind: str, name: str, settings: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Run the conformance kit on the plugin NAME of KIND: whether it keeps what ctkd asks of its kind."""
    kind = {"objective": "distill", "data": "dataset"}.get(kind, kind)
    known = [entry.name for entry in registered() if entry.kind == kind]
    if known and name not in known:
        raise BadInput(f"{kind} {name!r} is not known: {nearest(name, known)}")
    options = {path.partition(".")[2]: value for path, value in (parse_setting(f"{kind}.{s}") for s in settings)}
    problems: list[str] = []
    if kind != "logger" and known and options_from(kind, {"name": name, **options}, kind, problems) is None:
        raise BadInput(*problems)
    from ctkd.testing import run_checks

    results = run_checks(kind, name, options, data_dir=data_dir)
    if as_json:
        print_json([{"check": r.check.name, "status": r.status, "message": r.message} for r in results])
    else:
        for result in results:
            print(f"{result.status:<15} {result.check.name}")
            if result.message:
                print(textwrap.indent(result.message, "    "))
    failed = sum(result.status == "failed" for result in results)
    if failed:
        raise RunFailed(f"{kind} {name!r} fails {failed} of {len(results)} checks")


# What is registered ----------------------------------------------------------------------------------------


def registered() -> list[Registration]:
    """Everything, ordered by kind and name, also what listens to runs."""
    return sorted([*registry().entries.values(), *_loggers()], key=lambda entry: (entry.kind, entry.name))


def _loggers() -> list[Registration]:
    """Plugins with lifecycle hooks. They register nothing, so they are called what their entry points are."""
    names = {point.module: point.name for point in importlib.metadata.entry_points(group=GROUP)}
    found: dict[str, Registration] = {}
    for hook in (hook for hook in vars(Hooks) if hook.startswith("ctkd_") and hook not in KINDS):
        for implementation in getattr(registry().manager.hook, hook).get_hookimpls():
            module = implementation.plugin
            name = names.get(module.__name__, module.__name__)
            summary = next(iter((module.__doc__ or "").strip().splitlines()), "").rstrip(".")
            origin = implementation.plugin_name
            found[name] = Registration(name, module.__name__, summary, kind="logger", origin=origin)
    return list(found.values())


def _facts(entry: Registration) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "origin": entry.origin,
        "summary": entry.summary,
        "papers": [str(paper) for paper in entry.papers],
    }


def describe(entry: Registration) -> dict[str, Any]:
    """A plugin as plain data, with its options."""
    from ctkd.options import type_text
    from ctkd.plugins import load, options_class

    options = []
    if entry.kind not in ("command", "logger"):
        schema = options_class(entry).model_json_schema()
        required = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            options.append(
                {
                    "name": name,
                    "type": type_text(field),
                    "default": "(must be given)" if name in required else field.get("default"),
                    "help": " ".join(field.get("description", "").split()),
                }
            )
    return {
        **_facts(entry),
        "options": options,
        "sound": bool(getattr(load(entry.target, entry.origin), "sound", False)) if entry.kind == "bound" else None,
    }
