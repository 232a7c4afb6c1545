# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""This engine computes in float32; what it cannot do is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctkd.errors import BadInput
from ctkd.run import train


def test_training_in_bfloat16_is_refused(tmp_path: Path) -> None:
    settings = {"train.precision": "bf16", "propagation.name": "autolirpa"}
    with pytest.raises(BadInput) as caught:
        train(settings=settings, out=tmp_path / "run")
    assert caught.value.messages == (
        "train.precision=bf16 needs propagation.name=native, which alone computes in bfloat16; autolirpa works with "
        "fp32 and mixed",
    )
    assert not (tmp_path / "run").exists()
