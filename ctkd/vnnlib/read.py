# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Reads a specification of either version from a file."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from ctkd.errors import BadInput
from ctkd.vnnlib.specification import Specification
from ctkd.vnnlib.text import read_text

SECOND = re.compile(r"(?:\s|;[^\n]*\n)*\(\s*vnnlib-version")


def read_specification(path: Path) -> Specification:
    """The specification in a VNN-LIB file, 1.0 or 2.0, plain or gzipped.

    It is read strictly: numbers exactly, and what is not understood is an error, so that no assertion is ever lost.

    Raises:
        BadInput: the file cannot be read, or holds anything else; see ``parse_specification``.
    """
    try:
        text = read_unpacked(path).decode()
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not a VNN-LIB file: it is not text") from None
    try:
        return parse_specification(text)
    except BadInput as problem:
        raise BadInput(f"{path}: {problem}") from None


def read_unpacked(path: Path) -> bytes:
    """A file's content; gzip is undone. Raises: BadInput if it cannot be read."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadInput(f"{path} is damaged: it is no whole gzip file") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None


def parse_specification(text: str) -> Specification:
    """The specification in a VNN-LIB text, 1.0 or 2.0.

    Accepted are bounds on single inputs, on the top level or inside disjuncts, and non-strict linear comparisons of
    outputs, joined by ``and`` and ``or`` in any depth.

    Raises:
        BadInput: anything else, one line, with the place; input without both bounds; a lower above its upper bound; a
            disjunct that says nothing about outputs.
    """
    if SECOND.match(text):
        from ctkd.vnnlib.text2 import read_text2

        return read_text2(text)
    return read_text(text)
