# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The complete stage beside the Marabou program, on small networks near the edge of what is robust.

    python docs/results/complete/compare.py rows.jsonl     # asks both, appends a row for each instance
    python docs/results/complete/compare.py rows.jsonl --table

Networks are trained here, adversarially, on the digits that come with scikit-learn, from image 400 on; instances are
the correctly classified among the first images. Both get the same exported box, one thread and 60 seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ctkd.accuracy import smallest_margin
from ctkd.boxes import Box, perturbation_box
from ctkd.certify.complete import CompleteOptions, CompleteStage
from ctkd.export import export_instances
from ctkd.propagate import Network, margins_of
from ctkd.train.finish import finalise

TIMEOUT, IMAGES, TRAINED_FROM = 60, 30, 400
RADII = {"mlp": (0.08, 0.11, 0.14), "conv": (0.08, 0.11, 0.14), "residual": (0.06, 0.08, 0.1)}


class Residual(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def build(name: str) -> nn.Module:
    if name == "mlp":
        hidden = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))
    if name == "conv":
        layers = nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    branch = nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1)
    first = nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*first, Residual(*branch), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))


def trained(name: str, x: Tensor, labels: Tensor, eps: float = 0.05) -> Network:
    torch.manual_seed(0)
    module = build(name)
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(600):
        rows = torch.randint(len(labels), (128,))
        clean, y = x[rows], labels[rows]
        box = perturbation_box(clean, eps)
        point = box.lower + torch.rand_like(clean) * (box.upper - box.lower)
        for _ in range(3):
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(module(point), y), point)
            point = box.clamp(point.detach() + 0.7 * eps * gradient.sign())
        optimiser.zero_grad()
        F.cross_entropy(module(point), y).backward()
        optimiser.step()
    return finalise(module, (1, 8, 8))


def ours(net: Network, box: Box, label: Tensor) -> dict[str, Any]:
    stage = CompleteStage(CompleteOptions(timeout=TIMEOUT))
    began = time.perf_counter()
    found = stage.search(net.to(torch.float64), box.to(torch.float64), label, lambda: False)
    seconds = time.perf_counter() - began
    assert found.points is not None
    broken = bool(smallest_margin(margins_of(net(box.clamp(found.points)), label), label) <= 0)
    proof = found.proofs[0]
    verdict = "sat" if broken else "unsat" if proof is not None else "timeout"
    leaves = 0 if proof is None else len(proof["leaf.rival"])
    return {"ctkd": verdict, "ctkd_seconds": round(seconds, 3), "leaves": leaves}


def marabou(model: Path, specification: Path, net: Network, box: Box, label: Tensor) -> dict[str, Any]:
    """Its verdict, and whether its point, printed with six decimals and moved into the box, is a violation."""
    summary = specification.with_suffix(".summary")
    program = Path(sys.executable).with_name("Marabou")
    options = ["--timeout", str(TIMEOUT), "--verbosity", "0", "--summary-file", str(summary)]
    began = time.perf_counter()
    done = subprocess.run([program, model, specification, *options], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    verdict = summary.read_text().split()[0].lower()
    row: dict[str, Any] = {"marabou": verdict, "marabou_seconds": round(seconds, 3)}
    if verdict == "sat":
        values = [float(v) for v in re.findall(r"^\s*x\d+ = (\S+)$", done.stdout, re.MULTILINE)]
        point = box.clamp(torch.from_numpy(np.array(values, np.float32)).reshape(box.lower.shape))
        row["replayed_margin"] = round(float(smallest_margin(margins_of(net(point), label), label)), 7)
    return row


def ask(out: Path) -> None:
    torch.set_num_threads(1)
    data = load_digits()
    x, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    done = (
        {(r["net"], r["image"], r["eps"]) for r in map(json.loads, out.read_text().splitlines())}
        if out.exists()
        else set()
    )
    for name, radii in RADII.items():
        net = trained(name, x[TRAINED_FROM:], labels[TRAINED_FROM:])
        right = [k for k in range(IMAGES) if int(net(x[k : k + 1]).argmax()) == int(labels[k])]
        for eps in radii:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "export"
                report = export_instances(net, x[right], labels[right], right, eps, place, name=name, timeout=TIMEOUT)
                for k, specification in zip(right, report.specifications, strict=True):
                    if (name, k, eps) in done:
                        continue
                    box, label = perturbation_box(x[k : k + 1], eps), labels[k : k + 1]
                    row = {"net": name, "sha256": net.sha256()[:12], "image": k, "eps": eps}
                    row |= ours(net, box, label)
                    row |= marabou(report.folder / report.model, report.folder / specification, net, box, label)
                    with out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def table(out: Path) -> None:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    print("| network | eps | instances | ctkd unsat / sat / timeout | Marabou unsat / sat / timeout | contradictions |")
    print("|---|---|---|---|---|---|")
    for name, radii in RADII.items():
        for eps in radii:
            print(line(name, f"{eps:g}", [r for r in rows if (r["net"], r["eps"]) == (name, eps)]))
    print(line("all", "", rows))
    print("\n| seconds | ctkd median | mean | most | Marabou median | mean | most |\n|---|---|---|---|---|---|---|")
    for name in (*RADII, "all"):
        some = [r for r in rows if name in ("all", r["net"])]
        times = [[r[f"{tool}_seconds"] for r in some] for tool in ("ctkd", "marabou")]
        cells = [f"{f(each):.2f}" for each in times for f in (statistics.median, statistics.mean, max)]
        print(f"| {name} | {' | '.join(cells)} |")


def line(name: str, eps: str, rows: list[dict[str, Any]]) -> str:
    counts = [
        " / ".join(str(sum(r[tool] == verdict for r in rows)) for verdict in ("unsat", "sat", "timeout"))
        for tool in ("ctkd", "marabou")
    ]
    contradictions = sum({r["ctkd"], r["marabou"]} == {"sat", "unsat"} for r in rows)
    return f"| {name} | {eps} | {len(rows)} | {counts[0]} | {counts[1]} | {contradictions} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    table(given.rows) if given.table else ask(given.rows)
