# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Export a student for external verifiers, then read the exported files with onnxruntime alone.

Searches each exported box at random corners for a violation. That can refute a certificate, never prove one; a
verifier that reads ONNX and VNN-LIB can. About 8 seconds on one core.
"""

from __future__ import annotations

import csv
import re
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from ctkd.run import export, train

SETTINGS = {"bound.name": "crown-ibp", "teacher.name": "none", "train.epochs": 10, "train.threads": 1}
BOUND = re.compile(r"\(assert \((<=|>=) X_(\d+) ([-+.\deE]+)\)\)")
LABEL = re.compile(r"Robustness of class (\d+)")


def read_box(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Lower and upper bound of every pixel, and the label, of a VNN-LIB file that ctkd wrote."""
    text = path.read_text()
    found = {(sign, int(index)): float(value) for sign, index, value in BOUND.findall(text)}
    pixels = len(found) // 2
    lower, upper = (np.array([found[sign, i] for i in range(pixels)], np.float32) for sign in (">=", "<="))
    match = LABEL.search(text)
    assert match is not None
    return lower, upper, int(match[1])


def main() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        run, folder = Path(scratch) / "run", Path(scratch) / "benchmark"
        train(settings=SETTINGS, out=run)
        report = export(run, folder, samples=5)
        print(f"{report['model']}: {report['instances']} instances, {report['certified']} of them certified by ctkd")
        for model, instance, timeout in csv.reader((folder / "instances.csv").open()):
            session = onnxruntime.InferenceSession(folder / model)
            (image,) = session.get_inputs()
            lower, upper, label = read_box(folder / instance)
            corners = np.where(random.random((200, len(lower))) < 0.5, lower, upper)
            logits = np.concatenate(
                [session.run(None, {image.name: corner.reshape(1, *image.shape[1:])})[0] for corner in corners]
            )
            others = np.delete(logits, label, axis=1)
            margin = (logits[:, label] - others.max(axis=1)).min()
            print(f"  {Path(instance).name}: smallest margin at 200 corners {margin:+.3f} (timeout {timeout} s)")


if __name__ == "__main__":
    main()
