# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What to cite for exactly the methods of a configuration, as BibTeX."""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Iterable

from ctkd.config import RunConfig
from ctkd.hookspecs import Paper, Registration
from ctkd.papers import ATTA, EDAC, SHI
from ctkd.plugins import registry

SPECIAL = re.compile(r"([&%$#_])")
SHORT = {"a", "an", "the", "on", "of", "in", "for", "to", "towards"}


def entries(config: RunConfig) -> list[Registration]:
    """The plugins that a configuration uses."""
    roles = (config.bound, *config.teachers, config.distill, config.attack, config.model, config.data)
    found = [choice.entry for choice in (*roles, config.propagation)]
    found += [registry().find("stage", table["name"]) for table in config.certify.stages]
    return found + [registry().find("attack", table["name"]) for table in config.certify.further_attacks]


def papers(config: RunConfig) -> list[Paper]:
    """Each paper once, those of the bound method first."""
    found = [paper for entry in entries(config) for paper in entry.papers]
    if config.train.init == "shi" or config.train.shi_weight > 0:
        found.append(SHI)
    trained = [choice.options for choice in config.teachers]
    if any(getattr(options, "edac", 0) > 0 for options in (config.train, *trained)):
        found.append(EDAC)
    if any(getattr(options, "warm_start", False) for options in (config.attack.options, *trained)):
        found.append(ATTA)
    return list(dict.fromkeys(found))


def bibtex(found: Iterable[Paper]) -> str:
    """BibTeX entries, ctkd's own first; two papers never share a key."""
    version = importlib.metadata.version("ctkd")
    own = {"title": "{ctkd: certified training with knowledge distillation}", "author": "{The ctkd contributors}"}
    parts = [_entry("software", "ctkd", {**own, "version": version})]
    taken = {"ctkd"}
    for paper in found:
        key = _key(paper)
        while key in taken:
            key += "x"
        taken.add(key)
        parts.append(_entry(_kind(paper), key, _fields(paper)))
    return "\n\n".join(parts)


def _kind(paper: Paper) -> str:
    if not paper.venue:
        return "misc"
    journal = re.search(r"\d+\(\d+\)", paper.venue) or "Journal" in paper.venue or "Transactions" in paper.venue
    return "article" if journal else "inproceedings"


def _fields(paper: Paper) -> dict[str, str]:
    # Doubled braces keep the capitals of the title as they are.
    fields = {
        "title": f"{{{_escape(paper.title)}}}",
        "author": _escape(" and ".join(f"{{{a}}}" if " " in a and "," not in a else a for a in paper.authors)),
        "year": str(paper.year),
    }
    if paper.venue:
        fields["journal" if _kind(paper) == "article" else "booktitle"] = _escape(paper.venue)
    if paper.arxiv:
        fields |= {"eprint": paper.arxiv, "archiveprefix": "arXiv"}
    if paper.url:
        fields["url"] = paper.url
    return fields


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}"


def _escape(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)


def _key(paper: Paper) -> str:
    words = [word for word in re.findall(r"[a-z0-9]+", _ascii(paper.title).lower()) if word not in SHORT]
    last = re.sub(r"[^a-z]", "", _ascii(paper.authors[0].partition(",")[0]).lower())
    return f"{last}{paper.year}{words[0] if words else ''}"


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
