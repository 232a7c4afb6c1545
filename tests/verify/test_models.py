# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd verify MODEL.onnx --dataset``: the samples of a data set, in the store of ``ctkd certify MODEL.onnx``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctkd.data.digits import Digits
from ctkd.foreign import certify_model
from ctkd.options import Options
from ctkd.verify import asking

Verify = Callable[..., tuple[int, Any, str]]
EPS = 0.1
SAMPLES = 30
SETTINGS = {"certify.samples": SAMPLES, "certify.attack_steps": 5, "certify.attack_restarts": 1}
SETTINGS["certify.stages"] = ["ibp"]  # type: ignore[assignment]
ON_DIGITS = ("--dataset", "digits", "--eps", EPS, "--samples", SAMPLES)


@pytest.fixture
def model(quick_run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ONNX classifier of digits; the working directory is its folder."""
    (found,) = (quick_run[0] / "export" / "onnx").glob("*.onnx")
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(found, "net.onnx"))


@pytest.fixture
def credulous(monkeypatch: pytest.MonkeyPatch) -> None:
    """No claim of ``verified`` is tried at corners: the honest fakes are no provers."""
    monkeypatch.setattr(asking, "challenge", lambda *ignored: None)


def test_what_the_stages_left_open_is_decided_by_another_verifier(model: Path, verify: Verify) -> None:
    """For real: the verifier is ctkd's own complete stage, which no fake helps."""
    (known,) = certify_model(model, [EPS], settings=SETTINGS)
    assert known["counts"]["undecided"] > 0
    sets = ("--set", 'ctkd.stages=[{name="complete",timeout=1000,nodes=30}]', "--set", "ctkd.attack_restarts=1")
    code, found, _ = verify(model, "--verifier", "ctkd", *ON_DIGITS, "--timeout", 600, *sets)
    assert code == 0
    assert found["asked"] == found["instances"] == known["counts"]["undecided"]
    assert Path(found["results"]) == Path(known["folder"]) / "certification.sqlite"
    assert found["verified"] > 0
    assert found["counts"]["certified"] == known["counts"]["certified"] + found["verified"]
    assert found["counts"]["broken"] == known["counts"]["broken"] + found["falsified"]
    assert (found["eps"], found["split"], found["samples"]) == (EPS, "test", SAMPLES)


@pytest.mark.usefixtures("credulous")
def test_the_same_command_goes_on_and_so_does_that_about_the_folder(model: Path, verify: Verify) -> None:
    (known,) = certify_model(model, [EPS], settings=SETTINGS)
    code, part, _ = verify(model, "--verifier", "Honest", *ON_DIGITS, "--shard", "1/2")
    assert (code, part["asked"]) == (0, -(-known["counts"]["undecided"] // 2))
    code, rest, _ = verify(model, "--verifier", "Honest", *ON_DIGITS)
    assert (code, part["asked"] + rest["asked"]) == (0, known["counts"]["undecided"])
    code, folder, _ = verify(known["folder"], "--verifier", "Honest", "--samples", SAMPLES)
    assert (code, folder["asked"]) == (0, 0)
    assert folder["counts"] == rest["counts"]


@pytest.mark.usefixtures("credulous")
def test_all_samples_need_no_certification_before(model: Path, verify: Verify) -> None:
    """Its results come to stand beside these, and are held against them."""
    code, found, _ = verify(model, "--verifier", "Honest", *ON_DIGITS, "--all")
    assert (code, found["asked"]) == (0, found["instances"])
    (known,) = certify_model(model, [EPS], settings=SETTINGS)
    assert Path(found["results"]).parent == Path(known["folder"])
    assert found["instances"] == round(SAMPLES * known["natural_accuracy"])
    code, none, err = verify(model, "--verifier", "Honest", *ON_DIGITS, "--all")
    assert (code, none) == (3, None)  # the honest one says verified where the attack has found a point
    assert "Honest (fake 1.0, fakes 1.0) says verified, and ctkd's 'attack'" in err
    assert list((Path(known["folder"]) / "contradictions").iterdir())


@pytest.mark.usefixtures("credulous")
def test_another_results_file_leaves_the_folder_alone(model: Path, verify: Verify) -> None:
    code, found, _ = verify(model, "--verifier", "Honest", *ON_DIGITS, "--all", "--out", "mine.sqlite")
    assert (code, found["results"]) == (0, "mine.sqlite")
    assert sorted(path.name for path in Path().iterdir()) == ["mine.sqlite", "net.onnx"]


@pytest.mark.usefixtures("credulous")
def test_an_image_that_comes_twice_is_asked_about_once_and_counted_twice(
    model: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = Digits(Options()).load(None).test
    images, labels = test.images[:100].numpy(), test.labels[:100].numpy()
    chosen = [0, 1, 0, 1, 2, 3]
    np.savez("twice.npz", x_train=images, y_train=labels, x_test=images[chosen], y_test=labels[chosen])
    code, found, _ = verify(model, "--verifier", "Honest", "--dataset", "twice.npz", "--eps", 0.01, "--all")
    assert (code, found["asked"], found["samples"]) == (0, 3, 6)  # one of those that come twice is misclassified
    assert found["counts"] == {"certified": 4, "broken": 2, "undecided": 0}
    # The folder knows model and data from wherever it is asked about.
    folder = Path(found["results"]).resolve().parent
    (model.resolve().parent / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    code, again, _ = verify(folder, "--verifier", "Honest", "--all")
    assert (code, again["asked"], again["counts"]) == (0, 0, found["counts"])


def test_what_the_latest_certification_was_about_stays(model: Path, verify: Verify) -> None:
    (known,) = certify_model(model, [EPS], settings=SETTINGS)
    before = (Path(known["folder"]) / "model.json").read_bytes()
    verify(model, "--verifier", "Honest", "--eps", "0.02", "--samples", 2, "--all")
    assert (Path(known["folder"]) / "model.json").read_bytes() == before


@pytest.mark.usefixtures("credulous")
def test_what_is_missing_is_said_as_a_command_that_makes_it(
    model: Path, verify: Verify, ctkd_command: Callable[..., Any]
) -> None:
    code, _, err = verify(model, "--verifier", "Honest", "--eps", "2/255", "--samples", 3)
    assert code == 2
    assert not Path("runs").exists()
    hint = "ctkd certify net.onnx --dataset digits --eps 0.00784313725490196"
    assert f"has no results of ctkd certify for these samples at eps=0.00784314: run `{hint}` with the same" in err
    assert ctkd_command(*hint.split()[1:], "--samples", "3", "--set", "certify.attack_steps=2")[0] == 0
    assert verify(model, "--verifier", "Honest", "--eps", "2/255", "--samples", 3)[0] == 0
    # The folder of a model is no run: its hint names the model.
    (folder,) = Path("runs").iterdir()
    code, _, err = verify(folder, "--verifier", "Honest", "--eps", "0.3", "--samples", 3)
    assert code == 2
    found = json.loads((folder / "model.json").read_text())["model"]
    hint = f"ctkd certify {found} --dataset digits --eps 0.3 --out {folder}"
    assert f"`{hint}`" in err
    assert ctkd_command(*hint.split()[1:], "--samples", "3", "--set", "certify.attack_steps=2")[0] == 0
    assert verify(folder, "--verifier", "Honest", "--eps", "0.3", "--samples", 3)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "digits"], "eps must be given for an ONNX model"),
        (["--all"], "eps must be given for an ONNX model"),
        (["--dataset", "digits", "--eps", "8"], "eps=8: outside [0, 1]"),
        (["--dataset", "nothing", "--eps", "0.1"], "data 'nothing' is not known"),
        (["--eps", "0.1", "--start", "9999", "--all"], "the test split has 360 samples"),
        (["--eps", "0.1", "--spec", "x.vnnlib"], "is no run: --eps, --all"),
        (["--dataset", "digits", "--spec", "x.vnnlib"], "are for runs, or an ONNX file alone"),
    ],
)
def test_mistakes(model: Path, verify: Verify, arguments: list[str], words: str) -> None:
    code, _, err = verify(model, "--verifier", "Honest", *arguments)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


def test_only_models_take_a_data_set(
    model: Path, verify: Verify, bench: Path, quick_run: tuple[Path, dict[str, Any]]
) -> None:
    for path, words in (
        (quick_run[0], "is a run, which has a data set of its own; leave out --dataset"),
        (bench, "is no run: --eps"),
        (bench / "instances.csv", "is no run: --eps"),
        ("gone.onnx", "gone.onnx does not exist; name a run"),
    ):
        code, _, err = verify(path, "--verifier", "Honest", "--dataset", "digits")
        assert code == 2
        assert words in err
    Path("bad.onnx").write_bytes(b"nonsense")
    code, _, err = verify("bad.onnx", "--verifier", "Honest", "--eps", "0.1", "--all")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "bad.onnx" in err
