# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""An exception in a plugin becomes one line that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ctkd.errors import CtkdError, RunFailed
from ctkd.hookspecs import Registration
from ctkd.plugins import one_line, registry


@contextmanager
def attributed(*entries: Registration) -> Iterator[None]:
    """Turn an unexpected exception of a foreign plugin inside the block into ``RunFailed``.

    The plugin is the one whose code is innermost in the traceback. Where no plugin's code is there (an error that
    comes out of the backward pass), the foreign ones among ``entries``, which were in use, are named.
    """
    try:
        yield
    except CtkdError:
        raise
    except Exception as error:
        what = _blamed(error, entries) or _suspected(error, entries)
        if not what:
            raise
        raise RunFailed(f"{what}; CTKD_TRACEBACK=1 shows the calls") from error


def label(entry: Registration) -> str:
    """How a message names a plugin; the origin only where it is foreign."""
    name = f"{entry.kind} {entry.name!r}"
    return name if is_own(entry) else f"{name} of {entry.origin}"


def is_own(entry: Registration) -> bool:
    return entry.target.startswith("ctkd.")


def _suspected(error: Exception, entries: tuple[Registration, ...]) -> str:
    foreign = " or ".join(label(entry) for entry in entries if not is_own(entry))
    return f"{foreign}: the run stopped with {one_line(error)}" if foreign else ""


def _blamed(error: Exception, entries: tuple[Registration, ...]) -> str:
    found: tuple[FrameType, int, str] | None = None
    traceback = error.__traceback__
    while traceback is not None:
        origin = _owner(str(traceback.tb_frame.f_globals.get("__name__", "")))
        if origin:
            found = traceback.tb_frame, traceback.tb_lineno, origin
        traceback = traceback.tb_next
    if found is None:
        return ""
    frame, line, origin = found
    kind = type(frame.f_locals.get("self"))
    target = f"{kind.__module__}:{kind.__qualname__}"
    same = [entry for entry in (*entries, *registry().entries.values()) if entry.target == target]
    entry = same[0] if same else None
    who = f"plugin {origin}" if entry is None else label(entry)
    return (
        f"{who} raised {one_line(error)} in {frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{line})"
    )


def _owner(module: str) -> str | None:
    """The foreign distribution that a module belongs to."""
    owners = registry().owners.items()
    return None if _inside(module, "ctkd") else next((o for package, o in owners if _inside(module, package)), None)


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
