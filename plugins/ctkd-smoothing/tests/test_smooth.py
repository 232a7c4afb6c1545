# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd smooth`` on a run of a few seconds: what it says, what it stores, what it leaves alone, what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import ctkd_smoothing.evaluate
import pytest
import torch
from ctkd_smoothing.certificate import SmoothedCertificate
from ctkd_smoothing.evaluate import smooth

from ctkd.errors import BadInput
from ctkd.run import load_student, train

QUICK = {
    "teacher.name": "none",
    "train.epochs": 8,
    "train.warmup": 0.0,
    "train.ramp": 0.0,
    "train.batch_size": 64,
    "train.lr": 5e-3,
    "train.threads": 1,
}
FEW: dict[str, Any] = {"selection": 20, "draws": 300, "samples": 40}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {**QUICK, "bound.name": "noisy-adversarial", "bound.steps": 2}
    folder, summary = train(settings=settings, out=tmp_path_factory.mktemp("smooth") / "run", certify=False)
    assert summary["natural_accuracy"] > 0.8
    return folder.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ctkd(arguments: list[str]) -> int:
    """The installed command, in this process; returns its exit code."""
    (script,) = entry_points(group="console_scripts", name="ctkd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ctkd", *arguments])
        with pytest.raises(SystemExit) as ended:
            script.load()()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0


def files(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file()
    }


def test_a_student_trained_with_noise_is_certified(run: Path) -> None:
    before = files(run)
    found = smooth(run, {**FEW, "radii": (0, 0.1, 0.3, 10)})
    shares = [row["certified_at_l2_radius"] for row in found["curve"]]
    assert shares[0] == found["smoothed_accuracy"] > 0.7
    assert shares == sorted(shares, reverse=True)
    assert shares[2] > 0.3
    assert shares[3] == 0
    assert found["sigma"] == 0.25  # that of the training
    assert 0 < found["average_l2_radius"] < 0.25 * 2.5
    assert found["dimensions"] == 64
    assert found["expected_wrong_at_most"] == pytest.approx(40 * 0.001)
    assert found["all_hold_with_probability"] == pytest.approx(0.96)
    for row in found["curve"]:
        assert row["implied_linf_radius"] < row["l2_radius"] / 8 or row["l2_radius"] == 0
        assert row["implied_linf_radius"] == pytest.approx(row["l2_radius"] / 8)
    after = files(run)
    assert {name for name in after if after[name] != before.get(name)} == {"smoothing.sqlite"}
    assert not {"eps", "certified_accuracy"} & found.keys()


def test_what_is_stored_is_not_done_again_and_settings_do_not_mix(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = smooth(run, {**FEW, "samples": 10})
    done: list[int] = []
    certify_sample = ctkd_smoothing.evaluate.certify_sample

    def counted(logits: Any, x: Any, sample: int, **values: Any) -> Any:
        done.append(sample)
        return certify_sample(logits, x, sample, **values)

    monkeypatch.setattr(ctkd_smoothing.evaluate, "certify_sample", counted)
    assert smooth(run, {**FEW, "samples": 10}) == first
    assert done == []
    smooth(run, {**FEW, "samples": 12})
    assert done == [10, 11]
    del done[:]
    for changed in ({"seed": 1}, {"alpha": 0.01}, {"draws": 301}, {"selection": 21}, {"split": "validation"}):
        smooth(run, {**FEW, "samples": 1, **changed})
    assert done == [0] * 5
    done[:] = [10, 11]
    other = smooth(run, {**FEW, "samples": 10, "sigma": 0.5})
    assert done == [10, 11, *range(10)]
    assert other["average_l2_radius"] != first["average_l2_radius"]
    with sqlite3.connect(run / "smoothing.sqlite") as database:
        rows = database.execute(
            "SELECT threat_model, sigma, COUNT(*), MAX(l2_radius) FROM certificates JOIN settings ON settings = id "
            "WHERE draws = 300 AND alpha = 0.001 AND seed = 0 AND selection = 20 AND split = 'test' "
            "GROUP BY id ORDER BY sigma"
        ).fetchall()
    database.close()
    assert [row[:3] for row in rows] == [
        ("L2, Gaussian smoothing, probabilistic", 0.25, 12),
        ("L2, Gaussian smoothing, probabilistic", 0.5, 10),
    ]
    assert all(0 < row[3] <= row[1] * 2.5 for row in rows)


def test_samples_are_certified_alone_or_together_alike(run: Path, tmp_path: Path) -> None:
    whole = smooth(run, {**FEW, "samples": 6})
    (run / "smoothing.sqlite").unlink()
    for start in (4, 0, 2):
        smooth(run, {**FEW, "start": start, "samples": 2})
    assert smooth(run, {**FEW, "samples": 6}) == whole


@pytest.mark.parametrize("changed", ["network", "images", "labels"])
def test_certificates_of_another_network_or_other_data_are_not_taken(
    run: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    first = smooth(run, {**FEW, "samples": 3})
    network, data = load_student(run)
    if changed == "network":
        network = network.map(lambda tensor: 0 * tensor)
    else:
        part = {"images": 1 - data.test.images} if changed == "images" else {"labels": (data.test.labels + 1) % 10}
        data = replace(data, test=replace(data.test, **part))
    monkeypatch.setattr(ctkd_smoothing.evaluate, "load_student", lambda *_, **__: (network, data))
    done: list[int] = []
    monkeypatch.setattr(
        ctkd_smoothing.evaluate,
        "certify_sample",
        lambda logits, x, sample, **values: done.append(sample) or SmoothedCertificate(None, 0, 0.0, 0.0),
    )
    assert smooth(run, {**FEW, "samples": 3})["abstained"] == 1 != first["abstained"]
    assert done == [0, 1, 2]


def test_what_was_found_before_a_kill_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each certificate is in the file before the next one is begun, and another process reads it."""
    script = (
        "import os, pathlib, sys, ctkd_smoothing.evaluate as evaluate\n"
        "certify = evaluate.certify_sample\n"
        "def killed(logits, x, sample, **values):\n"
        "    return os._exit(9) if sample == 2 else certify(logits, x, sample, **values)\n"
        "evaluate.certify_sample = killed\n"
        f"evaluate.smooth(pathlib.Path(sys.argv[1]), {FEW!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(run)], check=False).returncode == 9
    done: list[int] = []
    certify_sample = ctkd_smoothing.evaluate.certify_sample

    def counted(logits: Any, x: Any, sample: int, **values: Any) -> Any:
        done.append(sample)
        return certify_sample(logits, x, sample, **values)

    monkeypatch.setattr(ctkd_smoothing.evaluate, "certify_sample", counted)
    smooth(run, {**FEW, "samples": 4})
    assert done == [2, 3]


def test_the_table_says_what_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctkd(["smooth", str(run), "--samples", "5", "--draws", "200", "--radii", "0,1/4"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "L2 radius",
        "certified with probability",
        "threat model: L2, Gaussian smoothing, probabilistic; not comparable with `ctkd certify`",
        "comes from 200 draws (100 others chose the class)",
        "wrong with probability at most 0.001, for each sample by itself",
        "at most 0.005 of the certificates are expected to be wrong",
        "all hold at once with probability at least 0.995",
        "over the root of 64",
    ):
        assert part in text
    assert ctkd(["smooth", str(run), "--samples", "5", "--draws", "200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threat_model"].startswith("L2")
    assert found["curve"][1]["l2_radius"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma", "0"], "sigma=0: must be greater than 0"),
        (["--sigma", "nan"], "sigma=nan: "),
        (["--alpha", "1"], "alpha=1: must be less than 1"),
        (["--alpha", "0"], "alpha=0: must be greater than 0"),
        (["--draws", "0"], "draws=0: must be greater than or equal to 1"),
        (["--radii", "0,x"], "--radii 0,x: 'x' is not a finite number"),
        (["--radii=-1"], "radii.0=-1.0: must be greater than or equal to 0"),
        (["--split", "train"], "split=train: must be 'test' or 'validation'"),
        (["--start", "360"], "start=360, samples=None: the test split has 360 samples"),
        (["--samples", "361"], "start=0, samples=361: the test split has 360 samples"),
        (["--device", "teapot"], "device=teapot: "),
        (["--device", "meta"], "device=meta: "),
        (["--seed", str(2**63)], f"seed={2**63}: must be less than {2**53}"),
        (["--draws", str(10**20)], f"draws={10**20}: must be less than or equal to {10**9}"),
        (["--seed", "-1"], "seed=-1: must be greater than or equal to 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert ctkd(["smooth", str(run), *arguments]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert len(seen.err.splitlines()) == 1
    assert message in seen.err
    assert not (run / "smoothing.sqlite").exists()


def test_a_run_without_noise_needs_a_sigma(run: Path) -> None:
    config = run / "config.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("sigma")]
    config.write_text(
        "\n".join(lines).replace('"noisy-adversarial"', '"ibp"').split("[bound]")[0] + '[bound]\nname = "ibp"\n'
    )
    with pytest.raises(BadInput, match=r"sigma must be given: .* was not trained with noise; write --sigma 0\.25"):
        smooth(run, FEW)
    assert smooth(run, {**FEW, "samples": 2, "sigma": 0.1})["sigma"] == 0.1


@pytest.mark.parametrize("sigma", ["nan", "-0.25", "0", "inf", "true"])
def test_a_sigma_of_the_run_that_is_none_is_refused(run: Path, sigma: str) -> None:
    config = run / "config.toml"
    lines = [f"sigma = {sigma}" if line.startswith("sigma") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))
    with pytest.raises(BadInput, match=r"config\.toml: bound\.sigma=.*: must be"):
        smooth(run, FEW)
    assert not (run / "smoothing.sqlite").exists()


def test_what_is_no_run_or_is_damaged_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        smooth(tmp_path / "nowhere")
    (run / "smoothing.sqlite").write_bytes(b"not a database, but long enough to have a header" * 20)
    with pytest.raises(BadInput, match=r"smoothing\.sqlite is damaged .*; move it away"):
        smooth(run, FEW)
    (run / "smoothing.sqlite").unlink()
    (run / "smoothing.sqlite").mkdir()
    with pytest.raises(BadInput, match=r"smoothing\.sqlite cannot be written"):
        smooth(run, FEW)


def test_radii_are_no_larger_than_the_draws_allow(run: Path) -> None:
    found = smooth(run, {**FEW, "samples": 20, "radii": (0.25 * 3.5,)})
    assert found["curve"][0]["certified_at_l2_radius"] == 0
    assert math.isfinite(found["average_l2_radius"])


def test_samples_that_are_wrong_count_as_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = load_student(run)[1].test.labels
    made = [
        SmoothedCertificate(int(labels[0]), 290, 0.9, 0.4),
        SmoothedCertificate((int(labels[1]) + 1) % 10, 299, 0.97, 0.5),
        SmoothedCertificate(None, 100, 0.3, 0.0),
        SmoothedCertificate(int(labels[3]), 200, 0.6, 0.1),
    ]
    monkeypatch.setattr(ctkd_smoothing.evaluate, "certify_sample", lambda logits, x, sample, **values: made[sample])
    for _ in range(2):  # made, then read
        found = smooth(run, {**FEW, "samples": 4, "radii": (0, 0.1, 0.4, 0.45)})
        assert (found["smoothed_accuracy"], found["abstained"]) == (0.5, 0.25)
        assert found["average_l2_radius"] == pytest.approx(0.5 / 4)
        assert [row["certified_at_l2_radius"] for row in found["curve"]] == [0.5, 0.5, 0.25, 0]
