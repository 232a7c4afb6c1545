# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The packages in plugins/ are what a stranger would write: complete, lazy, and on the public interface alone."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from ctkd.hookspecs import INTERFACE

from .test_examples import PUBLIC, imported

ROOT = Path(__file__).parent.parent / "plugins"
PACKAGES = sorted(path.name for path in ROOT.iterdir() if (path / "pyproject.toml").exists())


def test_there_are_packages_and_the_checks_install_them_all() -> None:
    assert {"ctkd-autolirpa", "ctkd-attacks", "ctkd-tensorboard"} <= set(PACKAGES)
    script = (ROOT.parent / "check").read_text()
    assert [name for name in PACKAGES if f"--editable plugins/{name}" not in script] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_it_is_complete(name: str) -> None:
    project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]
    assert project["name"] == name
    assert any(requirement.startswith("ctkd") for requirement in project["dependencies"])
    (module,) = project["entry-points"]["ctkd"].values()
    tree = ast.parse((ROOT / name / "src" / module / "__init__.py").read_text())
    stated = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["CTKD_INTERFACE"]
    ]
    assert stated == [INTERFACE]
    assert (ROOT / name / "README.md").read_text().startswith(f"# {name}\n")
    assert list((ROOT / name / "tests").glob("test_*.py"))


@pytest.mark.parametrize("name", PACKAGES)
def test_it_uses_the_public_interface_only(name: str) -> None:
    sources = list((ROOT / name / "src").rglob("*.py"))
    assert sources
    used = {module for path in sources for module in imported(path.read_text())}
    assert used - PUBLIC == set()
