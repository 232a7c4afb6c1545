# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a registration module and its targets do when they are imported, seen in a process of its own.

``python -m ctkd.testing.isolated`` reads ``{"module": ..., "targets": [...]}`` and prints the findings, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from typing import Any

HEAVY = ("torch",)


def look(module: str, targets: tuple[str, ...]) -> dict[str, Any]:
    """Import them in a fresh interpreter.

    Returns:
        ``loaded``: what must not, but was loaded by the registration module. ``changed``: for each target the global
        state that its import changed. ``error``: why the module cannot be imported, or empty.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    request = json.dumps({"module": module, "targets": targets})
    done = subprocess.run(
        [sys.executable, "-m", "ctkd.testing.isolated"],
        input=request,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"loaded": [], "changed": {}, "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _main() -> None:
    request = json.load(sys.stdin)
    module, targets = request["module"], request["targets"]
    before = set(sys.modules)
    importlib.import_module(module)
    holders = {target.partition(":")[0] for target in targets} - {module}
    holders = {name for name in holders if not module.startswith(f"{name}.")}  # packages that it lies in
    loaded = sorted((set(sys.modules) - before) & {*HEAVY, *holders})

    from ctkd.testing.state import changes, snapshot

    changed = {}
    for target in targets:
        state = snapshot()
        with contextlib.suppress(Exception):  # reported where the plugin is made
            importlib.import_module(target.partition(":")[0])
        found = changes(state, "arithmetic", "randomness")
        if found:
            changed[target] = found
    print("\n" + json.dumps({"loaded": loaded, "changed": changed, "error": ""}))


if __name__ == "__main__":
    _main()
