# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One thread, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(before)
