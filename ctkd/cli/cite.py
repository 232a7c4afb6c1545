# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd cite``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctkd.cli.common import config_options, json_option, print_json, settings_of
from ctkd.errors import BadInput

EPILOG = """\b
Examples:
  ctkd cite runs/NAME
  ctkd cite --bound cc-ibp --teacher pgd --distill features
"""


@click.command(epilog=EPILOG)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@config_options
@json_option
def command(run: Path | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Print BibTeX for exactly the methods of RUN, or of the configuration that the options describe."""
    from ctkd.cite import bibtex, papers
    from ctkd.config import resolve
    from ctkd.runfolder import RunFolder

    values = settings_of(flags)
    if run is not None and (values or config is not None):
        raise BadInput("a run has its own configuration; name a run or give options, not both")
    resolved = resolve(values, config if run is None else RunFolder.open(run).config)
    found = papers(resolved)
    if as_json:
        print_json([{"text": str(paper), "title": paper.title, "year": paper.year} for paper in found])
    else:
        print(bibtex(found))
