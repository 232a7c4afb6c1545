# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd certify MODEL.onnx``: a network that was not trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctkd.cli.common import reporter
from ctkd.errors import BadInput

ATTACK = ("stages", "attack_steps", "attack_restarts", "attack_step_size", "seed", "device")
"""Options of ``[certify]`` that the verifier ``ctkd`` has, too."""


def certify_foreign(
    model: Path,
    radii: Sequence[str],
    dataset: str | None,
    data_dir: Path | None,
    specification: Path | None,
    out: Path | None,
    settings: Mapping[str, Any],
    *,
    as_json: bool,
) -> list[dict[str, Any]]:
    """Results on a data set. With a specification they are shown here, and nothing is returned."""
    if specification is None:
        from ctkd.foreign import certify_model

        return certify_model(
            model, radii, dataset=dataset, data_dir=data_dir, out=out, settings=settings, reporter=reporter()
        )
    if radii or dataset is not None or data_dir is not None:
        raise BadInput("--spec says what is certified: leave out --eps, --dataset and --data-dir")
    from ctkd.cli.verify import show
    from ctkd.verify.command import verify

    wrong = [path for path in settings if path.removeprefix("certify.") not in ATTACK]
    if wrong:
        accepted = ", ".join(f"certify.{key}" for key in ATTACK)
        raise BadInput(*(f"{path}: with --spec, accepted: {accepted}" for path in wrong))
    own = {f"ctkd.{path.removeprefix('certify.')}": value for path, value in settings.items()}
    results = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        results = out / "verification.sqlite"
    show(
        verify(model, ["ctkd"], specification=specification, out=results, settings=own, reporter=reporter()),
        as_json=as_json,
    )
    return []
