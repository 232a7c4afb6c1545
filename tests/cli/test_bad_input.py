# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every mistake is answered by exit code 2 and one clear line on standard error, and nothing is half-written."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ctkd.certify.store import Store
from ctkd.run import train

Command = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], *lines: str) -> None:
    """Exit code 2, nothing on standard output, exactly these lines (as parts) on standard error."""
    code, out, err = result
    printed = err.splitlines()
    assert code == 2, (code, err)
    assert out == ""
    assert len(printed) == len(lines), err
    for line, part in zip(printed, lines, strict=True):
        assert line.startswith("error: ")
        assert part in line
    assert "Traceback" not in err
    assert "Usage" not in err


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; it must stay empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--eps", "8"], "train.eps=8: outside [0, 1]; radii are in raw pixel units, did you mean 8/255?"),
        (["--eps", "-0.1"], "train.eps=-0.1: outside [0, 1]; radii are in raw pixel units"),
        (["--eps", "two"], "train.eps=two: 'two' is not a finite number; write 0.1 or 8/255"),
        (["--eps", "nan"], "train.eps=nan"),
        (["--bound", "crown_ibp"], "bound 'crown_ibp' is not known: did you mean 'crown-ibp'? accepted: adversarial, "),
        (["--teacher", "pdg"], "teacher 'pdg' is not known: did you mean 'pgd'?"),
        (["--dataset", "mnits"], "data 'mnits' is not known: did you mean 'mnist'?"),
        (["--model", "cnn-smal"], "model 'cnn-smal' is not known: did you mean 'cnn-small'?"),
        (["--distill", "feature"], "distill 'feature' is not known: did you mean 'features'?"),
        (["--set", "bound.alpa=1", "--bound", "cc-ibp"], "bound.alpa is not an option: did you mean 'alpha'?"),
        (["--set", "trian.seed=1"], "trian.seed: no section 'trian': did you mean 'train'?"),
        (["--set", "train.seeds=1"], "train.seeds is not an option: did you mean 'seed'?"),
        (["--set", "bound"], "--set bound: write section.key=value"),
        (["--bound", "cc-ibp", "--set", "bound.name=ibp"], "bound.name is cc-ibp by its flag and ibp by --set"),
        (["--set", "train.milestones=5"], "train.milestones=5: must be a list, such as [5]"),
        (["--bound", "cc-ibp", "--set", "bound.alpha=3"], "bound.alpha=3: must be less than or equal to 1"),
        (["--set", "train.batch_size=0"], "train.batch_size=0: must be greater than or equal to 1"),
        (["--set", "train.ramp=100"], "warmup + ramp"),
        (["--set", "certify.stages=['ibp', 'crwn']"], "certify.stages 'crwn' is not known: did you mean 'crown'?"),
        (["--device", "nonsense"], "train.device=nonsense"),
        (
            ["--teacher", "none", "--distill", "features"],
            "distill.name=features needs a teacher, and teacher.name=none",
        ),
        (
            ["--bound", "cc-ibp", "--distill", "logits"],
            "distill.name=logits reads point enclosures, but bound.name=cc-ibp",
        ),
        (["--teacher", "file"], "teacher.path must be given"),
        (["--model", "cnn-small", "--set", "model.channels=x"], "model.channels=x: must be a valid integer"),
        (["--sed", "1"], "No such option '--sed'"),
        (["--epochs", "many"], "'many' is not a valid integer"),
        (["--config", "absent.toml"], "config file absent.toml cannot be read: No such file or directory"),
    ],
)
def test_one_mistake_one_line(ctkd_command: Command, empty: Path, arguments: list[str], line: str) -> None:
    refused(ctkd_command("train", *arguments), line)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("data.dir=5", "data.dir=5: must be the path of a folder"),
        ("train.threads=100000", "train.threads=100000: must be less than or equal to 1024"),
        ("train.eps=true", "train.eps=True: must be a number, not true or false"),
        ("train.seed=true", "train.seed=True: must be an integer, not true or false"),
        ("certify.stages=[]", "certify.stages=[]: Value should have at least 1 item"),
        ("train.device='meta'", "train.device=meta: accepted: cpu, cuda, cuda:N"),
        ("export.samples=9999", "export.samples=9999: the test split has 360 samples"),
    ],
)
def test_odd_values(ctkd_command: Command, empty: Path, setting: str, line: str) -> None:
    refused(ctkd_command("train", "--set", setting), line)
    assert list(empty.iterdir()) == []


def test_arguments_that_cannot_be_printed(ctkd_command: Command, empty: Path) -> None:
    for name in ("\udcff", "new\nline"):
        refused(ctkd_command("train", "--out", name), "has characters that cannot be printed")
    assert list(empty.iterdir()) == []


def test_damaged_small_files(ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]) -> None:
    for name in ("run.json", "summary.json"):
        run = tmp_path / name
        shutil.copytree(quick_run[0], run)
        (run / name).write_text("{")
        arguments = ["--out" if name == "run.json" else "--resume", str(run)]
        refused(ctkd_command("train", *arguments), f"{run / name} is damaged: it is not JSON")


def test_an_empty_folder_of_the_users_stays(ctkd_command: Command, empty: Path) -> None:
    (empty / "mine").mkdir()
    (empty / "t.safetensors").write_text("rubbish")
    arguments = file_teacher(Path("t.safetensors"))
    arguments[arguments.index("run")] = "mine"
    refused(ctkd_command(*arguments), "t.safetensors is not a safetensors file")
    assert list((empty / "mine").iterdir()) == []


def test_several_mistakes_are_reported_together(ctkd_command: Command, empty: Path) -> None:
    result = ctkd_command("train", "--eps", "8", "--bound", "cc-ibp", "--set", "bound.alpha=3", "--set", "train.sed=1")
    refused(result, "bound.alpha=3", "train.eps=8", "train.sed is not an option")


def test_config_file_mistakes(ctkd_command: Command, empty: Path) -> None:
    (empty / "a.toml").write_text("[bound]\nname = 'cc-ibp'\nalpha = 3\n[trian]\nseed = 1\n")
    refused(
        ctkd_command("train", "--config", "a.toml", "--set", "train.epochs=-1"),
        "no section 'trian'",
        "bound.alpha=3: must be less than or equal to 1 (a.toml sets it)",
        "train.epochs=-1: must be greater than or equal to 1",
    )
    (empty / "b.toml").write_text("[bound\n")
    refused(ctkd_command("train", "--config", "b.toml"), "config file b.toml is not TOML")
    assert sorted(p.name for p in empty.iterdir()) == ["a.toml", "b.toml"]


def test_unknown_command(ctkd_command: Command) -> None:
    refused(ctkd_command("trian"), "no command 'trian': did you mean 'train'?")


# Data ----------------------------------------------------------------------------------------------------


def test_missing_data_names_the_data_set_and_the_folder(ctkd_command: Command, empty: Path) -> None:
    code, _, err = ctkd_command("train", "--dataset", "mnist", "--data-dir", "nowhere")
    assert code == 2
    assert len(err.splitlines()) == 4
    first = "data set 'mnist': train-images-idx3-ubyte.gz is missing; looked in nowhere/MNIST/raw and nowhere"
    assert first in err.splitlines()[0]
    assert list(empty.iterdir()) == []


def test_truncated_and_wrong_data_files(ctkd_command: Command, empty: Path) -> None:
    import gzip

    raw = empty / "MNIST" / "raw"
    raw.mkdir(parents=True)
    whole = gzip.compress(bytes(1000))
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(whole)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(whole[:-9])
    code, _, err = ctkd_command("train", "--dataset", "mnist", "--data-dir", str(empty))
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 4
    assert f"data set 'mnist': {raw / 'train-images-idx3-ubyte.gz'} is truncated or damaged" in lines[0]
    assert f"data set 'mnist': {raw / 'train-labels-idx1-ubyte.gz'} has the wrong checksum" in lines[1]
    assert not (empty / "runs").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x, y: (x, y + 9), "data set 'digits', train split: labels must lie in 0..9, found 9 to 18"),
        (lambda x, y: (x, y - 1), "data set 'digits', train split: labels must lie in 0..9, found -1 to 8"),
        (lambda x, y: (x * 16, y), "pixels must lie in [0, 1], found 0 to 16; divide 8-bit images by 255"),
        (lambda x, y: (x - 0.5, y), "pixels must lie in [0, 1], found -0.5 to 0.5"),
        (lambda x, y: (x * torch.nan, y), "data set 'digits', train split: some pixels are NaN or infinite"),
    ],
)
def test_unusable_data(
    ctkd_command: Command, empty: Path, monkeypatch: pytest.MonkeyPatch, change: Any, line: str
) -> None:
    from dataclasses import replace

    from ctkd.api import Split
    from ctkd.data.digits import Digits

    good = Digits.load

    def bad(self: Digits, data_dir: Path | None) -> Any:
        data = good(self, data_dir)
        return replace(data, train=Split(*change(data.train.images, data.train.labels)))

    monkeypatch.setattr(Digits, "load", bad)
    refused(ctkd_command("train"), line)
    assert list(empty.iterdir()) == []


# Teachers ------------------------------------------------------------------------------------------------


def file_teacher(path: Path, **settings: str) -> list[str]:
    sets = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    return ["train", "--teacher", "file", "--set", f"teacher.path={path}", "--epochs", "1", "--out", "run", *sets]


def test_teacher_weights_that_are_another_pickle(ctkd_command: Command, empty: Path) -> None:
    (empty / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    refused(ctkd_command(*file_teacher(Path("plain.pkl"))), "plain.pkl is not a PyTorch checkpoint, or is damaged")
    assert not (empty / "run").exists()


def test_teacher_file_that_is_not_safetensors(ctkd_command: Command, empty: Path) -> None:
    (empty / "t.safetensors").write_text("hello, this is not a network")
    refused(
        ctkd_command(*file_teacher(Path("t.safetensors"))), "t.safetensors is not a safetensors file, or is damaged"
    )
    refused(ctkd_command(*file_teacher(Path("absent"))), "absent cannot be read: No such file or directory")
    assert not (empty / "run").exists()


def test_teacher_for_another_architecture(ctkd_command: Command, empty: Path) -> None:
    save_file({"a": torch.zeros(2)}, empty / "t.safetensors")
    refused(ctkd_command(*file_teacher(Path("t.safetensors"))), "the weights are for another architecture")
    assert not (empty / "run").exists()


@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((1, 8, 8), 7)])
def test_teacher_for_other_inputs_or_classes(
    ctkd_command: Command, empty: Path, shape: tuple[int, ...], classes: int
) -> None:
    from ctkd.plugins import create_from
    from ctkd.train.finish import finalise

    module = create_from("model", {"name": "cnn-small"}).build(shape, classes)
    finalise(module, shape).save(empty / "t.safetensors")
    refused(
        ctkd_command(*file_teacher(Path("t.safetensors"))), f"takes inputs of shape {shape} and has {classes} classes"
    )
    assert not (empty / "run").exists()


def test_teacher_at_chance_level(ctkd_command: Command, empty: Path) -> None:
    from ctkd.plugins import create_from
    from ctkd.train.finish import finalise

    torch.manual_seed(0)
    module = create_from("model", {"name": "cnn-small"}).build((1, 8, 8), 10)
    finalise(module, (1, 8, 8)).save(empty / "t.safetensors")
    code, out, err = ctkd_command(*file_teacher(Path("t.safetensors")))
    assert (code, out) == (2, "")
    assert "teacher 'file' is at chance level" in err.splitlines()[-1]
    assert not (empty / "run").exists()


def test_teacher_with_features_of_another_width(ctkd_command: Command, empty: Path) -> None:
    from ctkd.plugins import create_from
    from ctkd.train.finish import finalise

    module = create_from("model", {"name": "mlp", "widths": (20,)}).build((1, 8, 8), 10)
    finalise(module, (1, 8, 8)).save(empty / "t.safetensors")
    refused(ctkd_command(*file_teacher(Path("t.safetensors"))), "100 features of the student with 20 of the teacher")


# Run folders ---------------------------------------------------------------------------------------------


def test_folder_of_another_run(ctkd_command: Command, quick_run: tuple[Path, Any]) -> None:
    before = sorted(p.name for p in quick_run[0].iterdir())
    refused(ctkd_command("train", "--out", str(quick_run[0])), f"{quick_run[0]} already holds a run of")
    assert sorted(p.name for p in quick_run[0].iterdir()) == before


def test_folder_with_something_else(ctkd_command: Command, empty: Path) -> None:
    (empty / "mine").mkdir()
    (empty / "mine" / "thesis.tex").write_text("x")
    refused(ctkd_command("train", "--out", "mine"), "mine exists and is not empty")
    assert [p.name for p in (empty / "mine").iterdir()] == ["thesis.tex"]


def test_not_a_run(ctkd_command: Command, empty: Path) -> None:
    refused(ctkd_command("certify", "absent"), "absent does not exist; name a folder that `ctkd train` made")
    refused(ctkd_command("train", "--resume", str(empty)), "is not a run folder (it has no run.json)")
    refused(ctkd_command("export", "absent", "x"), "absent does not exist")
    refused(ctkd_command("report", "absent"), "absent does not exist")


def test_a_file_in_the_place_of_a_folder(ctkd_command: Command, empty: Path) -> None:
    (empty / "notes.md").write_text("x")
    refused(ctkd_command("certify", "notes.md"), "notes.md is neither a run folder nor an ONNX model, MODEL.onnx")
    refused(ctkd_command("export", "notes.md", "x"), "notes.md is a file; name a folder that `ctkd train` made")
    refused(
        ctkd_command("train", "--dataset", "./notes.md", "--eps", "0.1"),
        "notes.md: is a file, not a folder of images",
    )


def test_resume_takes_no_other_options(ctkd_command: Command, quick_run: tuple[Path, Any]) -> None:
    refused(
        ctkd_command("train", "--resume", str(quick_run[0]), "--eps", "0.2"), "--resume takes everything from the run"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of this platform differ")
def test_read_only_folder(tmp_path: Path) -> None:
    """In a process without the right to write: root may write everywhere, so it steps down first."""
    target = tmp_path / "read-only"
    target.mkdir(mode=0o555)
    script = (
        "import os, sys\n"
        "from ctkd.runfolder import RunFolder\n"
        "from ctkd.errors import BadInput\n"
        "from pathlib import Path\n"
        "if os.geteuid() == 0:\n"
        "    os.chmod(sys.argv[1], 0o555); os.setuid(65534)\n"
        "try:\n"
        "    RunFolder.create(Path(sys.argv[1]) / 'run', 'x')\n"
        "except BadInput as error:\n"
        "    print(error); sys.exit(2)\n"
    )
    for parent in (*target.parents[:-2],):
        parent.chmod(parent.stat().st_mode | 0o055)
    result = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (2, f"{target / 'run'} cannot be written: Permission denied")


def test_a_damaged_student_is_refused(ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick_run[0], run)
    path = run / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x40
    path.write_bytes(data)
    refused(ctkd_command("certify", str(run)), f"{path}: the weights do not match their checksum")


def test_a_full_disk_is_named(
    ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_run: tuple[Path, Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick_run[0], run)
    (run / "summary.json").unlink()

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ctkd.storage.os.fsync", full)
    code, _, err = ctkd_command("train", "--resume", str(run))
    *_, line = err.splitlines()
    assert code == 1
    assert line.startswith(f"error: {run}/")
    assert "No space left on device; what was stored before is kept" in line
    assert line.endswith(f"Go on with: ctkd train --resume {run}")
    monkeypatch.undo()
    assert ctkd_command("train", "--resume", str(run))[0] == 0


def test_results_that_cannot_be_written_or_read(
    ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick_run[0], run)
    connect = sqlite3.connect

    def read_only(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA query_only = ON")
        return connection

    monkeypatch.setattr("ctkd.certify.store.sqlite3.connect", read_only)
    code, _, err = ctkd_command("certify", str(run), "--eps", "0.03", "--samples", "3")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "error: results could not be written (attempt to write a readonly database); what was stored before" in err
    monkeypatch.undo()
    monkeypatch.setattr(Store, "rows", lambda *ignored: connect(":memory:").execute("SELECT * FROM gone"))
    code, _, err = ctkd_command("certify", str(run), "--samples", "3")
    assert (code, err) == (
        1,
        "error: a results file cannot be used: no such table: gone; what is stored is left as it is\n",
    )


def test_export_into_a_used_folder(ctkd_command: Command, tmp_path: Path, quick_run: tuple[Path, Any]) -> None:
    (tmp_path / "x").write_text("mine")
    code, out, err = ctkd_command("export", str(quick_run[0]), str(tmp_path))
    assert (code, out) == (2, "")
    assert str(tmp_path) in err
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_check_refuses_with_the_layers_path(
    ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def good(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def bad(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.GELU())\n"
        "def other(): return 3\n"
        "def leaves(): import sys; sys.exit(0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ctkd_command("check", "mynets:good", "--input", "1,8,8")[0] == 0
    refused(
        ctkd_command("check", "mynets:bad", "--input", "1,8,8"), "layer '2': GELU is not supported", "supported: Linear"
    )
    refused(ctkd_command("check", "mynets:other"), "mynets:other must return a torch.nn.Module, found int")
    refused(ctkd_command("check", "mynets:leaves"), "mynets:leaves cannot be used: SystemExit")
    refused(ctkd_command("check", "cnn-small", "--input", "1,1000000,1000000"), "cnn-small cannot be built for inputs")
    refused(ctkd_command("check", "absent_module:x"), "absent_module:x cannot be used: ModuleNotFoundError")
    refused(ctkd_command("check", "cnn-small", "--input", "1;8"), "write sizes such as 1,28,28")
    refused(ctkd_command("check", "cnn-small", "--input", "1,2,2"), "at least 4x4 pixels")


def test_images_of_a_folder_are_not_needed_to_list_options(ctkd_command: Command) -> None:
    code, out, _ = ctkd_command("plugins", "show", "cc-ibp")
    assert code == 0
    assert "alpha = 0.5" in out


def test_python_api_raises_the_same_error(tmp_path: Path) -> None:
    from ctkd.errors import BadInput

    with pytest.raises(BadInput, match="did you mean 8/255"):
        train(settings={"train.eps": 8}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_samples_than_there_are_is_refused_before_training(ctkd_command: Command, empty: Path) -> None:
    refused(ctkd_command("train", "--set", "certify.samples=361"), "the test split has 360 samples")
    assert list(empty.iterdir()) == []


def test_a_full_disk_is_one_line(
    ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_run: tuple[Path, Any]
) -> None:
    import errno

    import ctkd.train.checkpoint as checkpoint

    def full(path: Path, *rest: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    code, out, err = ctkd_command("train", "--teacher", "none", "--epochs", "1", "--out", str(tmp_path / "run"))
    assert (code, out) == (1, "")
    assert (
        "checkpoint-next.safetensors: No space left on device; what was stored before is kept" in err.splitlines()[-1]
    )
    assert "Traceback" not in err
