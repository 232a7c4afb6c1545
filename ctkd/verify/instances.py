# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is asked about: pairs of a network and a specification, from a folder with instances.csv or one by one."""

from __future__ import annotations

import ast
import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctkd.errors import BadInput
from ctkd.options import parse_number

TABLE = "instances.csv"
TIMEOUT = 60.0
"""Seconds for a question where neither the user nor a table gives any."""


@dataclass(frozen=True)
class Sample:
    """Where an instance comes from a data set: which sample, and what ctkd itself knows about it.

    Attributes:
        network: SHA-256 of the network, as in results of ``ctkd certify``; ``eps``, ``split`` likewise.
        data: digest of the split.
        index: of the sample in the split.
        status: what ctkd's own attack and stages found; None where they were not asked.
        settled_by: the stage or attack.
    """

    network: str
    eps: float
    split: str
    data: str
    index: int
    status: Literal["certified", "broken", "undecided"] | None = None
    settled_by: str = ""


@dataclass(frozen=True)
class Instance:
    """One question.

    Attributes:
        row: names of network and specification, as in instances.csv.
        model: the ONNX file, plain or gzipped.
        specification: the VNN-LIB file, plain or gzipped; or a function from a version of VNN-LIB to the text.
        timeout: seconds.
    """

    row: tuple[str, str]
    model: Path
    specification: Path | Callable[[str], str]
    timeout: float
    sample: Sample | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"sample {self.sample.index}" if self.sample else " ".join(self.row)


def one_instance(model: Path, specification: Path, timeout: float | None) -> list[Instance]:
    """Raises: BadInput if a file is missing."""
    missing = [path for path in (model, specification) if not path.is_file()]
    problems = [f"{path} is a folder; name a file" if path.is_dir() else f"{path} does not exist" for path in missing]
    if problems:
        raise BadInput(*problems)
    return [Instance((model.name, specification.name), model, specification, timeout or TIMEOUT)]


def read_table(path: Path, timeout: float | None) -> list[Instance]:
    """The instances of a folder with instances.csv, or of such a file, in its order.

    Args:
        timeout: takes the place of the table's where it is not None.

    Raises:
        BadInput: one line per mistake: a file that is missing, a timeout that is none, a row that comes twice.
    """
    table = path / TABLE if path.is_dir() else path
    try:
        rows = list(csv.reader(table.read_text().splitlines()))
    except FileNotFoundError:
        inner = [each.parent for each in sorted(path.glob(f"*/{TABLE}"))]
        hint = f"did you mean {inner[0]}?" if inner else "name a run, an ONNX file with --spec, or such a folder"
        raise BadInput(f"{path} has no {TABLE}: {hint}") from None
    except OSError as error:
        raise BadInput(f"{table} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} is no table of instances: {error}") from None
    found: list[Instance] = []
    problems: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        try:
            found.append(_row(table.parent, row, timeout))
        except BadInput as problem:
            problems += [f"{table} line {number}: {message}" for message in problem.messages]
            continue
        first = seen.setdefault((row[0].strip(), row[1].strip()), number)
        if first != number:
            problems.append(f"{table} line {number}: the same network and specification as line {first}")
    if not found and not problems:
        problems.append(f"{table} lists no instances")
    if problems:
        raise BadInput(*problems)
    return found


def _row(folder: Path, row: list[str], timeout: float | None) -> Instance:
    cells = [cell.strip() for cell in row]
    if len(cells) != 3:
        raise BadInput(f"{len(cells)} columns; accepted: network,specification,timeout, without a header")
    problems = []
    try:
        seconds = float(parse_number(cells[2]))
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        problems.append(f"timeout {cells[2]!r} is not a number of seconds above 0")
    paths = []
    for cell in (_single_network(cells[0]), cells[1]):
        plain = folder / cell
        packed = plain.with_name(f"{plain.name}.gz")
        if not plain.is_file() and not packed.is_file():
            problems.append(f"{plain} does not exist")
        paths.append(plain if plain.is_file() else packed)
    if problems:
        raise BadInput(*problems)
    return Instance((cells[0], cells[1]), paths[0], paths[1], timeout or seconds)


def _single_network(cell: str) -> str:
    """VNN-LIB 2.0 tables name networks as a list of pairs, ``[("f", "onnx/net.onnx")]``."""
    if not cell.startswith("["):
        return cell
    try:
        ((_, path),) = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError):
        raise BadInput(f"{cell!r} names several networks; only specifications of one are read") from None
    return str(path)


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count``: every ``count``-th instance. All parts together are all instances, once each."""

    number: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """``"2/5"``. Raises: BadInput."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise BadInput(f"--shard {text}: write PART/PARTS, from 1/5 to 5/5")
        return Shard(int(match[1]), int(match[2]))

    def of(self, instances: list[Instance]) -> list[Instance]:
        return instances[self.number - 1 :: self.count]
