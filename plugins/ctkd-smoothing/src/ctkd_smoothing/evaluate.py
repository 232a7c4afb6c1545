# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A run's student behind noise, sample by sample; what ``ctkd smooth`` does."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctkd.api import Split
from ctkd.errors import BadInput
from ctkd.options import validate
from ctkd.run import load_student
from ctkd_smoothing.certificate import SmoothedCertificate, certify_sample
from ctkd_smoothing.options import SmoothOptions
from ctkd_smoothing.store import THREAT_MODEL, opened


def smooth(
    run: Path,
    values: Mapping[str, Any] | None = None,
    *,
    data_dir: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Certify a trained student as the base of a smoothed classifier. What is stored already is not done again.

    Writes ``smoothing.sqlite`` into the run folder, and nothing else: these are no certificates of ``ctkd certify``,
    whose threat model is L-infinity and whose statements have no probability.

    Args:
        run: a run folder.
        values: options by name, see ``SmoothOptions``.
        data_dir: where the data set's files lie, if not where the run found them.
        progress: called with (samples done, samples).

    Returns:
        The options, ``smoothed_accuracy`` (right and certified at some radius), ``abstained`` (fraction),
        ``average_l2_radius`` (a sample that is wrong or abstained counts as 0), ``expected_wrong_at_most`` (of these
        certificates, number), ``all_hold_with_probability`` (at least), and ``curve``: for each L2 radius the fraction
        that is right there and certified that far, with the L-infinity radius that it implies.

    Raises: BadInput for options, a run or a data set that cannot be used.
    """
    problems: list[str] = []
    options = validate(SmoothOptions, values or {}, "", problems)
    if options is None:
        raise BadInput(*problems)
    network, data = load_student(run, data_dir=data_dir)
    sigma = options.sigma if options.sigma is not None else _trained_sigma(run)
    split: Split = getattr(data, options.split)
    rows = _rows(options, len(split))
    device = _device(options.device)
    settings = {
        "network": network.sha256(),
        "split": options.split,
        "data": _digest(split),
        "sigma": sigma,
        **{name: getattr(options, name) for name in ("selection", "draws", "alpha", "seed")},
    }
    moved = network.to(device)
    found: dict[int, SmoothedCertificate] = {}
    with opened(run, settings) as store:
        known = store.known()
        for done, row in enumerate(rows):
            progress(done, len(rows))
            if row not in known:
                statistics = {name: settings[name] for name in ("sigma", "selection", "draws", "alpha", "seed")}
                known[row] = certify_sample(moved, split.images[row].to(device), row, **statistics)
                store.add(row, int(split.labels[row]), known[row])
            found[row] = known[row]
    progress(len(rows), len(rows))
    facts = {**settings, "start": rows.start, "samples": len(rows), "dimensions": math.prod(data.input_shape)}
    # No independence is needed for either: the mean of a sum, and the union bound.
    wrong = options.alpha * len(rows)
    together = {"expected_wrong_at_most": wrong, "all_hold_with_probability": max(0.0, 1 - wrong)}
    summary = _summary(found, split, options.radii, math.prod(data.input_shape))
    return {"threat_model": THREAT_MODEL, **facts, **summary, **together}


def _summary(
    found: Mapping[int, SmoothedCertificate], split: Split, radii: tuple[float, ...], dimensions: int
) -> dict[str, Any]:
    right = {row: one.predicted == int(split.labels[row]) for row, one in found.items()}
    lengths = torch.tensor([one.radius if right[row] else 0.0 for row, one in found.items()], dtype=torch.float64)
    hits = torch.tensor([right[row] for row in found])
    return {
        "smoothed_accuracy": float(hits.double().mean()),
        "abstained": sum(one.predicted is None for one in found.values()) / len(found),
        "average_l2_radius": float(lengths.mean()),
        "curve": [
            {
                "l2_radius": radius,
                # No float may make it larger than what was proved.
                "implied_linf_radius": math.nextafter(radius / math.sqrt(dimensions), 0),
                "certified_at_l2_radius": float((hits & (lengths >= radius)).double().mean()),
            }
            for radius in radii
        ],
    }


def _trained_sigma(run: Path) -> float:
    bound = tomllib.loads((run / "config.toml").read_text()).get("bound", {})
    sigma = bound.get("sigma") if isinstance(bound, dict) else None
    if not isinstance(sigma, float | int):
        raise BadInput(f"sigma must be given: {run} was not trained with noise; write --sigma 0.25, for example")
    problems: list[str] = []
    checked = validate(SmoothOptions, {"sigma": sigma}, "bound", problems)
    if checked is None or checked.sigma is None:
        raise BadInput(*(f"{run / 'config.toml'}: {problem}" for problem in problems))
    return checked.sigma


def _rows(options: SmoothOptions, size: int) -> range:
    stop = size if options.samples is None else options.start + options.samples
    if stop > size or options.start >= size:
        raise BadInput(
            f"start={options.start}, samples={options.samples}: the {options.split} split has {size} samples"
        )
    return range(options.start, stop)


def _device(name: str) -> torch.device:
    try:
        zero = torch.zeros(1, device=name)
        zero.tolist()  # not on devices without values
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises depends on what is missing
        reason = str(error).splitlines()[0].split(". ")[0]
        raise BadInput(f"device={name}: {reason}; accepted: cpu, cuda where there is one") from None
    return zero.device


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    parts: tuple[Tensor, ...] = (split.images, split.labels)
    for part in parts:
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
