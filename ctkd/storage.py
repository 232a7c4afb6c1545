# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Files that are either whole or absent, and tensors that cannot execute code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctkd.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a killed process leaves the old file or the new one.

    Raises: OSError that names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: Path, endings: Sequence[str], example: str, *, force: bool) -> None:
    """Refuse a file named with --out before any work is done for it.

    Args:
        endings: what its name may end in, with the dot.
        example: a name for a file in a folder.
        force: whether one that exists is replaced.

    Raises: BadInput.
    """
    if path.suffix not in endings:
        raise BadInput(f"--out {path}: name a file that ends in {', '.join(endings)}, such as {example}")
    if path.is_dir():
        raise BadInput(f"--out {path}: it is a folder; name a file, such as {path / example}")
    if not path.parent.is_dir():
        raise BadInput(f"--out {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise BadInput(f"--out {path}: the folder {path.parent} cannot be written")
    if path.exists() and not force:
        raise BadInput(f"--out {path}: it exists; name another file, or add --force")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises: BadInput if the file is not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadInput(f"{path} is damaged: it is not JSON") from None


def cache_folder() -> Path:
    """Where data sets and teachers are kept between runs: ``CTKD_CACHE``, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("CTKD_CACHE") or platformdirs.user_cache_dir("ctkd"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        BadInput: the file is missing, is a pickle (which could execute code), or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        # Only now, for a safetensors file begins with the length of its header, which may look like a pickle.
        if head == b"PK" or head[:1] == b"\x80":
            raise BadInput(
                f"{path} is a pickled PyTorch file, which can execute code when it is loaded; "
                "only safetensors files are accepted (safetensors.torch.save_file writes one)"
            ) from None
        raise BadInput(f"{path} is not a safetensors file, or is damaged: {str(error).splitlines()[0]}") from None


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
