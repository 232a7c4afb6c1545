# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Image files, read by Pillow, and what was decoded kept for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np


FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Formats that are read, whatever a file is called: Pillow reads others by other programs, such as Ghostscript."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A Pillow image. Raises: BadInput if Pillow is missing, or the file is no image that can be read."""
    try:
        from PIL import Image
    except ImportError:
        raise BadInput("reading images needs Pillow: pip install 'ctkd[images]'") from None
    wrong = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except (*wrong, Image.DecompressionBombWarning) as error:
        raise BadInput(f"{path} is no image that can be read: {error}") from None


def resized(image: Any, size: int) -> Any:
    """An opened image with size x size pixels: bilinearly, with antialiasing."""
    from PIL import Image

    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def colours(image: Any, size: int) -> np.ndarray:
    """An opened image as (3, size, size), uint8; of another size it is resized."""
    import numpy as np

    return np.asarray(resized(image.convert("RGB"), size)).transpose(2, 0, 1)


def decoded(name: str, root: Path, files: Sequence[Path], form: str, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """All images, (count, ...), uint8: read one by one the first time, afterwards from one file in the user's cache.

    The cached file is used while names, sizes and times of all image files, Pillow and ``form`` are the same, and
    its contents have the checksum it was written with; otherwise all images are read again.

    Args:
        form: what ``read`` makes of an image, in words.

    Raises: BadInput naming the first file that is missing or cannot be read.
    """
    import numpy as np
    import torch

    from ctkd.storage import cache_folder, digest_tensors, write_tensors

    key = _key(root, files, form)
    place = cache_folder() / "data" / "decoded" / f"{name}-{key[:16]}.safetensors"
    kept = _kept(place, key)
    if kept is not None:
        return kept
    images = np.stack([read(path) for path in files])
    tensors = {"images": torch.from_numpy(images)}
    with contextlib.suppress(OSError):  # a full or protected disk only costs time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(place, tensors, {"key": key, "sha256": digest_tensors(tensors)})
    return images


def _kept(place: Path, key: str) -> np.ndarray | None:
    from ctkd.storage import digest_tensors, read_tensors

    if not place.is_file():
        return None
    try:
        tensors, facts = read_tensors(place)
    except BadInput:
        return None
    if facts.get("key") != key or facts.get("sha256") != digest_tensors(tensors):
        return None
    found: np.ndarray = tensors["images"].numpy()
    return found


def _key(root: Path, files: Sequence[Path], form: str) -> str:
    try:
        import PIL
    except ImportError:
        raise BadInput("reading images needs Pillow: pip install 'ctkd[images]'") from None
    facts: list[Any] = [form, PIL.__version__]
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
        facts.append([path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
