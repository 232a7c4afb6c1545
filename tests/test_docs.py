# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What the README lists is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctkd.plugins import registry

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("kind", ["bound", "distill", "teacher", "model"])
def test_the_readme_names_every_built_in_plugin(kind: str) -> None:
    text = README.read_text()
    missing = [name for name in registry().names(kind) if name != "none" and f"`{name}`" not in text]
    assert not missing
