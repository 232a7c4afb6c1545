# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Tables for people, JSON for programs, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import machine


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def document(results: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """Results with what is needed to repeat them."""
    return {
        "command": machine.command_line(),
        "hardware": machine.facts(),
        "versions": machine.versions(),
        "settings": settings,
        "results": results,
    }


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    for row in rows:
        made.add_row(*row)
    console = Console()
    console.print(made)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.1 else f"{1000 * value:.2f} ms"


def megabytes(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"
