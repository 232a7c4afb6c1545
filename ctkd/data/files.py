# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Where the files of published data sets lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ctkd.errors import BadInput


def named_folder(data_dir: Path | None) -> Path | None:
    """The folder of ``--data-dir``, or that of the variable ``CTKD_DATA``, or None."""
    return data_dir or (Path(os.environ["CTKD_DATA"]) if os.environ.get("CTKD_DATA") else None)


def find_root(name: str, data_dir: Path | None, folder: str, members: Sequence[str], source: str) -> Path:
    """The folder that holds all ``members``: ``DIR/folder``, or ``DIR`` itself if that holds the first of them.

    Raises: BadInput that names every missing member, the folders looked in, and where the data come from.
    """
    root = named_folder(data_dir)
    if root is None:
        raise BadInput(
            f"data set {name!r} is not downloaded: get it from {source}, and name the folder that holds {folder}/ "
            "with --data-dir or CTKD_DATA"
        )
    places = [root / folder, root]
    place = next((p for p in places if (p / members[0]).exists()), places[0])
    missing = [member for member in members if not (place / member).exists()]
    if missing:
        looked = str(place) if place.exists() else " and ".join(map(str, places))
        raise BadInput(
            f"data set {name!r}: {', '.join(missing)} missing in {looked}; expected {folder}/ with "
            f"{', '.join(members)}, from {source}"
        )
    return place


def download(name: str, url: str, md5: str, folder: str, untar: bool = False) -> Path:
    """Fetch a published file once into the user's cache, check it, and return the folder it lies in.

    ``untar``: unpack it there, too. Raises: BadInput where there is no network, or another file than the published one.
    """
    import pooch

    from ctkd.storage import cache_folder

    cache, file = cache_folder() / "data" / folder, url.rpartition("/")[2]
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, f"md5:{md5}", file, cache, **({"processor": pooch.Untar(extract_dir=".")} if untar else {}))
    except Exception as error:  # pooch passes on whatever the network layer raises
        raise BadInput(
            f"data set {name!r}: {file} is not in {cache} and cannot be downloaded ({type(error).__name__}); "
            f"name a folder that holds {folder}/ with --data-dir or CTKD_DATA"
        ) from None
    return cache
