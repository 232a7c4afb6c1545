# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Which auto_LiRPA is accepted, and that it leaves the process as it was."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest
from ctkd_autolirpa import compat

from ctkd.errors import RunFailed


def place(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    """A package of that content where auto_LiRPA is looked for."""
    origin = path / "__init__.py"
    origin.write_text(text)
    spec = importlib.machinery.ModuleSpec("auto_LiRPA", None, origin=str(origin))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunFailed, match=r"^auto_LiRPA is not installed; run: pip install --no-deps auto_LiRPA==0\.3$"):
        compat.version()


@pytest.mark.parametrize("number", ["0.3", "0.7.1", "0.8", "1.0"])
def test_accepted_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: str) -> None:
    place(monkeypatch, tmp_path, f"import nothing\n__version__ = '{number}'\n")
    assert compat.version() == number


@pytest.mark.parametrize("number", ["0.2", "0.4.0", "0.5", "0.30"])
def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: str) -> None:
    accepted = number == "0.30"  # thirty is newer than seven
    place(monkeypatch, tmp_path, f'__version__ = "{number}"\n')
    if accepted:
        assert compat.version() == number
        return
    with pytest.raises(RunFailed, match=f"auto_LiRPA {number} is installed .*; accepted: 0.3, and 0.7 or newer"):
        compat.version()


def test_a_package_without_a_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place(monkeypatch, tmp_path, "")
    with pytest.raises(RunFailed, match="auto_LiRPA of an unknown version is installed"):
        compat.version()


SCRIPT = """
import sys
import ctkd_autolirpa, ctkd_autolirpa.options
ctkd_autolirpa.ctkd_propagation_backends(), ctkd_autolirpa.ctkd_certification_stages()
assert not {"torch", "auto_LiRPA"} & set(sys.modules), "the registration imports too much"

import logging, warnings
import torch
from torch import nn
from ctkd_autolirpa import compat

def state():
    executor, mode = torch._C._jit_set_profiling_executor(True), torch._C._jit_set_profiling_mode(True)
    torch._C._jit_set_profiling_executor(executor), torch._C._jit_set_profiling_mode(mode)
    root = logging.getLogger()
    settings = dict(vars(compat._exporter_settings()))
    return (list(warnings.filters), list(root.handlers), root.level, executor, mode, settings,
            torch.get_default_dtype(), sys.stdout, torch.get_rng_state().tolist())

before = state()
from ctkd.boxes import perturbation_box
from ctkd.options import Options
from ctkd.propagate import trace
from ctkd_autolirpa.stages import CrownStage
network = trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)).bind().detach().double()
before = before[:-1] + (torch.get_rng_state().tolist(),)  # the layers were drawn from it
CrownStage(Options()).margins(network, perturbation_box(torch.rand(2, 4).double(), 0.1), torch.tensor([0, 1]))
""".replace("detach().double()", "detach().to(torch.float64)").replace(
    "torch.rand(2, 4).double()", "torch.full((2, 4), 0.5, dtype=torch.float64)"
)
CHECK = """
names = ("filters", "handlers", "level", "executor", "mode", "exporter", "dtype", "stdout", "random numbers")
changed = [name for name, old, new in zip(names, before, state()) if old != new]
assert not changed, changed
"""


def test_the_process_is_left_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT + CHECK], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
