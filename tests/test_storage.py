# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Tensor files: whatever the length of their header, they are read back; pickles are named as such."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ctkd.errors import BadInput
from ctkd.storage import read_tensors, write_tensors


def test_a_file_is_read_back_whatever_its_header_begins_with(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    first_bytes = set()
    for size in range(0, 2100, 3):
        write_tensors(path, {"w": torch.ones(2)}, {"note": "x" * size})
        first_bytes.add(path.read_bytes()[:2])
        tensors, metadata = read_tensors(path)
        assert torch.equal(tensors["w"], torch.ones(2))
        assert metadata == {"note": "x" * size}
    # The length of the header comes first; some look like the mark of a pickle of protocol 2 to 5.
    assert {b"\x80\x02", b"\x80\x04"} & first_bytes


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_named_as_such(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "p.safetensors").write_bytes(pickle.dumps({"w": [1.0] * 100}, protocol))
    with pytest.raises(BadInput, match="is a pickled PyTorch file"):
        read_tensors(tmp_path / "p.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "t.safetensors")
    with pytest.raises(BadInput, match="is a pickled PyTorch file"):
        read_tensors(tmp_path / "t.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"hello")
    with pytest.raises(BadInput, match="is not a safetensors file, or is damaged"):
        read_tensors(tmp_path / "d.safetensors")
