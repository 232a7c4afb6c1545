# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Writes the instances of this benchmark for a seed: ``python generate_properties.py SEED``.

Needs Python 3.8 or newer, NumPy, and the files beside it, which ctkd wrote. The same seed gives the same bytes on any
machine: images are drawn by SHA-256, not by a random number generator. What an earlier call wrote is removed first.

    instances.csv, vnnlib/                  VNN-LIB 1.0
    vnnlib2/instances.csv, onnx/, vnnlib/   VNN-LIB 2.0: the same instances in the same order
    witnesses/1.0/, witnesses/2.0/          counterexamples to the instances that ctkd's attack broke
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

FACTS = "data/benchmark.json"
IMAGES = "data/images.npy"
OUTCOMES = "data/outcomes.csv"
WITNESSES = "data/witnesses.npy"
LOGITS = "data/witness_logits.npy"
WRITTEN = ("instances.csv", "vnnlib", "vnnlib2", "witnesses")


class Refused(Exception):
    """Why nothing was written."""


class Image(NamedTuple):
    """One image of the pool.

    ``sample``: its number in the data set. ``place``: its row in the array of images. ``witness``: the row of its
    counterexample, or -1.
    """

    sample: int
    label: int
    outcome: str
    place: int
    witness: int


# Boxes ---------------------------------------------------------------------------------------------------


def pixels(stored: NDArray[Any]) -> NDArray[np.float32]:
    """float32 in [0, 1]; images are stored as 8-bit integers where dividing by 255 gives them back exactly."""
    return stored.astype(np.float32) / np.float32(255) if stored.dtype == np.uint8 else stored


def perturbation_box(x: NDArray[np.float32], eps: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bounds of all images within L-infinity distance ``eps`` of ``x``, clipped to [0, 1], rounded outward."""
    wide = x.astype(np.float64)
    return _shift(wide, -eps, -1), _shift(wide, eps, 1)


def _shift(x: NDArray[np.float64], by: float, direction: int) -> NDArray[np.float32]:
    total = x + by
    # Knuth's two-sum: x + by == total + error exactly.
    virtual = total - x
    error = (x - (total - virtual)) + (by - virtual)
    rounded = total.astype(np.float32)
    gap = (rounded.astype(np.float64) - total) - error  # sign of (rounded - exact); only its sign is used
    away = np.nextafter(rounded, np.float32(direction * np.inf))
    outward: NDArray[np.float32] = np.where(gap * direction < 0, away, rounded)
    return np.clip(outward, np.float32(0), np.float32(1))


# Text ----------------------------------------------------------------------------------------------------


def exact(value: Any) -> str:
    """The exact decimal expansion of a finite float32: positional, with a decimal point, without exponent.

    Shorter decimals that round to the same float32 lie on the wrong side of it half the time, and then a corner of the
    box is outside of what the file says.
    """
    text = format(Decimal(float(value)), "f")
    return text if "." in text else f"{text}.0"


def positional(value: float) -> str:
    """The shortest digits that mean this double, without exponent."""
    return format(Decimal(repr(float(value))), "f")


def comments(label: int, eps: float) -> list[str]:
    """What a property says, for people. No brackets and no variables: some readers are regular expressions."""
    return [
        f"; Robustness of class {label} within L-infinity distance eps = {float(eps)!r} of one input.",
        "; Bounds are rounded outward to float32 and printed exactly, so float32 corners are inside.",
        f"; sat: somewhere in the box a logit reaches that of class {label}; a tie is a violation.",
        "; unsat: robust.",
    ]


def vnnlib_1(lower: Sequence[Any], upper: Sequence[Any], label: int, classes: int, eps: float) -> str:
    """VNN-LIB 1.0 of the violation, in the one form that every verifier we tried reads."""
    lines = comments(label, eps)
    lines += [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i in range(len(lower)):
        lines += [f"(assert (>= X_{i} {exact(lower[i])}))", f"(assert (<= X_{i} {exact(upper[i])}))"]
    lines += ["(assert (or", *(f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label), "))"]
    return "\n".join(lines) + "\n"


def vnnlib_2(
    lower: Sequence[Any], upper: Sequence[Any], shape: Sequence[int], label: int, classes: int, eps: float
) -> str:
    """VNN-LIB 2.0 of the same violation; ``shape`` is that of one input, without the batch."""
    lines = comments(label, eps)
    lines += ["(vnnlib-version <2.0>)", "(declare-network classifier"]
    lines += [f"    (declare-input X float32 {brackets(1, *shape)})"]
    lines += [f"    (declare-output Y float32 {brackets(1, classes)})", ")"]
    for i, place in enumerate(np.ndindex(*shape)):
        x = f"X{brackets(0, *place)}"
        lines += [f"(assert (>= {x} {exact(lower[i])}))", f"(assert (<= {x} {exact(upper[i])}))"]
    lines += ["(assert (or", *(f"    (>= Y[0,{j}] Y[0,{label}])" for j in range(classes) if j != label), "))"]
    return "\n".join(lines) + "\n"


def brackets(*numbers: int) -> str:
    """Shapes and indices of VNN-LIB 2.0."""
    return "[" + ",".join(str(number) for number in numbers) + "]"


def witness_1(x: Sequence[Any], y: Sequence[Any]) -> str:
    """A counterexample to a property in VNN-LIB 1.0: one list, as the competition's checker reads it."""
    values = [f"(X_{i} {exact(x[i])})" for i in range(len(x))] + [f"(Y_{j} {exact(y[j])})" for j in range(len(y))]
    return "(" + "\n ".join(values) + ")\n"


def witness_2(x: Sequence[Any], y: Sequence[Any], shape: Sequence[int]) -> str:
    """A counterexample to a property in VNN-LIB 2.0: the standard's textual assignment."""
    lines = ["sat", f"X float32 {brackets(1, *shape)}", *(exact(value) for value in x)]
    lines += [f"Y float32 {brackets(1, len(y))}", *(exact(value) for value in y)]
    return "\n".join(lines) + "\n"


# The benchmark -------------------------------------------------------------------------------------------


def draw(samples: Iterable[int], count: int, seed: object) -> list[int]:
    """``count`` of the samples, ascending: those whose SHA-256 together with the seed is smallest."""
    return sorted(sorted(samples, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())[:count])


def read_facts(root: Path) -> dict[str, Any]:
    """Name, radius, mix, timeouts and checksums. Raises: Refused if a file is missing or not what was exported."""
    try:
        facts: dict[str, Any] = json.loads((root / FACTS).read_text(encoding="utf-8"))
        for path, digest in facts["sha256"].items():
            if hashlib.sha256((root / path).read_bytes()).hexdigest() != digest:
                raise Refused(f"{path} is not the file that was exported; fetch it again (git lfs pull?)")
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"the exported files cannot be read: {error}") from None
    return facts


def read_pool(root: Path) -> list[Image]:
    """The images and ctkd's outcome for each."""
    pool: list[Image] = []
    broken = 0
    with (root / OUTCOMES).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            witness = broken if row["outcome"] == "broken" else -1
            broken += row["outcome"] == "broken"
            pool.append(Image(int(row["sample"]), int(row["label"]), row["outcome"], len(pool), witness))
    return pool


def choose(pool: Sequence[Image], mix: dict[str, int], seed: int) -> list[Image]:
    """As many of each outcome as the mix says, in the order of the data set."""
    chosen: set[int] = set()
    for outcome, count in mix.items():
        chosen.update(draw((image.sample for image in pool if image.outcome == outcome), count, seed))
    return sorted(image for image in pool if image.sample in chosen)


def generate(root: Path, seed: int) -> list[Image]:
    """Write everything; returns the images that were drawn, in the order of ``instances.csv``."""
    facts = read_facts(root)
    name, eps, shape, classes = facts["name"], facts["eps"], facts["input_shape"], facts["classes"]
    images, witnesses, logits = (np.load(root / path, allow_pickle=False) for path in (IMAGES, WITNESSES, LOGITS))
    chosen = choose(read_pool(root), facts["mix"], seed)
    model = f"onnx/{name}.onnx"
    for old in WRITTEN:
        if (root / old).is_dir():
            shutil.rmtree(root / old)
        elif (root / old).exists():
            (root / old).unlink()
    for folder in ("vnnlib", "vnnlib2/vnnlib", "vnnlib2/onnx", "witnesses/1.0", "witnesses/2.0"):
        (root / folder).mkdir(parents=True)
    rows = ""
    for image in chosen:
        stem = f"{name}_eps{positional(eps)}_idx{image.sample}"
        box = perturbation_box(pixels(images[image.place]), eps)
        lower, upper = (bound.reshape(-1).tolist() for bound in box)  # doubles, which hold float32 exactly
        write(root / f"vnnlib/{stem}.vnnlib", vnnlib_1(lower, upper, image.label, classes, eps))
        write(root / f"vnnlib2/vnnlib/{stem}.vnnlib", vnnlib_2(lower, upper, shape, image.label, classes, eps))
        if image.witness >= 0:
            x, y = witnesses[image.witness].reshape(-1).tolist(), logits[image.witness].tolist()
            write(root / f"witnesses/1.0/{name}_{stem}.counterexample", witness_1(x, y))
            write(root / f"witnesses/2.0/{name}_{stem}.counterexample", witness_2(x, y, shape))
        rows += f"{model},vnnlib/{stem}.vnnlib,{facts['timeouts'][image.outcome]}\n"
    shutil.copyfile(root / model, root / "vnnlib2" / model)
    write(root / "vnnlib2/instances.csv", rows)
    write(root / "instances.csv", rows)
    return chosen


def write(path: Path, text: str) -> None:
    """The same bytes on every system."""
    path.write_bytes(text.encode("ascii"))


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 for a call or files that cannot be used."""
    try:
        (seed,) = map(int, arguments)
    except ValueError:
        print("usage: python generate_properties.py SEED, an integer", file=sys.stderr)
        return 2
    try:
        chosen = generate(Path(__file__).resolve().parent, seed)
    except Refused as reason:
        print(reason, file=sys.stderr)
        return 2
    print(f"{len(chosen)} instances for seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
