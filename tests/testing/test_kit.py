# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The kit itself: as pytest function, as callables, as results; what it imports, and what it leaves behind."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd.errors import BadInput
from ctkd.testing import ConformanceError, checks, conformance, run_checks
from ctkd.testing.kit import TESTED
from ctkd.testing.state import changes, preserved, seed_everything

from . import broken_bounds as bounds
from .conftest import Register

test_pgd = conformance("attack", "pgd", options={"steps": 2})


def statements(code: str) -> None:
    """Run in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kit_needs_no_pytest_and_the_command_line_no_kit() -> None:
    statements(
        "import sys; import ctkd.testing; assert not {'torch', 'pytest'} & sys.modules.keys()\n"
        "from ctkd.testing import checks\n"
        "sys.modules['pytest'] = None\n"
        "[checks(kind, 'x') for kind in ctkd.testing.kit.TESTED]\n"
    )
    statements(
        "import sys; from ctkd.cli.main import run; assert run(['plugins']) == 0\n"
        "assert not any(name.startswith('ctkd.testing') for name in sys.modules)"
    )


@pytest.mark.parametrize("kind", TESTED)
def test_checks_have_names_of_their_own_and_say_what_holds(kind: str) -> None:
    found = checks(kind, "any")
    names = [check.name for check in found]
    assert len(set(names)) == len(names) > 5
    for check in found:
        assert check.summary.endswith(".")
        assert len(check.summary) < 120


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadInput, match=r"kind 'bounds' has no conformance test: did you mean 'bound'\?"):
        checks("bounds", "ibp")


def test_a_plugin_that_is_not_registered_is_explained() -> None:
    result = run_checks("bound", "ipb")[0]
    assert result.status == "failed"
    assert "bound 'ipb' is not known: did you mean 'ibp'?" in result.message
    assert "pip install -e ." in result.message


def test_options_of_the_test_are_validated() -> None:
    messages = {result.message for result in run_checks("bound", "cc-ibp", {"alpha": 2}) if result.status == "failed"}
    assert any("bound.alpha=2: must be less than or equal to 1" in message for message in messages)


def test_as_a_pytest_function_failures_and_skips_are_pytests_own(register: Register) -> None:
    register(bounds.Detached, "bound")
    function: Any = conformance("bound", "Detached")
    (mark,) = function.pytestmark
    by_name = {parameter.id: parameter.values[0] for parameter in mark.args[1]}
    with pytest.raises(pytest.fail.Exception, match="detached from the student"):
        function(by_name["loss-is-finite-and-attached"])
    with pytest.raises(pytest.skip.Exception, match="no state_dict"):
        function(by_name["keeps-its-state-in-checkpoints"])
    register(bounds.Raises, "bound", origin="other 1.0")
    function = conformance("bound", "Raises")
    by_name = {parameter.id: parameter.values[0] for parameter in function.pytestmark[0].args[1]}
    with pytest.raises(ConformanceError) as caught:
        function(by_name["loss-is-finite-and-attached"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_results_cover_every_check(register: Register) -> None:
    register(bounds.Named, "bound")
    results = run_checks("bound", "Named")
    assert [result.check.name for result in results] == [check.name for check in checks("bound", "Named")]
    assert {result.status for result in results} == {"passed", "failed", "not applicable"}
    assert all((result.message == "") == (result.status == "passed") for result in results)


# Registration, in a process of its own -------------------------------------------------------------------

HEAD = """
from ctkd import Registration, hookimpl
{imports}
CTKD_INTERFACE = 1

@hookimpl
def ctkd_bound_methods():
    return [Registration("{name}", "{name}.method:Method", "a method")]
"""
METHOD = """
import torch
{line}

class Method:
    "A method."
    evaluates = frozenset({{"box"}})
    sound = True
"""


@pytest.mark.parametrize(
    ("imports", "line", "words"),
    [
        ("", "", []),
        ("import torch", "", ["loads torch", "inside functions"]),
        ("from {name}.method import Method", "", ["loads {name}.method, torch", '"module:Object"']),
        ("", "torch.manual_seed(0); torch.set_num_threads(7)", ["number of threads", "global random numbers"]),
    ],
    ids=["light", "torch", "implementation", "import-changes-state"],
)
def test_registration_is_light(
    register: Register,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    imports: str,
    line: str,
    words: list[str],
) -> None:
    name = f"stranger_{request.node.callspec.id.replace('-', '_')}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(HEAD.format(name=name, imports=imports.format(name=name)))
    (package / "method.py").write_text(METHOD.format(line=line))
    monkeypatch.syspath_prepend(tmp_path)
    with preserved():
        register(importlib.import_module(name), origin=f"{name} 1.0")
        (check,) = (each for each in checks("bound", name) if each.name == "is-registered-without-being-loaded")
        if not words:
            check()
            return
        with pytest.raises(ConformanceError) as caught:
            check()
    for word in words:
        assert word.format(name=name) in str(caught.value)


# Global state --------------------------------------------------------------------------------------------


def test_what_a_plugin_changes_is_put_back(register: Register) -> None:
    register(bounds.SetsDtype, "bound")
    register(bounds.SetsThreads, "bound", origin="other 1.0")
    with preserved() as before:
        for plugin, name in (("SetsThreads", "is-made-from-its-options"), ("SetsDtype", "loss-is-finite-and-attached")):
            (check,) = (each for each in checks("bound", plugin) if each.name == name)
            check()
        assert changes(before) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("torch.set_default_device('meta')", "torch's default device"),
        ("torch.set_num_threads(3)", "torch's number of threads"),
        ("torch.set_grad_enabled(False)", "torch's gradient mode"),
        ("torch.autograd.set_detect_anomaly(True)", "torch's anomaly detection"),
        ("torch.use_deterministic_algorithms(True)", "torch's deterministic algorithms"),
        ("torch.set_float32_matmul_precision('high')", "torch's float32 matmul precision (TF32)"),
        ("torch.backends.cudnn.benchmark = True", "torch.backends.cudnn.benchmark"),
        ("torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32", "torch.backends.cudnn.allow_tf32"),
        ("torch.rand(1)", "torch's global random numbers"),
        ("np.random.rand()", "numpy's global random numbers"),
        ("random.random()", "Python's global random numbers"),
        ("os.environ.pop('PATH')", "os.environ"),
        ("os.chdir('/')", "the working directory"),
        ("sys.path.append('x')", "sys.path"),
        ("warnings.simplefilter('ignore')", "the warnings filters"),
        ("logging.root.setLevel(1)", "the root logger"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "the handlers of SIGINT and SIGTERM"),
    ],
)
def test_changes_of_global_state_are_seen_and_undone(line: str, name: str) -> None:
    import logging
    import os
    import random
    import signal
    import warnings

    import numpy as np

    modules = {module.__name__: module for module in (torch, random, os, sys, warnings, logging, signal)}
    with preserved() as before:
        with preserved():
            exec(line, {**modules, "np": np})  # noqa: S102
            (found,) = changes(before)
            assert found.startswith(name)
        assert changes(before) == []
        seed_everything(1)
        assert len(changes(before)) == 3
        assert changes(before, "arithmetic") == []
