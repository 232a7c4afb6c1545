# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Files made to exhaust the machine, or the terminal: refused in one short line, in little time and memory."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctkd.config import resolve
from ctkd.data import idx
from ctkd.data.idx import read_files
from ctkd.data.pickles import read_pickle
from ctkd.data.pictures import opened
from ctkd.errors import BadInput

from .test_standard import load
from .trees import TREES, imagenet64, noise

PICKLE = b"\x80\x02"
NESTED = b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"0"
"""Puts a tuple of two tuples of two tuples ... at the memo's place 60: walking through it never ends."""
TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
ENCODED = b"c_codecs\nencode\nq\x01" + TEXT + b"q\x02X\x06\x00\x00\x00latin1q\x03\x86q\x04"
BOMBS: dict[str, tuple[bytes, str | None]] = {
    "a place in the memo": (PICKLE + b"}r" + struct.pack("<I", 1 << 27) + b".", None),
    "keys": (PICKLE + NESTED + b"}h\x3cK\x01s.", "keys are no text"),
    "more keys": (PICKLE + NESTED + b"}(h\x3cK\x01u.", "keys are no text"),
    "keys of protocol 0": (PICKLE + NESTED + b"(h\x3cI1\nd.", "keys are no text"),
    "a set": (b"\x80\x04" + NESTED + b"\x8f(h\x3c\x90.", "damaged"),
    "a frozen set": (b"\x80\x04" + NESTED + b"(h\x3c\x91.", "damaged"),
    "a name": (PICKLE + NESTED + b"cnumpy\ndtype\nh\x3c\x85R.", "in the place of a name"),
    "bytes from the same text": (PICKLE + ENCODED + b"0](" + b"h\x01h\x04R" * 5000 + b"e.", "bytes written"),
    "a length": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 42) + b"abc.", "damaged"),
    "a frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.", "damaged"),
}
READ_ALL = """
import json, pathlib, resource, sys
from ctkd.data.pickles import read_pickle
from ctkd.errors import BadInput
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_pickle(path, "data")
        print(json.dumps([path.name, None]))
    except BadInput as problem:
        print(json.dumps([path.name, str(problem)]))
most = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
assert int(most.split()[1]) < 200_000, most
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_pickles_of_any_form(tmp_path: Path) -> None:
    for name, (contents, _) in BOMBS.items():
        (tmp_path / name).write_bytes(contents)
    # In a process of its own: what is tried here stops neither for signals nor before memory is full.
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert set(found) == set(BOMBS)
    for name, (_, words) in BOMBS.items():
        assert (found[name] is None) == (words is None), name
        assert words is None or (words in found[name] and len(found[name]) < 300)


@pytest.mark.parametrize(
    "contents",
    [
        b"\x80\x04\x8c\x0eos\nerror: fake\x8c\x06system\x93.",
        b"c\x1b[31mos\nsystem\n.",
        b"c" + b"a" * 100_000 + b"\nsystem\n.",
        b"F" + b"x" * 100_000 + b"\n.",
        pickle.dumps({"data\nerror: fake": noise(2, 3)}, protocol=2),
        pickle.dumps({"d" * 1000: noise(2, 3)}, protocol=2),
    ],
)
def test_what_a_file_says_stays_in_a_line(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "batch").write_bytes(contents)
    with pytest.raises(BadInput) as caught:
        read_pickle(tmp_path / "batch", "data")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def npy(header: str, contents: bytes = b"abc") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + contents


def zipped(contents: bytes, method: int = zipfile.ZIP_DEFLATED, **more: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, part in {"x_train": contents, **more}.items():
            archive.writestr(f"{name}.npy", part)
    return out.getvalue()


def changed(archive: bytes, first: int, value: int) -> bytes:
    """With another byte in the header of the first member: ``first`` counts from where it begins."""
    found = bytearray(archive)
    found[first] = found[found.rfind(b"PK\x01\x02") + first + 2] = value
    return bytes(found)


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000000,), }"
PLAIN = dict.fromkeys(("y_train", "x_test", "y_test"), npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }"))
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "too long": (lambda: zipped(npy(HUGE), **PLAIN), "Unable to allocate"),
    "nested": (lambda: zipped(npy("-" * 9000 + "1"), **PLAIN), "is no NumPy archive"),
    "not closed": (lambda: zipped(npy("(" * 5000), **PLAIN), "is no NumPy archive"),
    "encrypted": (lambda: changed(zipped(b"x", zipfile.ZIP_STORED, **PLAIN), 6, 1), "is encrypted"),
    "unknown compression": (lambda: changed(zipped(b"x", zipfile.ZIP_STORED, **PLAIN), 8, 97), "compression"),
    "no array": (lambda: zipped(b"hello", **PLAIN), "x_train is no array"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_any_form(
    tmp_path: Path, ctkd_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, words = ARCHIVES[name]
    monkeypatch.chdir(tmp_path)
    Path("a.npz").write_bytes(make())
    code, out, errors = ctkd_command("train", "--dataset", "a.npz", "--eps", "0.1")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors
    assert len(errors) < 400 + len(str(tmp_path))


def test_a_short_archive_of_many_images_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    imagenet64(tmp_path)
    place = tmp_path / "Imagenet64_train_npz" / "train_data_batch_1.npz"
    np.savez_compressed(place, data=np.zeros((10_000, 12288), np.uint8), labels=np.ones(10_000, np.int64))
    assert place.stat().st_size < 1_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1e9}))
    with pytest.raises(BadInput, match=r"need about 1 GB of memory, 1 GB are free; set data.batches"):
        load("imagenet64", tmp_path)


def test_a_short_gz_file_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LONGEST", 50_000)
    TREES["fashion-mnist"][0](tmp_path)
    place = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    place.write_bytes(gzip.compress(bytes(50_001)))
    with pytest.raises(BadInput, match=r"t10k-images-idx3-ubyte.gz is truncated or damaged \(longer than 50,000 bytes"):
        read_files("fashion-mnist", tmp_path, "FashionMNIST/raw", "", {}, None)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) show\n"


def test_no_image_is_read_by_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by contents, and would hand PostScript to Ghostscript, whatever the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    path = tmp_path / "00000_00000.ppm"
    path.write_bytes(EPS)
    with pytest.raises(BadInput, match=r"00000_00000.ppm is no image that can be read"), opened(path) as image:
        image.convert("RGB")


# Trees of a user's own images ----------------------------------------------------------------------------


def images(root: Path) -> Path:
    from PIL import Image

    for part in ("train", "test"):
        for i, name in enumerate(("cats", "dogs")):
            (root / part / name).mkdir(parents=True)
            for j in range(4):
                Image.fromarray(noise(8, 8, seed=4 * i + j)).save(root / part / name / f"{j}.png")
    return root


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root / "train" / "cats"), "classes cats are in test only; train and test must"),
        (lambda root: shutil.rmtree(root / "test" / "dogs"), "classes dogs are in train only; train and test must"),
        (lambda root: [path.unlink() for path in (root / "train/cats").iterdir()], "train/cats: no images; accepted"),
        (lambda root: [path.unlink() for path in (root / "test/dogs").iterdir()], "test/dogs: no images; accepted"),
        (lambda root: (root / "train/dogs/2.png").write_bytes(b"\x89PNG"), "dogs/2.png is no image that can be read"),
        (lambda root: (root / "test/cats/2.png").write_bytes(b""), "cats/2.png is no image that can be read"),
    ],
)
def test_missing_classes_and_broken_images(
    tmp_path: Path,
    ctkd_command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    change(images(tmp_path / "pets"))
    code, out, errors = ctkd_command("train", "--dataset", "pets/", "--eps", "0.1")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    root = images(tmp_path / "pets")
    (root / "train" / ".thumbnails").mkdir()
    config = resolve({"data.name": "folder", "data.path": str(root), "train.eps": 0.1})
    assert config.data.create().load(None).classes == 2
