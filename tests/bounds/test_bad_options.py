# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Options that a bound method refuses: exit code 2 and one clear line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("bound", "setting", "line"),
    [
        ("sabr", "lam=0", "bound.lam=0: must be greater than 0"),
        ("sabr", "lam=2", "bound.lam=2: must be less than or equal to 1"),
        ("sabr", "lam=nan", "bound.lam=nan"),
        ("staps", "lam=0", "bound.lam=0: must be greater than 0"),
        ("staps", "lam=2", "bound.lam=2: must be less than or equal to 1"),
        ("sabr", "lambda=0.5", "bound.lambda is not an option: did you mean 'lam'?"),
        ("sabr", "relu_shrink=0", "bound.relu_shrink=0: must be greater than 0"),
        ("taps", "relu_shrink=1.5", "bound.relu_shrink=1.5: must be less than or equal to 1"),
        ("taps", "split=3", "bound.split=3 does not cut this network, which has 3 activations, into two blocks"),
        ("staps", "split=9", "bound.split=9 does not cut this network"),
        ("taps", "split=9", "accepted here: 0, 1, 2"),
        ("taps", "split=-1", "bound.split=-1: must be greater than or equal to 0"),
        ("taps", "steps=0", "bound.steps=0: must be greater than or equal to 1"),
        ("taps", "gradient_scale=0", "bound.gradient_scale=0: must be greater than 0"),
        ("taps", "lam=0.5", "bound.lam is not an option"),
        ("exp-ibp", "alpha=1.5", "bound.alpha=1.5: must be less than or equal to 1"),
        ("ibp-r", "weight=-1", "bound.weight=-1: must be greater than or equal to 0"),
        ("singleprop", "variant='crwn'", "bound.variant=crwn: must be 'fast-lin', 'zero-slope' or 'crown'"),
        ("crown-ibp", "loss_fusion=maybe", "bound.loss_fusion=maybe: must be a valid boolean"),
    ],
)
def test_one_mistake_one_line(
    ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, setting: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ctkd_command("train", "--teacher", "none", "--bound", bound, "--set", f"bound.{setting}")
    assert code == 2, err
    assert out == ""
    (printed,) = err.splitlines()
    assert printed.startswith("error: ")
    assert line in printed
    assert list(tmp_path.iterdir()) == []
