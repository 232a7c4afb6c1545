# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Pickled batches of arrays, read without running anything that they name.

A pickle is a program: it may call whatever it names. Here the few names that an array of numbers needs stand for
functions of this file, which only keep what they are given; any other name is refused before it is looked up. The
arrays are made at the end, from bytes, so that not even NumPy sees what a file made up.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

NUMBERS = re.compile(r"[<>=|]([ui][1248]|f[248]|b1)")
"""Element types that are read, as NumPy abbreviates them, behind their byte order."""


class _Type:
    """What a file says about the type of an array's elements."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


class _Array:
    """What a file says about an array."""

    __slots__ = ("contents", "fortran", "kind", "shape")

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.fortran, self.contents = state

    def numbers(self) -> np.ndarray:
        import numpy as np

        if not isinstance(self.kind, _Type) or not NUMBERS.fullmatch(self.kind.order + self.kind.code):
            raise ValueError("an array of something else than numbers")
        flat = np.frombuffer(self.contents, np.dtype(self.kind.order + self.kind.code))
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Reader(pickle.Unpickler):
    """Arrays of numbers, text, bytes, numbers, and plain containers of these."""

    def __init__(self, file: Any, where: str) -> None:
        super().__init__(file, encoding="bytes")  # Python 2 wrote the published files
        self.where = where

        def empty(*_: Any) -> _Array:
            return _Array()

        def buffered(contents: Any, kind: Any, shape: Any, order: Any) -> _Array:
            made = _Array()
            made.__setstate__((1, shape, kind, order == "F", contents))
            return made

        def latin1(text: str, encoding: str) -> bytes:  # how Python 3 writes bytes for Python 2
            if encoding != "latin1":
                raise ValueError(f"bytes written as {encoding}")
            return text.encode("latin1")

        # Fresh for each file: what a file may attach to them is gone with it.
        self.known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): lambda code, *_: _Type(code),
            ("_codecs", "encode"): latin1,
        }
        for core in ("numpy.core", "numpy._core"):
            self.known[f"{core}.multiarray", "_reconstruct"] = empty
            self.known[f"{core}.numeric", "_frombuffer"] = buffered

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise BadInput(
                f"{self.where} wants to run code when it is read ({module}.{name}), which ctkd never does; "
                "it is not the published file"
            ) from None


def read_pickle(path: Path, where: str) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as text, arrays read-only.

    Args:
        where: how messages begin, such as ``data set 'cifar10': PATH``.

    Raises:
        BadInput: the file cannot be read, is damaged, holds something else, or names code to run.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file, where).load()
            if not isinstance(found, dict):
                raise BadInput(f"{where} holds a {type(found).__name__}, not a dictionary of arrays")
            return {_text(key): part.numbers() if isinstance(part, _Array) else part for key, part in found.items()}
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # anything may come out of a damaged pickle
        what = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{where} is truncated or damaged, no pickle of arrays: {what}") from None
