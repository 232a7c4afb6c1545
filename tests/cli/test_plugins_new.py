# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd plugins new``: what it writes is installed and tested as a stranger would, and what it refuses."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctkd.cli.main import run
from ctkd.hookspecs import INTERFACE
from ctkd.scaffold import KINDS

Command = Callable[..., tuple[int, str, str]]

NAMES = {**{kind: f"ctkd-my-{kind}" for kind in KINDS}, "model": "Some.odd_Name"}
"""A distribution of each kind; one is spelt as few would."""
MORE = ("more-1",)
"""A model, so that ten are installed."""
PLUGINS = {**{kind: f"my-{kind}" for kind in KINDS}, "model": "some-odd-name"}
PUBLIC = {"api", "boxes", "errors", "hookspecs", "options", "propagate", "run", "teaching", "testing"} | {
    "verifying",
    "vnnlib",
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one generated package of each kind, and some more."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, name in [*NAMES.items(), *(("model", name) for name in MORE)]:
            assert run(["plugins", "new", name, "--kind", kind]) == 0
    return folder


@pytest.fixture(scope="module")
def installed(workshop: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """All of them in one environment, which sees this one's packages; runs its Python in the folder."""
    place = workshop / "environment"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    below = sysconfig.get_path("purelib")
    (purelib / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV_", "CTKD_LOAD"))}
    own |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments], cwd=workshop, env=own, capture_output=True, text=True, check=False, timeout=600
        )

    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    done = call("-m", "pip", "install", *options, *(f"./{name}" for name in (*NAMES.values(), *MORE)))
    assert done.returncode == 0, done.stderr
    return call


def test_the_tests_of_every_kind_pass_in_one_environment(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = installed("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *NAMES.values())
    assert done.returncode == 0, done.stdout[-6000:]


def test_they_are_listed_with_their_origin(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = installed("-m", "ctkd", "plugins", "--json")
    assert done.stderr == ""
    origins = {(row["kind"], row["name"]): row["origin"] for row in json.loads(done.stdout)}
    for kind, name in NAMES.items():
        assert origins[kind, PLUGINS[kind]] == f"{name} 0.1.0"
    for kind, words in {
        "bound": "clean_weight = 0.25",
        "logger": "Writes a row of epochs.csv for every epoch of a run [ctkd-my-logger 0.1.0]",
    }.items():
        assert words in installed("-m", "ctkd", "plugins", "show", PLUGINS[kind]).stdout


def test_help_stays_light_with_ten_plugins(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = (
        "import sys; from ctkd.cli.main import run; from ctkd.plugins import registry\n"
        "assert run(['--help']) == 0 and not registry().failures\n"
        "print(*sorted(sys.modules), sep='\\n')"
    )
    done = installed("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines())
    modules = {name.replace("-", "_").replace(".", "_").lower() for name in (*NAMES.values(), *MORE)}
    assert len(modules) == 10
    assert modules <= loaded
    assert not loaded & {"torch", "numpy", "pydantic"}
    assert not [name for name in loaded if name.partition(".")[0] in modules and "." in name]


def test_the_commands_in_their_readmes_are_accepted(
    workshop: Path, installed: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    commands = [
        shlex.split(line)[1:]
        for name in NAMES.values()
        for line in (workshop / name / "README.md").read_text().splitlines()
        if line.startswith("ctkd ")
    ]
    assert len(commands) == len(KINDS)
    trains = [command for command in commands if command[0] == "train"]
    assert [command for command in commands if command not in trains] == [
        ["verify", "runs/NAME", "--verifier", PLUGINS["verifier"]]
    ]
    code = "from ctkd.cli.main import run\n"
    code += "".join(f"assert run({[*command, '--print-config']}) == 0\n" for command in trains)
    done = installed("-c", code)
    assert done.returncode == 0, done.stderr
    used = [PLUGINS[kind] for kind in KINDS if kind not in ("logger", "verifier")]
    assert [name for name in used if f'"{name}"' not in done.stdout] == []


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_public_interface_is_imported(workshop: Path, kind: str) -> None:
    folder = workshop / NAMES[kind]
    accepted = {
        "",
        "torch",
        "numpy",
        "onnxruntime",
        "pydantic",
        "pytest",
        *(f"ctkd.{module}" for module in PUBLIC),
        "ctkd",
    }
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                own = (folder / top).is_dir() or top in sys.stdlib_module_names
                assert own or name in accepted or top == "torch", (file, name)
    assert f"CTKD_INTERFACE = {INTERFACE}\n" in next(folder.glob("*/__init__.py")).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_well_formatted(workshop: Path, kind: str) -> None:
    style = ("--isolated", "--no-cache", "--config", "line-length = 120")
    for command in (("check", "--select", "E,F,I,UP,W,RUF"), ("format", "--diff")):
        ruff = [sys.executable, "-m", "ruff", *command, *style, "."]
        done = subprocess.run(ruff, cwd=workshop / NAMES[kind], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_folder_holds_a_package_of_that_name(workshop: Path) -> None:
    folder = workshop / "Some.odd_Name"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "some_odd_name/__init__.py",
        "some_odd_name/model.py",
        "tests/test_some_odd_name.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "Some.odd_Name"
    assert project["dependencies"] == ["ctkd"]
    assert project["optional-dependencies"] == {"test": ["pytest"]}
    assert project["entry-points"] == {"ctkd": {"some-odd-name": "some_odd_name"}}
    assert "ctkd train --model some-odd-name" in (folder / "README.md").read_text()
    assert not [path for path in workshop.iterdir() if path.name.startswith(".")]


# Refusals ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_says_what_it_made_and_how_to_go_on(ctkd_command: Command, here: Path) -> None:
    code, out, err = ctkd_command("plugins", "new", "ctkd-mine", "--kind", "attack")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "attack mine: FGSM from random starts"
    assert "  ctkd-mine/ctkd_mine/attack.py" in out.splitlines()
    assert out.splitlines()[-2:] == ['  pip install -e "ctkd-mine[test]"', "  pytest ctkd-mine"]
    code, out, _ = ctkd_command("plugins", "new", "mine", "--kind", "attack", "--json")
    made = json.loads(out)
    assert (made["folder"], made["kind"], made["name"], made["module"]) == ("mine", "attack", "mine", "mine")
    assert all((here / file).is_file() for file in made["files"])


REFUSED = {
    ("ibp", "bound"): "bound 'ibp' is already registered by ctkd ",
    ("ctkd-pgd", "teacher"): "teacher 'pgd' is already registered by ctkd ",
    ("builtin", "logger"): "logger 'builtin' is already registered by ctkd",
    ("json", "model"): "the module 'json' belongs to Python itself",
    ("scikit-learn", "model"): "a package scikit-learn ",
    ("ctkd", "model"): "a package ctkd ",
    ("sklearn", "model"): "a module 'sklearn' is installed",
    ("class", "model"): "'class' gives the module name 'class', which cannot be used; try ctkd-class",
    ("3d", "model"): "'3d' gives the module name '3d', which cannot be used; try ctkd-3d",
    ("tests", "model"): "'tests' gives the module name 'tests', which cannot be used; try ctkd-tests",
    ("a/b", "model"): "'a/b' cannot name a package: accepted are letters, digits, '.', '_' and '-'",
    ("..", "model"): "'..' cannot name a package",
    ("mine-", "model"): "'mine-' cannot name a package",
    ("möbius", "model"): "'möbius' cannot name a package",
    ("", "model"): "'' cannot name a package",
    ("mine", "modell"): "'modell' is not one of 'bound', 'teacher', 'distill', 'attack', 'model', 'dataset', 'logger'",
}


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_names_that_cannot_be_used_are_refused(ctkd_command: Command, here: Path, name: str, kind: str) -> None:
    code, out, err = ctkd_command("plugins", "new", "--kind", kind, "--", name)
    assert (code, out) == (2, "")
    assert REFUSED[name, kind] in err
    assert len(err.splitlines()) == 1
    assert list(here.iterdir()) == []


def test_a_name_may_be_taken_by_another_kind(ctkd_command: Command, here: Path) -> None:
    code, _, err = ctkd_command("plugins", "new", "ctkd-ibp", "--kind", "model")
    assert (code, err) == (0, "")


def test_every_name_that_is_taken_is_named(ctkd_command: Command, here: Path) -> None:
    (here / "ctkd-ibp").write_text("mine")
    code, _, err = ctkd_command("plugins", "new", "ctkd-ibp", "--kind", "bound")
    assert code == 2
    existing, registered = err.splitlines()
    assert existing == "error: ctkd-ibp exists; choose another name or another working directory"
    assert "already registered" in registered
    assert (here / "ctkd-ibp").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(ctkd_command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = ctkd_command("plugins", "new", "mine", "--kind", "bound")
    assert (code, err) == (2, "error: mine cannot be written: No space left on device\n")
    assert list(here.iterdir()) == []


# The kit on the command line -----------------------------------------------------------------------------


def test_check_runs_the_kit(ctkd_command: Command) -> None:
    code, out, err = ctkd_command("plugins", "check", "attack", "pgd", "--set", "steps=2")
    assert (code, err) == (0, ""), out
    assert "passed" in out
    assert "failed" not in out


def test_check_says_what_fails(ctkd_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctkd import testing
    from ctkd.testing import Check, Result

    def checks(kind: str, name: str, options: dict[str, Any], data_dir: Path | None) -> list[Result]:
        assert (kind, name, options) == ("bound", "cc-ibp", {"alpha": 0.5})
        check: Any = Check("has-a-loss", "It has a loss.", None, lambda subject: None)  # type: ignore[arg-type]
        return [Result(check, "failed", "found: none\nadvice: return one"), Result(check, "passed")]

    monkeypatch.setattr(testing, "run_checks", checks)
    code, out, err = ctkd_command("plugins", "check", "bound", "cc-ibp", "--set", "alpha=0.5")
    assert (code, err) == (1, "error: bound 'cc-ibp' fails 1 of 2 checks\n")
    assert out.splitlines() == [
        "failed          has-a-loss",
        "    found: none",
        "    advice: return one",
        "passed          has-a-loss",
    ]
    code, _, err = ctkd_command("plugins", "check", "bound", "cc-ibp", "--set", "alpha=2")
    assert (code, err) == (2, "error: bound.alpha=2: must be less than or equal to 1\n")
    code, out, _ = ctkd_command("plugins", "check", "bound", "cc-ibp", "--set", "alpha=0.5", "--json")
    assert code == 1
    assert json.loads(out)[1] == {"check": "has-a-loss", "status": "passed", "message": ""}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bound", "ibpp"), "bound 'ibpp' is not known: did you mean 'ibp'?"),
        (("bond", "ibp"), "kind 'bond' has no conformance test: did you mean 'bound'?"),
        (("attack", "pgd", "--set", "steps"), "--set"),
    ],
)
def test_check_refuses_what_it_cannot_run(ctkd_command: Command, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = ctkd_command("plugins", "check", *arguments)
    assert code == 2
    assert words in err
