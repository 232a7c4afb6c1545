# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The repository that a benchmark's proposer hands in: written whole, run once, and everything read back."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput, RunFailed
from ctkd.export import generate_properties as generator
from ctkd.export.benchmark.mix import OUTCOMES, Pool, timeouts
from ctkd.export.benchmark.readme import Text, readme
from ctkd.export.benchmark.witness import read_witness_1, read_witness_2, violates
from ctkd.export.check import Run, compare, runner
from ctkd.export.folder import folder_problems, whole_folder
from ctkd.export.instances import image_problems, naming_problems, replay, sample_problems
from ctkd.export.onnx_writer import to_onnx
from ctkd.export.vnnlib import RobustnessProperty, read_vnnlib
from ctkd.export.vnnlib2 import read_vnnlib2
from ctkd.storage import write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ctkd.propagate import Network


@dataclass(frozen=True)
class Candidate:
    """An image that may become an instance, and what ctkd knows about it: a row of ``data/outcomes.csv``.

    ``outcome``: one of ``mix.OUTCOMES``. ``lower_margin`` is None where no stage gave a bound.
    """

    sample: int
    label: int
    outcome: str
    stage: str
    lower_margin: float | None
    attack_margin: float
    seconds: float


@dataclass(frozen=True)
class BenchmarkReport:
    """What was written and checked.

    Attributes:
        folder: the finished repository.
        instances: how many a seed gives.
        pool: images of each outcome to draw from.
        mix, timeouts: instances and seconds of each outcome.
        total: sum of all timeouts in seconds.
        replayed: how many images of the pool that are certified were tried at corners and centre, without a violation.
        unproved: broken images without a counterexample that passes the strict check; they were left out.
        difference: largest difference of a logit between onnxruntime and torch.
    """

    folder: Path
    instances: int
    pool: Mapping[str, int]
    mix: Mapping[str, int]
    timeouts: Mapping[str, int]
    total: int
    replayed: int
    unproved: int
    difference: float


def write_benchmark(
    network: Network,
    candidates: Sequence[Candidate],
    images: Tensor,
    found: Tensor,
    eps: float,
    folder: Path,
    *,
    name: str,
    seed: int,
    budget: float,
    text: Text,
    samples: int,
    mix: dict[str, int] | None = None,
    hint: str = "",
) -> BenchmarkReport:
    """Write the repository, run its generator for ``seed``, and read back all that it wrote.

    Args:
        candidates: correctly classified images, one row each of ``images``, (n, *input_shape), float32, in [0, 1].
        found: as ``images``: the attack's point for the broken ones; other rows are not read.
        eps: L-infinity radius in pixel units, in [0, 1].
        folder: must not exist yet, or be empty. It appears whole or not at all.
        name: of the network's file; letters, digits, ``.``, ``_`` and ``-``.
        budget: seconds that all timeouts add up to, nearly, and at most.
        samples: instances, in an even mix; not used if ``mix`` says how many of each outcome.
        hint: how to get more candidates, for messages.

    Raises:
        BadInput: something cannot be used, as one line per mistake; too few images of an outcome; no such budget.
        Contradiction: a certified image has a counterexample at the image or at a random corner of its box.
        RunFailed: the model differs from the network, or a file does not read back as it was written.
    """
    folder = Path(folder).resolve()
    problems = [
        *image_problems(network, images),
        *sample_problems(network, images, [c.label for c in candidates], [c.sample for c in candidates], ()),
        *naming_problems(eps, name),
        *folder_problems(folder),
    ]
    if problems:
        raise BadInput(*problems)
    images = images.detach().cpu() + 0.0  # no negative zeros: 8-bit images have none either
    model = to_onnx(network)
    difference = compare(model, network, perturbation_box(images, eps))
    run = runner(model)
    pool = _proved(_pool(candidates, images, found, eps, network.classes), run)
    available = {outcome: sum(entry.candidate.outcome == outcome for entry in pool) for outcome in OUTCOMES}
    drawn = Pool(available, hint)
    shares = drawn.mix(samples) if mix is None else drawn.checked(mix)
    facts: dict[str, Any] = {
        "name": name,
        "eps": float(eps),
        "input_shape": list(network.input_shape),
        "classes": network.classes,
        "mix": shares,
        "timeouts": timeouts(shares, budget),
    }
    certified = [entry for entry in pool if entry.candidate.outcome in ("cheap", "tight")]
    for entry in certified:
        box = perturbation_box(entry.image[None], eps)
        replay(run, entry.image, box, entry.candidate.label, entry.candidate.sample, eps)

    files = {f"onnx/{name}.onnx": model.SerializeToString(deterministic=True), **_data(pool, run)}
    facts["sha256"] = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    texts = {
        generator.FACTS: json.dumps(facts, indent=2) + "\n",
        "generate_properties.py": Path(generator.__file__).read_text(encoding="utf-8"),
        "requirements.txt": "numpy>=1.17\n",
        ".gitattributes": "* -text\n",  # git must not change line ends: checksums would fail
        "README.md": readme(text, network, facts, available, seed),
        "CITATION.bib": text.bibtex + "\n",
    }
    with whole_folder(folder) as building:
        for part in ("data", "onnx"):
            (building / part).mkdir()
        for path, data in {**files, **{path: content.encode() for path, content in texts.items()}}.items():
            write_bytes(building / path, data)
        chosen = generator.generate(building, seed)
        _check_boxes(pool, eps)
        _check_written(building, facts, chosen, {entry.candidate.sample: entry.prop for entry in pool}, run)
    return BenchmarkReport(
        folder=folder,
        instances=sum(shares.values()),
        pool=available,
        mix=shares,
        timeouts=facts["timeouts"],
        total=sum(shares[outcome] * seconds for outcome, seconds in facts["timeouts"].items()),
        replayed=len(certified),
        unproved=len(candidates) - len(pool),
        difference=difference,
    )


@dataclass(frozen=True, eq=False)
class _Entry:
    """A candidate with its image, its property and the attack's point."""

    candidate: Candidate
    image: Tensor
    prop: RobustnessProperty
    found: NDArray[Any]


def _pool(candidates: Sequence[Candidate], images: Tensor, found: Tensor, eps: float, classes: int) -> list[_Entry]:
    box = perturbation_box(images, eps)
    return [
        _Entry(
            candidate,
            images[k],
            RobustnessProperty(
                box.lower[k].reshape(-1).numpy(), box.upper[k].reshape(-1).numpy(), candidate.label, classes
            ),
            found[k].detach().cpu().numpy(),
        )
        for k, candidate in enumerate(candidates)
    ]


def _proved(pool: Sequence[_Entry], run: Run) -> list[_Entry]:
    """Without the broken ones whose point is not strictly a counterexample in onnxruntime."""
    return [entry for entry in pool if entry.candidate.outcome != "broken" or violates(run, entry.prop, entry.found)]


def _data(pool: Sequence[_Entry], run: Run) -> dict[str, bytes]:
    """The pool as the generator reads it."""
    witnesses = [entry.found for entry in pool if entry.candidate.outcome == "broken"]
    some = np.array(witnesses, np.float32).reshape(len(witnesses), *pool[0].image.shape)
    logits = [run(witness[None])[0] for witness in witnesses]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in fields(Candidate)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entry.candidate) for entry in pool)
    return {
        generator.IMAGES: _npy(_stored(pool)),
        generator.OUTCOMES: table.getvalue().encode(),
        generator.WITNESSES: _npy(some),
        generator.LOGITS: _npy(np.array(logits, np.float32).reshape(len(logits), pool[0].prop.classes)),
    }


def _stored(pool: Sequence[_Entry]) -> NDArray[Any]:
    """8-bit integers where these give exactly the same float32 images, in a fourth of the size."""
    images = np.stack([entry.image.numpy() for entry in pool])
    small = np.rint(images * 255).astype(np.uint8)
    return small if generator.pixels(small).tobytes() == images.tobytes() else images


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _check_boxes(pool: Sequence[_Entry], eps: float) -> None:
    """The generator's boxes of all images of the pool, whatever the seed, are those that were certified."""
    lower, upper = generator.perturbation_box(generator.pixels(_stored(pool)), eps)
    for row, entry in enumerate(pool):
        if (lower[row].tobytes(), upper[row].tobytes()) != (entry.prop.lower.tobytes(), entry.prop.upper.tobytes()):
            raise RunFailed(f"the generator makes another box of sample {entry.candidate.sample} than is certified")


def _check_written(
    folder: Path,
    facts: Mapping[str, Any],
    chosen: Sequence[generator.Image],
    properties: Mapping[int, RobustnessProperty],
    run: Run,
) -> None:
    """Both versions list the same instances; each holds the certified box bit for bit; each witness is strictly one."""
    name, shape, classes = facts["name"], tuple(facts["input_shape"]), facts["classes"]
    listing = (folder / "instances.csv").read_text()
    if listing != (folder / "vnnlib2/instances.csv").read_text() or len(chosen) != sum(facts["mix"].values()):
        raise RunFailed("the instances of VNN-LIB 1.0 and 2.0 are not the same")
    for image, line in zip(chosen, listing.splitlines(), strict=True):
        model, specification, _ = line.split(",")
        prop = properties[image.sample]
        first = read_vnnlib((folder / specification).read_text())
        second, found_shape = read_vnnlib2((folder / "vnnlib2" / specification).read_text())
        copy = hashlib.sha256((folder / "vnnlib2" / model).read_bytes()).hexdigest()
        same = first.identical(prop) and second.identical(prop) and found_shape == shape
        if not same or copy != facts["sha256"][model]:
            raise RunFailed(f"{specification} does not read back as the box that was certified")
        if image.outcome == "broken":
            file = f"{name}_{Path(specification).stem}.counterexample"
            first_x, _ = read_witness_1((folder / "witnesses/1.0" / file).read_text())
            second_x, _ = read_witness_2((folder / "witnesses/2.0" / file).read_text(), shape, classes)
            if not all(violates(run, prop, x.reshape(shape)) for x in (first_x, second_x)):
                raise RunFailed(f"witnesses/{file} does not pass the strict check")
