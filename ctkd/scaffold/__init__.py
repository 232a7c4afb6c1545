# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Writes an installable plugin to start from, from the templates beside this file: what ``ctkd plugins new`` does.

A template is the file as it is written, with ``$name`` where a name stands (``string.Template``): the files of
``common`` and those of one kind. Importing this loads no torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import keyword
import os
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from ctkd.errors import BadInput
from ctkd.hookspecs import INTERFACE
from ctkd.plugins import GROUP, registry

SUFFIX = ".template"
RESERVED = {"build", "dist", "tests"}
"""Module names that the folder needs for something else."""


@dataclass(frozen=True)
class Kind:
    """What the template of a kind holds: one line about it, and a command that uses the plugin."""

    summary: str
    use: str


KINDS = {
    "bound": Kind("interval bounds over the box, mixed with the clean image", "ctkd train --bound $plugin"),
    "teacher": Kind("a teacher trained on images attacked beyond the box", "ctkd train --teacher $plugin"),
    "distill": Kind("the teacher's soft labels beside the true one", "ctkd train --bound mtl-ibp --distill $plugin"),
    "attack": Kind("FGSM from random starts", "ctkd train --bound mtl-ibp --set attack.name=$plugin"),
    "model": Kind("a small convolutional network", "ctkd train --model $plugin"),
    "dataset": Kind("noisy bars, lying or standing", "ctkd train --dataset $plugin --eps 0.1"),
    "logger": Kind("writes a row of epochs.csv for every epoch of a run", "ctkd train"),
    "verifier": Kind(
        "random points, tried by a program of its own",
        "ctkd verify runs/NAME --verifier $plugin",
    ),
    "stage": Kind(
        "the better of interval bounds and one backward relaxation",
        """ctkd train --set 'certify.stages=["ibp", "$plugin"]'""",
    ),
}


@dataclass(frozen=True)
class Names:
    """What things are called: the distribution and its folder, the plugin as users write it, the module."""

    distribution: str
    plugin: str
    module: str

    @staticmethod
    def of(distribution: str) -> Names:
        """Raises: BadInput if this is not the name of a distribution, or gives no name of a module."""
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", distribution):
            raise BadInput(
                f"{distribution!r} cannot name a package: accepted are letters, digits, '.', '_' and '-', "
                "with a letter or digit at both ends, such as ctkd-my-method"
            )
        plain = re.sub(r"[-_.]+", "-", distribution).lower()
        module = plain.replace("-", "_")
        if not module.isidentifier() or keyword.iskeyword(module) or module in RESERVED:
            raise BadInput(f"{distribution!r} gives the module name {module!r}, which cannot be used; try ctkd-{plain}")
        return Names(distribution, plain.removeprefix("ctkd-"), module)


def write(distribution: str, kind: str, parent: Path) -> tuple[Names, list[Path]]:
    """Write the folder ``parent / distribution``: a package with a plugin of this kind, its README and its tests.

    Returns: what things are called, and the files, in the order of their names.

    Raises: BadInput, one line for each name that is taken; nothing is written then, or left behind by a failure.
    """
    names = Names.of(distribution)
    folder = parent / distribution
    problems = _taken(names, kind, folder)
    if problems:
        raise BadInput(*problems)
    contents = _fill(names, kind)
    temporary = parent / f".{distribution}.{os.getpid()}.tmp"
    try:
        for path, text in contents.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return names, [folder / path for path in sorted(contents)]


def _taken(names: Names, kind: str, folder: Path) -> list[str]:
    """Each name that something else has already, as a line."""
    problems = []
    if os.path.lexists(folder):
        problems.append(f"{folder} exists; choose another name or another working directory")
    if kind == "logger":
        points = importlib.metadata.entry_points(group=GROUP)
        owner = next(
            (point.dist.name if point.dist else point.value for point in points.select(name=names.plugin)), None
        )
    else:
        owner = getattr(registry().entries.get((kind, names.plugin)), "origin", None)
    if owner is not None:
        problems.append(f"{kind} {names.plugin!r} is already registered by {owner}; choose another name")
    installed = _installed(names.distribution)
    if installed is not None:
        problems.append(f"a package {installed} is installed, which this one would replace; choose another name")
    elif names.module in sys.stdlib_module_names:
        problems.append(f"the module {names.module!r} belongs to Python itself; choose another name")
    elif importlib.util.find_spec(names.module) is not None:
        problems.append(f"a module {names.module!r} is installed, which this one would hide; choose another name")
    return problems


def _installed(distribution: str) -> str | None:
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    return f"{found.name} {found.version}"


def _fill(names: Names, kind: str) -> dict[Path, str]:
    """The text of each file by its path in the folder."""
    templates = {**_templates("common"), **_templates(kind)}
    (implementation,) = (name for name in _templates(kind) if name not in ("__init__.py", "test.py"))
    values = {
        "name": names.distribution,
        "plugin": names.plugin,
        "module": names.module,
        "interface": INTERFACE,
        "summary": KINDS[kind].summary,
        "use": Template(KINDS[kind].use).substitute(plugin=names.plugin),
        "implementation": implementation,
    }
    places = {
        "gitignore": Path(".gitignore"),
        "test.py": Path("tests", f"test_{names.module}.py"),
        "__init__.py": Path(names.module, "__init__.py"),
        implementation: Path(names.module, implementation),
    }
    return {places.get(name, Path(name)): text.substitute(values) for name, text in templates.items()}


def _templates(folder: str) -> dict[str, Template]:
    def name(file: Traversable) -> str:
        return file.name.removesuffix(SUFFIX)

    files = (importlib.resources.files(__name__) / folder).iterdir()
    return {name(file): Template(file.read_text(encoding="utf-8")) for file in files if file.name.endswith(SUFFIX)}
