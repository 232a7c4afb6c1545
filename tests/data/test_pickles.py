# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Batches are read without running what they name, whatever they name."""

from __future__ import annotations

import codecs
import contextlib
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctkd.data.pickles import read_pickle
from ctkd.errors import BadInput

from .trees import as_python2, noise


def written(folder: Path, contents: bytes) -> Path:
    path = folder / "batch"
    path.write_bytes(contents)
    return path


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "f4", "?"])
def test_arrays_come_back(tmp_path: Path, protocol: int, order: Any, kind: str) -> None:
    array = np.asarray(noise(3, 4, 5), order=order).astype(kind, order="K")
    found = read_pickle(written(tmp_path, pickle.dumps({"a": array, "b": [1, 2]}, protocol=protocol)), "data")
    np.testing.assert_array_equal(found["a"], array)
    assert (found["a"].dtype, found["b"]) == (array.dtype, [1, 2])


def test_what_python_2_wrote_comes_back(tmp_path: Path) -> None:
    found = read_pickle(written(tmp_path, as_python2({b"data": noise(2, 3), b"labels": [3, 4]})), "data")
    np.testing.assert_array_equal(found["data"], noise(2, 3))
    assert found["labels"] == [3, 4]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch ran",), "posix.system"),
        (eval, ("open('ran', 'w')",), r"(__builtin__|builtins).eval"),
        (getattr, (os, "remove"), r"(__builtin__|builtins).getattr"),
        (subprocess.Popen, (["touch", "ran"],), r"(subprocess|commands).Popen"),
        (np.load, ("x.npy", None, True), r"numpy.*load"),
        (OrderedDict, (), "collections.OrderedDict"),
        (Path, ("/",), "pathlib"),
    ],
)
def test_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: Any, arguments: Any, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if os in arguments:
        arguments = ("os", "remove")  # modules cannot be pickled; the name is refused before it is called
    contents = pickle.dumps({"labels": Calls(function, *arguments), "data": noise(1, 3072)}, protocol=protocol)
    path = written(tmp_path, contents)
    with pytest.raises(
        BadInput, match=rf"^data batch wants to run code when it is read \({named}.*\), which ctkd never"
    ):
        read_pickle(path, "data batch")
    assert not (tmp_path / "ran").exists()


def test_names_below_an_allowed_one_are_refused(tmp_path: Path) -> None:
    contents = b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__class__.x\x93."
    with pytest.raises(BadInput, match=r"damaged|run code"):
        read_pickle(written(tmp_path, contents), "data")
    # STACK_GLOBAL with a dotted path, as protocol 4 allows it.
    dotted = pickle.PROTO + b"\x04" + b"".join(b"\x8c" + bytes([len(t)]) + t for t in (b"_codecs", b"encode.__self__"))
    with pytest.raises(BadInput, match=r"run code when it is read \(_codecs.encode.__self__\)"):
        read_pickle(written(tmp_path, dotted + b"\x93."), "data")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({"data": np.array([object(), None], dtype=object)}, "run code"),
        ({"data": np.array([[1], "x"], dtype=object)}, "something else than numbers"),
        ({"data": np.zeros(2, dtype=[("x", "i4")])}, "something else than numbers"),
        ({"data": np.array(["text"])}, "something else than numbers"),
        ({"data": np.zeros(2, "M8[s]")}, "something else than numbers"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, value: Any, words: str) -> None:
    for protocol in (2, 4):
        with pytest.raises(BadInput, match=words) as caught:
            read_pickle(written(tmp_path, pickle.dumps(value, protocol=protocol)), "data")
        assert "\n" not in str(caught.value)


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    right = pickle.dumps({"data": noise(2, 3)}, protocol=2)
    wrong = right.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")
    assert wrong != right
    with pytest.raises(BadInput, match="damaged"):
        read_pickle(written(tmp_path, wrong), "data")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_pickle(tmp_path / "absent", "data")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        read_pickle(tmp_path, "data")
    with pytest.raises(BadInput, match="truncated or damaged"):
        read_pickle(written(tmp_path, b""), "data")


SMALL = pickle.dumps({"data": noise(2, 3), "labels": [1, 2]}, protocol=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.booleans())
def test_damage_is_found_or_harmless(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    contents = SMALL[:place] if cut else SMALL[:place] + bytes([value]) + SMALL[place + 1 :]
    with contextlib.suppress(BadInput):
        assert isinstance(read_pickle(written(tmp_path, contents), "data"), dict)


def test_a_reader_keeps_nothing_from_one_file_to_the_next(tmp_path: Path) -> None:
    """BUILD may set attributes of what was named: they are gone with the file."""
    named = b"\x80\x02}U\x04datac_codecs\nencode\n"
    first = read_pickle(written(tmp_path, named + b"}X\x01\x00\x00\x00xK\x01sbs."), "data")["data"]
    second = read_pickle(written(tmp_path, named + b"s."), "data")["data"]
    assert (vars(first), vars(second)) == ({"x": 1}, {})
    assert codecs.encode not in (first, second)
