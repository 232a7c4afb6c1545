# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd check-proofs``."""

from __future__ import annotations

from pathlib import Path

import click

from ctkd.cli.common import json_option, print_json, reporter
from ctkd.errors import RunFailed

EPILOG = """\b
Examples:
  ctkd certify runs/NAME --set certify.proofs=true --set 'certify.stages=["crown", "complete"]'
  ctkd check-proofs runs/NAME
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder with the data set's files.")
@json_option
def command(run: Path, data_dir: Path | None, as_json: bool) -> None:
    """Replay stored proofs of certificates by separate code, in float64.

    Ends with exit code 1 if a proof is missing or does not hold.
    """
    from ctkd.run import check_proofs

    found = check_proofs(run, data_dir=data_dir, reporter=reporter())
    if as_json:
        print_json(found)
    else:
        for one in found["refused"]:
            print(f"refused: {one['split']} sample {one['sample']} at eps {one['eps']:g}: {one['reason']}")
        print(f"proofs that hold: {found['checked']}")
    if found["refused"]:
        raise RunFailed(f"{len(found['refused'])} of {found['checked'] + len(found['refused'])} proofs do not hold")
