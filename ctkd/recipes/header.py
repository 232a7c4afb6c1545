# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What a recipe says of itself. Nothing of it changes a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctkd.options import Number, Options

Percent = Annotated[Number, Field(ge=0, le=100)]


class Figures(Options):
    """What somebody measured, in percent of the test images."""

    natural: Percent | None = None
    """Right on clean images."""
    certified: Percent | None = None
    """Right on all images within the radius, by proof."""
    verifier: str
    """What proved it, and how long it had."""
    source: str
    """Where the figures stand, and whether at first hand."""


class Header(Options):
    """The table ``[recipe]``."""

    title: str
    """Method, data set, radius."""
    method: str
    """As its paper calls it."""
    paper: str
    """Of the method."""
    settings: str
    """Where the settings stand: repository and place in it."""
    code: Literal["expressive-losses", "CTBench", "ctkd"]
    """Whose settings these are."""
    published: tuple[Figures, ...] = ()
    """What was reported for the row by those whose settings these are, as far as public text was found."""
    rerun: tuple[Figures, ...] = ()
    """What ctkd measured with these settings; empty: not run."""
    differences: tuple[str, ...] = ()
    """Where ctkd does otherwise than the source."""
    unknown: tuple[str, ...] = ()
    """What no public text says, and what stands in its place."""
