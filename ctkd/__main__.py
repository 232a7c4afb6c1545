# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd`` and ``python -m ctkd``."""

from __future__ import annotations

import sys


def main() -> None:
    from ctkd.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
