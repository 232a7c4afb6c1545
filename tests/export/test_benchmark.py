# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A competition benchmark: its generator in a bare Python, its files read by readers of their own."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ctkd.boxes import perturbation_box
from ctkd.export import generate_properties as script
from ctkd.export.benchmark import BenchmarkReport, Candidate

from .conftest import ask
from .material import EPS, MIX, Material, tree, write
from .readers import read_1_0, read_2_0, strictly_violates


def written(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in tree(folder).items() if path.split("/")[0] in script.WRITTEN}


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A Python that has NumPy and the standard library, and nothing else: no ctkd, no torch."""
    site = tmp_path_factory.mktemp("site")
    for part in Path(np.__file__).parent.parent.glob("numpy*"):
        (site / part.name).symlink_to(part)
    start = f"import sys; sys.path.append({str(site)!r}); sys.argv = sys.argv[1:]; "
    start += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-I", "-S", "-c", start]


def generate(bare_python: list[str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*bare_python, str(folder / "generate_properties.py"), *arguments]
    return subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(made: tuple[Path, BenchmarkReport], tmp_path: Path) -> Path:
    for path, data in tree(made[0]).items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    return tmp_path / "copy"


# What is written -----------------------------------------------------------------------------------------


def test_layout(made: tuple[Path, BenchmarkReport], material: Material) -> None:
    folder, report = made
    assert [path.name for path in folder.parent.iterdir()] == ["bench"]
    found = {path for path in tree(folder) if path.split("/")[0] not in ("vnnlib", "vnnlib2", "witnesses")}
    data = {"benchmark.json", "images.npy", "outcomes.csv", "witnesses.npy", "witness_logits.npy"}
    files = {".gitattributes", "CITATION.bib", "README.md", "generate_properties.py", "instances.csv"}
    assert found == files | {"requirements.txt", "onnx/digits-cnn.onnx", *(f"data/{name}" for name in data)}
    assert (folder / "generate_properties.py").read_text() == Path(script.__file__).read_text()
    assert report.folder == folder.resolve()
    assert (report.instances, report.mix) == (12, MIX)
    assert dict(report.pool) == Counter(candidate.outcome for candidate in material.candidates)
    assert report.replayed == report.pool["cheap"] + report.pool["tight"]
    assert report.unproved == 0
    assert max(len(data) for data in tree(folder).values()) < 200_000


def test_instances(made: tuple[Path, BenchmarkReport], material: Material) -> None:
    """As the scorer cuts rows; the mix is the one asked for; timeouts are near the budget and never above it."""
    folder, report = made
    listing = (folder / "instances.csv").read_bytes()
    assert listing == (folder / "vnnlib2" / "instances.csv").read_bytes()
    rows = [line.split(",") for line in listing.decode().removesuffix("\n").split("\n")]
    outcomes = {candidate.sample: candidate.outcome for candidate in material.candidates}
    assert {len(row) for row in rows} == {3}
    samples = [int(specification.rpartition("_idx")[2].removesuffix(".vnnlib")) for _, specification, _ in rows]
    assert samples == sorted(set(samples))
    assert Counter(outcomes[sample] for sample in samples) == MIX
    for (model, specification, seconds), sample in zip(rows, samples, strict=True):
        for version in (folder, folder / "vnnlib2"):
            assert (version / model).is_file()
            assert (version / specification).is_file()
        assert specification == f"vnnlib/digits-cnn_eps0.06_idx{sample}.vnnlib"
        assert int(seconds) == report.timeouts[outcomes[sample]]
    total = sum(int(seconds) for *_, seconds in rows)
    assert total == report.total
    assert 21_588 < total <= 21_600
    assert len(written(folder)) == 2 + 2 * 12 + 1 + 2 * MIX["broken"]


def test_each_property_is_the_certified_box(made: tuple[Path, BenchmarkReport], material: Material) -> None:
    """Both versions, by readers that share no code with the writers."""
    folder, _ = made
    where = {candidate.sample: k for k, candidate in enumerate(material.candidates)}
    box = perturbation_box(material.images, EPS)
    for path in sorted((folder / "vnnlib").iterdir()):
        k = where[int(path.stem.rpartition("_idx")[2])]
        first = read_1_0(path.read_text(), 64, 10)
        assert first == read_2_0((folder / "vnnlib2" / "vnnlib" / path.name).read_text(), (1, 8, 8), 10)
        bounds = np.array(first[0], np.float32)
        assert bounds[:, 0].tobytes() == box.lower[k].numpy().tobytes()
        assert bounds[:, 1].tobytes() == box.upper[k].numpy().tobytes()
        label = material.candidates[k].label
        assert first[1] == {(j, label) for j in range(10) if j != label}


def test_every_witness_passes_the_strict_check(made: tuple[Path, BenchmarkReport]) -> None:
    """Parsed and replayed as the scorer does: one at a time, inputs and outputs without any tolerance."""
    folder, _ = made
    session = onnxruntime.InferenceSession(folder / "onnx" / "digits-cnn.onnx", providers=["CPUExecutionProvider"])
    names = sorted(path.name for path in (folder / "witnesses" / "1.0").iterdir())
    assert names == sorted(path.name for path in (folder / "witnesses" / "2.0").iterdir())
    assert len(names) == MIX["broken"]
    for name in names:
        text = (folder / "witnesses" / "1.0" / name).read_text()
        assert text[0] + text.rstrip()[-1] == "()"
        pairs = [part.replace("(", " ").replace(")", " ").split() for part in text.strip()[1:-1].split("\n")]
        assert [key for key, _ in pairs] == [*(f"X_{i}" for i in range(64)), *(f"Y_{j}" for j in range(10))]
        values = np.array([float(value) for _, value in pairs])
        lines = (folder / "witnesses" / "2.0" / name).read_text().splitlines()
        assert [lines[0], lines[1], lines[66]] == ["sat", "X float32 [1,1,8,8]", "Y float32 [1,10]"]
        assert values.tolist() == [float(line) for line in lines[2:66] + lines[67:]]
        specification = folder / "vnnlib" / f"{name.removeprefix('digits-cnn_').removesuffix('.counterexample')}.vnnlib"
        x = values[:64].astype(np.float32)
        (y,) = session.run(None, {"input": x.reshape(1, 1, 8, 8)})[0]
        assert np.abs(y - values[64:]).max() <= 1e-5
        box, unsafe = read_1_0(specification.read_text(), 64, 10)
        assert strictly_violates(box, unsafe, x, y)


def test_the_pool_and_what_is_known_of_it(made: tuple[Path, BenchmarkReport], material: Material) -> None:
    folder, _ = made
    with (folder / "data" / "outcomes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["sample"]), int(row["label"]), row["outcome"], row["stage"]) for row in rows] == [
        (c.sample, c.label, c.outcome, c.stage) for c in material.candidates
    ]
    assert [float(row["attack_margin"]) for row in rows] == [c.attack_margin for c in material.candidates]
    assert np.load(folder / "data" / "images.npy").tobytes() == material.images.numpy().tobytes()
    facts = json.loads((folder / "data" / "benchmark.json").read_text())
    assert {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in facts["sha256"]} == facts[
        "sha256"
    ]


def test_8_bit_images_are_stored_as_such(tmp_path: Path, material: Material) -> None:
    small = (material.images * 255).round().to(torch.uint8)
    images = small.to(torch.float32).div_(255)
    undecided = [Candidate(**{**vars(c), "outcome": "undecided"}) for c in material.candidates]
    mix = {"cheap": 0, "tight": 0, "undecided": 3, "broken": 0}
    report = write(material, tmp_path / "bench", images=images, candidates=undecided, mix=mix)
    stored = np.load(report.folder / "data" / "images.npy")
    assert (stored.dtype, stored.tolist()) == (np.uint8, small.numpy().tolist())
    assert not list((report.folder / "witnesses" / "1.0").iterdir())


def test_the_model_is_one_file_of_allowed_operators(made: tuple[Path, BenchmarkReport]) -> None:
    folder, _ = made
    model = onnx.load(folder / "onnx" / "digits-cnn.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Gemm", "Relu", "Flatten", "Reshape", "Add"}
    assert (model.opset_import[0].version, len(model.graph.input), len(model.graph.output)) == (13, 1, 1)


def test_the_readme_has_the_headings_and_the_figures(made: tuple[Path, BenchmarkReport]) -> None:
    text = (made[0] / "README.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        *("Motivation", "Architecture", "Specification", "Setup", "Difficulty", "Contacts", "Availability"),
    ]
    assert "$" not in text
    assert "trained on digits by hand." in text
    assert "| Linear | 10 | 490 |" in text
    assert f"| tight | certified by crown only | {made[1].pool['tight']} | 3 | {made[1].timeouts['tight']} |" in text
    assert (made[0] / "CITATION.bib").read_text() == "@misc{x}\n"


# The generator -------------------------------------------------------------------------------------------


def test_it_runs_in_a_bare_python_and_gives_the_same_bytes(copy: Path, bare_python: list[str]) -> None:
    before = tree(copy)
    for name in ("vnnlib/left-over.vnnlib", "vnnlib2/vnnlib/left-over.vnnlib", "witnesses/left-over"):
        (copy / name).write_text("old")
    done = generate(bare_python, copy, "5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "12 instances for seed 5\n", "")
    assert tree(copy) == before


def test_another_seed_picks_other_images(copy: Path, bare_python: list[str], material: Material) -> None:
    """A seed of the competition's size. What does not depend on the seed stays."""
    before = tree(copy)
    large = str(0xD4E56740F876AEF8C010B86A40D5F56745A118D0906A34E6_9AEC8C0DB1CB8FA3)
    assert generate(bare_python, copy, large).returncode == 0
    after = tree(copy)
    lasting = [
        {path: data for path, data in files.items() if path.split("/")[0] not in script.WRITTEN}
        for files in (before, after)
    ]
    assert lasting[0] == lasting[1]
    old, new = ({p for p in files if p.startswith("vnnlib/")} for files in (before, after))
    assert len(new) == 12
    assert len(new - old) >= 6
    outcomes = {candidate.sample: candidate.outcome for candidate in material.candidates}
    assert Counter(outcomes[int(path.rpartition("_idx")[2].removesuffix(".vnnlib"))] for path in new) == MIX
    assert generate(bare_python, copy, "5").returncode == 0
    assert tree(copy) == before


def test_the_bare_python_is_bare(bare_python: list[str], tmp_path: Path) -> None:
    """So that the tests above can fail."""
    (tmp_path / "generate_properties.py").write_text("import numpy\nimport torch\n")
    done = generate(bare_python, tmp_path)
    assert "No module named 'torch'" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["1", "2"], ["x"], ["1.5"]])
def test_calls_without_a_seed(copy: Path, bare_python: list[str], arguments: list[str]) -> None:
    before = tree(copy)
    done = generate(bare_python, copy, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: python generate_properties.py SEED, an integer\n"
    assert tree(copy) == before


def test_files_that_are_not_those_exported(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the pointers of Git LFS; nothing is removed then."""
    model = copy / "onnx" / "digits-cnn.onnx"
    content = model.read_bytes()
    model.write_text("version https://git-lfs.github.com/spec/v1\n")
    before = tree(copy)
    with pytest.raises(script.Refused, match=r"onnx/digits-cnn.onnx is not the file that was exported; fetch it again"):
        script.generate(copy, 5)
    assert tree(copy) == before
    model.write_bytes(content)
    (copy / "data" / "images.npy").unlink()
    with pytest.raises(script.Refused, match=r"the exported files cannot be read: .*images.npy"):
        script.generate(copy, 5)
    (copy / "data" / "benchmark.json").write_text("{}")
    with pytest.raises(script.Refused, match=r"the exported files cannot be read: 'sha256'"):
        script.generate(copy, 5)


# Marabou -------------------------------------------------------------------------------------------------


def test_marabou_agrees_with_what_we_say(copy: Path, marabou: str, material: Material) -> None:
    """Of counterexamples it may miss one: version 2.0.0 was seen to call a property proved that has one."""
    outcomes = {candidate.sample: candidate.outcome for candidate in material.candidates}
    verdicts: dict[str, list[str]] = {outcome: [] for outcome in MIX}
    for path in sorted((copy / "vnnlib").iterdir()):
        outcome = outcomes[int(path.stem.rpartition("_idx")[2])]
        if outcome != "undecided" and len(verdicts[outcome]) < 3:
            verdicts[outcome].append(ask(marabou, copy / "onnx" / "digits-cnn.onnx", path).verdict)
    assert set(verdicts["cheap"] + verdicts["tight"]) == {"unsat"}
    assert verdicts["broken"].count("sat") >= 2
