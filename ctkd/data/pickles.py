# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Pickled batches of arrays, read without running anything that they name.

A pickle is a program: it may call whatever it names. Here the few names that an array of numbers needs stand for
functions of this file, which only keep what they are given; any other name is refused before it is looked up. The
arrays are made at the end, from bytes, so that not even NumPy sees what a file made up.

Nor may a short file take much memory or time. The reader is therefore Python's own in Python, whose memo holds what was
put into it, not all places up to the highest; keys are text, since hashing tuples of tuples may take for ever; and text
is turned into bytes only once.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ctkd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

NUMBERS = re.compile(r"[<>=|]([ui][1248]|f[248]|b1)")
"""Element types that are read, as NumPy abbreviates them, behind their byte order."""
SHOWN = 200
"""Characters of a file's own words in a message."""


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
    """A short name. Raises: ValueError if it is none."""
    if isinstance(value, (str, bytes)) and len(value) <= SHOWN:
        text = value.decode("latin1") if isinstance(value, bytes) else value
        if text.isprintable():
            return text
    raise ValueError("something else in the place of a name")


def _shown(text: str) -> str:
    """In one line, whatever a file made up."""
    plain = "".join(c if c.isprintable() else "?" for c in text[: SHOWN + 1])
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}..."


def _with_text_as_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """An opcode that fills a dictionary; ``keys``: where they lie on the stack."""

    def checked(reader: Any) -> None:
        if not all(isinstance(key, (str, bytes)) for key in reader.stack[keys]):
            raise ValueError("a dictionary whose keys are no text")
        load(reader)

    return checked


_OPCODES = pickle._Unpickler.dispatch
_FILLING = {pickle.SETITEM: slice(-2, -1), pickle.SETITEMS: slice(None, None, 2), pickle.DICT: slice(None, None, 2)}
_LEFT_OUT = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)
"""They hash, too."""


class _Reader(pickle._Unpickler):
    """Arrays of numbers, text, bytes, numbers, and plain containers of these."""

    dispatch: ClassVar = {
        **{code: load for code, load in _OPCODES.items() if code not in {left[0] for left in _LEFT_OUT}},
        **{code[0]: _with_text_as_keys(_OPCODES[code[0]], keys) for code, keys in _FILLING.items()},
    }

    def __init__(self, file: Any, where: str) -> None:
        super().__init__(file, encoding="bytes")  # Python 2 wrote the published files
        self.where = where
        left = os.fstat(file.fileno()).st_size

        def empty(*_: Any) -> _Array:
            return _Array()

        def buffered(contents: Any, kind: Any, shape: Any, order: Any) -> _Array:
            made = _Array()
            made.__setstate__((1, shape, kind, order == "F", contents))
            return made

        def latin1(text: str, encoding: str) -> bytes:  # how Python 3 writes bytes for Python 2
            nonlocal left
            left -= len(text)
            if encoding != "latin1" or left < 0:
                raise ValueError("bytes written in another way than Python 3 writes them for Python 2")
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
            named = _shown(f"{module}.{name}")
            raise BadInput(
                f"{self.where} wants to run code when it is read ({named}), which ctkd never does; "
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
        raise BadInput(f"{where} is truncated or damaged, no pickle of arrays: {_shown(what)}") from None
