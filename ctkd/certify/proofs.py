# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Stored proofs: one file per sample, written when a search certifies it. ``ctkd.certify.replay`` checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ctkd.boxes import Box
from ctkd.errors import BadInput, RunFailed
from ctkd.propagate import Network
from ctkd.storage import read_tensors, write_tensors

FORMAT = "ctkd-proof-1"


def check_provable(network: Network) -> None:
    """Raises: BadInput if proofs do not cover the network."""
    from ctkd.propagate.ops import LeakyRelu, Relu

    kinds = {type(network.nodes[i].op).__name__ for i in network.nonlinear}
    other = sorted(kinds - {Relu.__name__, LeakyRelu.__name__})
    if other:
        raise BadInput(
            f"certify.proofs: proofs cover ReLU and LeakyReLU networks, and this one has {', '.join(other)}; "
            "leave certify.proofs out"
        )


@dataclass(frozen=True)
class ProofFolder:
    """The proofs that belong to one certification's settings.

    Attributes:
        path: made when the first proof is written.
        claim: what every proof is about: ``network`` (SHA-256), ``eps``, ``split``, ``data`` (digest of the split).
    """

    path: Path
    claim: Mapping[str, Any]

    def file(self, sample: int) -> Path:
        """Where a sample's proof is."""
        return self.path / f"{sample}.safetensors"

    def write(self, sample: int, label: int, box: Box, proof: Mapping[str, Tensor]) -> None:
        """Raises: RunFailed if it cannot be written; then the sample must not be recorded as certified."""
        claim = {**self.claim, "sample": sample, "label": label}
        tensors = {**proof, "box.lower": box.lower[0], "box.upper": box.upper[0]}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_tensors(self.file(sample), tensors, {"format": FORMAT, "claim": json.dumps(claim, sort_keys=True)})
        except OSError as error:
            raise RunFailed(
                f"{self.file(sample)} could not be written ({error.strerror}); finished samples before it are kept"
            ) from None


def proof_folder(
    run: Path, settings: int, network: Network, eps: float, split: str, details: Mapping[str, Any]
) -> ProofFolder:
    """Where in a run's folder the proofs lie that belong to stored settings."""
    claim = {"network": network.sha256(), "eps": eps, "split": split, "data": details["data"]}
    return ProofFolder(run / "proofs" / str(settings), claim)


@dataclass(frozen=True, eq=False)
class Proof:
    """A proof as it was read. What the tensors mean is in docs/proofs.md."""

    claim: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_proof(path: Path) -> Proof:
    """Raises: BadInput if it is not a whole proof file."""
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise BadInput(f"{path} is a safetensors file, but not a proof that ctkd wrote (format {FORMAT})")
    try:
        claim = json.loads(metadata["claim"])
    except (KeyError, ValueError):
        raise BadInput(f"{path}: its claim cannot be read; the file is damaged") from None
    return Proof(claim, tensors)
