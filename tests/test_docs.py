# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What there is, is documented: in the README, and in the site that mkdocs builds."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from ctkd.cli.main import cli
from ctkd.config import ROLES, SECTIONS
from ctkd.hookspecs import KINDS, Hooks, Registration
from ctkd.options import Options, Unit
from ctkd.plugins import load, options_class, registry

from .test_examples import PUBLIC

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BUILT_IN = [entry for entry in registry().entries.values() if entry.origin.split()[0] == "ctkd"]
PLUGINS = [entry for entry in BUILT_IN if entry.kind != "command"]
REFERENCE = [
    "ctkd",
    "ctkd.api",
    "ctkd.boxes",
    "ctkd.errors",
    "ctkd.hookspecs",
    "ctkd.options",
    "ctkd.propagate",
    "ctkd.propagate.ops",
    "ctkd.run",
    "ctkd.teaching",
    "ctkd.testing",
    "ctkd.verifying",
    "ctkd.vnnlib",
]
"""Modules that the Python reference has to cover."""


def public(module: types.ModuleType) -> dict[str, Any]:
    """Classes and functions of ctkd that a module offers."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = {name: getattr(module, name) for name in names}
    offered = {
        name: value
        for name, value in found.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.split(".")[0] == "ctkd"
    }
    whole = hasattr(module, "__all__") or module.__name__ == "ctkd.api"  # the others only use what they import
    return {name: value for name, value in offered.items() if whole or value.__module__ == module.__name__}


def methods(owner: Any) -> list[str]:
    """Public methods and properties that a class defines."""
    if not inspect.isclass(owner):
        return []
    return [
        name
        for name, value in vars(owner).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]


def undocumented_methods(owner: Any) -> list[str]:
    return [name for name in methods(owner) if not getattr(owner, name).__doc__]


def undocumented_options(options: type[Options]) -> list[str]:
    return [name for name, field in options.model_fields.items() if not field.description]


def undocumented_parts(command: click.Command) -> list[str]:
    """The command's own name if it has no help, and its options without."""
    options = [part.name or "" for part in command.params if isinstance(part, click.Option) and not part.help]
    return [*([] if command.help else [command.name or ""]), *options]


@pytest.mark.parametrize("kind", ["bound", "distill", "teacher", "model"])
def test_the_readme_names_every_built_in_plugin(kind: str) -> None:
    text = README.read_text()
    missing = [entry.name for entry in BUILT_IN if entry.kind == kind and f"`{entry.name}`" not in text]
    assert [name for name in missing if name not in ("none", "import")] == []  # "import" is written pkg.mod:factory


# The site ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built strictly: a broken link, a missing page or a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def anchors(page: Path) -> set[str]:
    return set(re.findall(r'id="([^"]+)"', page.read_text()))


def text_of(page: Path, anchor: str = "") -> str:
    """The words of a page, or of the part below a heading of the second level."""
    content = page.read_text()
    if anchor:
        start = content.index(f'<h2 id="{anchor}"')
        content = content[start : content.find("<h2 ", start + 1)]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())


def plain(docstring: str) -> str:
    """A docstring's first line without markup."""
    return " ".join(inspect.cleandoc(docstring).splitlines()[0].replace("`", "").split())


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert loaded == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", style.read_text()), style


def test_every_part_of_the_reference_was_generated(site: Path) -> None:
    assert not [page for page in site.rglob("*.html") if "generate:" in page.read_text()]


@pytest.mark.parametrize("hook", [name for name in vars(Hooks) if name.startswith("ctkd_")])
def test_every_hook_is_documented(site: Path, hook: str) -> None:
    page = site / "reference" / "python" / "hooks.html"
    function = getattr(Hooks, hook)
    assert f"ctkd.hookspecs.Hooks.{hook}" in anchors(page)
    text = text_of(page).replace(" ", "")
    assert plain(function.__doc__).replace(" ", "") in text
    for parameter in list(inspect.signature(function).parameters)[1:]:
        assert f"{parameter}:" in text


def test_every_kind_of_plugin_has_a_page(site: Path) -> None:
    kinds = set(KINDS.values()) - {"command"}
    assert {page.stem for page in (site / "reference" / "plugins").glob("*.html")} == kinds


@pytest.mark.parametrize("entry", PLUGINS, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_plugin_and_option_is_documented(site: Path, entry: Registration) -> None:
    page = site / "reference" / "plugins" / f"{entry.kind}.html"
    text = text_of(page, f"{entry.kind}-{entry.name}")
    assert entry.summary[1:] in text
    assert all(paper.title in text for paper in entry.papers)
    options = options_class(entry)
    assert undocumented_options(options) == []
    role = {kind: role for role, kind in ROLES.items()}.get(entry.kind, entry.name)
    assert [name for name in options.model_fields if f"{role}.{name} " not in text] == []


@pytest.mark.parametrize("role", SECTIONS)
def test_every_option_of_core_is_documented(site: Path, role: str) -> None:
    assert undocumented_options(SECTIONS[role]) == []
    text = text_of(site / "reference" / "configuration.html", role)
    assert [name for name in SECTIONS[role].model_fields if f"{role}.{name} " not in text] == []


def commands() -> Iterator[tuple[str, click.Command]]:
    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        for child in getattr(command, "commands", {}).values():
            yield from below(f"{name} {child.name}", child)

    for entry in BUILT_IN:
        if entry.kind == "command":
            yield from below(f"ctkd {entry.name}", load(entry.target, entry.origin))


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda part: part if isinstance(part, str) else "")
def test_every_command_and_its_options_are_documented(site: Path, name: str, command: click.Command) -> None:
    assert undocumented_parts(command) == []
    text = text_of(site / "reference" / "commands.html", name.replace(" ", "-"))
    assert plain(command.help or "") in text
    names = [name for option in command.params if isinstance(option, click.Option) for name in option.opts]
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize("module", REFERENCE)
def test_every_public_object_is_documented(site: Path, module: str) -> None:
    pages = (site / "reference" / "python").glob("*.html")
    known = {anchor.rpartition(".")[2] for page in pages for anchor in anchors(page) if anchor.startswith("ctkd.")}
    found = public(importlib.import_module(module))
    assert found
    assert sorted(set(found) - known) == []
    assert [name for name, value in found.items() if not value.__doc__] == []


@pytest.mark.parametrize("name", sorted(public(importlib.import_module("ctkd.api"))))
def test_the_types_for_plugins_explain_their_methods(site: Path, name: str) -> None:
    value = public(importlib.import_module("ctkd.api"))[name]
    assert undocumented_methods(value) == []
    place = f"{value.__module__}.{name}"
    known = anchors(site / "reference" / "python" / "api.html") | anchors(site / "reference/python/propagate.html")
    assert [method for method in methods(value) if f"{place}.{method}" not in known] == []


# What is written by hand ---------------------------------------------------------------------------------


def blocks(language: str) -> list[Any]:
    """Code blocks of the pages and of the README."""
    found = []
    for page in [README, *PAGES]:
        texts = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
        for i, (indent, text) in enumerate(texts, start=1):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            found.append(pytest.param("\n".join(lines), id=f"{page.relative_to(ROOT)}-{i}"))
    return found


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_are_accepted(block: str, ctkd_command: Callable[..., tuple[int, str, str]]) -> None:
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["ctkd"]:
            _parse(words[1:])
            # What stands for the reader's own plugin or file cannot be resolved.
            if words[1] == "train" and not {"--config", "--resume", "my-method", "nets:small"} & set(words):
                code, _, error = ctkd_command(
                    *[word for word in words[1:] if word != "--print-config"], "--print-config"
                )
                assert code == 0, (line, error)


def _parse(words: list[str]) -> None:
    """Raises: what click says where a command, argument or option is not known."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    command.make_context(command.name, list(words))


@pytest.mark.parametrize("block", blocks("python"))
def test_python_is_python_and_uses_the_public_interface(block: str) -> None:
    tree = ast.parse(block)
    for module, name in imports(tree):
        assert module == "" or module in PUBLIC, module
        assert hasattr(importlib.import_module(f"ctkd.{module}".rstrip(".")), name), (module, name)


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctkd":
            module = (node.module or "").removeprefix("ctkd").removeprefix(".")
            yield from ((module, alias.name) for alias in node.names)


# What the checks above are made of, and that they can fail -----------------------------------------------


class Silent(Options):
    """One option that explains itself and one that does not."""

    spoken: Unit = 0.5
    """Explained."""
    silent: Unit = 0.5


def test_options_without_help_are_found() -> None:
    assert undocumented_options(Silent) == ["silent"]


def test_parts_of_a_command_without_help_are_found() -> None:
    @click.command(name="quiet")
    @click.option("--loud", help="Explained.")
    @click.option("--silent")
    def quiet() -> None: ...

    assert undocumented_parts(quiet) == ["quiet", "silent"]


def test_methods_without_docstring_are_found() -> None:
    class Half:
        def told(self) -> None:
            """Explained."""

        def untold(self) -> None: ...

        @property
        def bare(self) -> int:
            return 1

    assert undocumented_methods(Half) == ["untold", "bare"]


def test_public_objects_are_found() -> None:
    made = types.ModuleType("ctkd.made")
    made.shown, made._hidden, made.click = test_public_objects_are_found, anchors, click  # type: ignore[attr-defined]
    made.shown.__module__, before = "ctkd.made", made.shown.__module__  # type: ignore[attr-defined]
    try:
        assert list(public(made)) == ["shown"]
    finally:
        made.shown.__module__ = before  # type: ignore[attr-defined]


def test_a_strange_option_in_a_documented_command_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        _parse(["certify", "runs/first", "--radius", "0.1"])
