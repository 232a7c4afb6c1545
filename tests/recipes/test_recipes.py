# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Every recipe says where it comes from, validates, states all that matters itself, and starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctkd import recipes
from ctkd.api import Data, Split
from ctkd.config import RunConfig, resolve
from ctkd.errors import BadInput
from ctkd.interrupt import StopRequest
from ctkd.options import Number
from ctkd.preflight import check_student
from ctkd.progress import Silent
from ctkd.randomness import Noise
from ctkd.teachers.trained import AttackedOptions
from ctkd.teaching import Teacher
from ctkd.train.finish import finalise
from ctkd.train.loop import Plugins, Trainer
from ctkd.train.options import TrainOptions

NAMES = recipes.names()
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "tinyimagenet": (3, 64, 64), "imagenet64": (3, 64, 64)}
CLASSES = {"mnist": 10, "cifar10": 10, "tinyimagenet": 200, "imagenet64": 1000}
ROWS = {
    "ibp": 5,
    "crown-ibp": 5,
    "sabr": 7,
    "taps": 5,
    "staps": 5,
    "cc-ibp": 8,
    "mtl-ibp": 11,
    "exp-ibp": 6,
    "pgd": 5,
    "cc-dist": 4,
    "ad-cert": 3,
}
"""Recipes of each method."""
NARROW = {"model.width": 8, "model.hidden": 64, "train.batch_size": 8}
"""An eighth of the published network."""

Command = Callable[..., tuple[int, str, str]]


def method_of(name: str) -> str:
    return re.sub(r"^[a-z0-9]+-(?:0\.\d|\d-255)-|-ctbench$", "", name)


def narrow(name: str) -> RunConfig:
    whole = resolve(file=recipes.place(name))
    settings: dict[str, Any] = {**NARROW, "certify.samples": 2, "export.samples": 2}
    if whole.taught:
        settings["teacher.batch_size"] = 8
    if whole.train.micro_batch is not None:
        settings["train.micro_batch"] = 5
    return resolve(settings, recipes.place(name))


def data_for(config: RunConfig) -> Data:
    name = config.data.name
    rng = torch.Generator().manual_seed(0)
    splits = [
        Split(torch.rand(8, *SHAPES[name], generator=rng), torch.randint(CLASSES[name], (8,), generator=rng))
        for _ in range(3)
    ]
    return Data(name, *splits, classes=CLASSES[name])


def test_there_is_one_for_every_row() -> None:
    found = [method_of(name) for name in NAMES]
    assert {method: found.count(method) for method in dict.fromkeys(found)} == ROWS
    assert {(r.data, r.eps) for r in map(recipes.load, NAMES)} == {
        ("mnist", "0.1"),
        ("mnist", "0.3"),
        ("cifar10", "2/255"),
        ("cifar10", "8/255"),
        ("tinyimagenet", "1/255"),
        ("imagenet64", "1/255"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_says_where_it_comes_from(name: str) -> None:
    recipe = recipes.load(name)
    header, config = recipe.header, resolve(file=recipes.place(name))
    assert recipe.text.startswith(f"# ctkd train --recipe {name}\n")
    assert name.startswith(f"{recipe.data}-{recipe.eps.replace('/', '-')}-")
    assert recipe.eps in header.title
    assert re.search(r"arXiv \d{4}\.\d{5}", header.paper)
    assert (header.code == "CTBench") == name.endswith("-ctbench")
    assert {"expressive-losses": "last-pass", "CTBench": "clean"}.get(header.code, config.train.statistics) == (
        config.train.statistics
    )
    for figures in header.published:
        assert figures.natural is None or figures.certified is None or figures.certified < figures.natural
    assert (config.bound.name in {method_of(name), "adversarial"}) or config.taught
    # What the project put in place of what nobody published is said.
    assert bool(header.unknown) == (header.code == "ctkd")


@pytest.mark.parametrize("name", NAMES)
def test_no_default_of_ctkd_decides_anything(name: str) -> None:
    """What ctkd ships for a data set, and what it would choose itself, may change; recipes do not."""
    config = resolve(file=recipes.place(name))
    shipped = {key: source for key, source in config.sources.items() if source.startswith("defaults/")}
    assert shipped == {}
    left_out = set(TrainOptions.model_fields) - set(recipes.load(name).tables["train"])
    assert left_out <= {
        "micro_batch",
        "momentum",
        "nesterov",
        "weight_decay",
        "lr_low",
        "lr_rise",
        "lr_cycles",
        "patience",
        "precision",
        "compile",
        "threads",
        "device",
        "checkpoint_seconds",
    }
    tables = recipes.load(name).tables
    searches = bool(tables["attack"].keys() - {"name"})
    assert searches == (config.bound.name not in ("ibp", "crown-ibp", "taps"))
    switched_off = {"attack": {"decay_at", "warm_start"}, "data": {"validation"}}
    for role in ("data", "model", "bound", "distill", *(["attack"] if searches else [])):
        choice = getattr(config, role)
        assert set(type(choice.options).model_fields) - switched_off.get(role, set()) <= set(tables[role])
    if config.taught:
        left_out = set(AttackedOptions.model_fields) - set(tables["teacher"])
        assert left_out == {
            *("model", "seed", "precision", "patience"),
            *("momentum", "nesterov", "weight_decay", "lr_low", "lr_rise", "lr_cycles"),
            *("decay_at", "warm_start"),
        }


def three_steps(run: Trainer, least: int) -> list[list[str]]:
    """A step of natural training, of the ramp and of the full radius; their terms."""
    run._prepare()
    assert run.batch == 8
    before = run.parameters[0].detach().clone()
    train, rows = run.options, torch.arange(8)
    terms = []
    for moment in (0.5 * train.warmup, train.warmup + 0.5 * train.ramp, train.epochs - 1)[least:]:
        run.step = int(moment * run.steps_per_epoch)
        noise = Noise(0, "student-attack", run.step, samples=rows)
        done = run._one_step(run.images[:8], run.labels[:8], noise, rows=rows, measure=False)
        assert not done.flags.any(), [n for n, flag in zip(done.names, done.flags, strict=True) if flag]
        terms.append(sorted(done.loss.terms))
    assert not torch.equal(before, run.parameters[0])
    return terms


@pytest.mark.parametrize("name", NAMES)
def test_it_starts(name: str, tmp_path: Path) -> None:
    config = narrow(name)
    data = data_for(config)
    check_student(config, data, Silent())
    teachers = []
    if config.taught:
        network = finalise(config.model.create().build(data.input_shape, data.classes), data.input_shape)
        teachers = [Teacher((network,))]
    plugins = Plugins(
        config.bound.create(), config.distill.create(), config.attack.create(), config.propagation.create()
    )
    module = config.model.create().build(data.input_shape, data.classes)
    terms = three_steps(
        Trainer(
            "student", "student", module, data, plugins, config.train, teachers, tmp_path, Silent(), StopRequest(), ""
        ),
        0,
    )
    assert any(term.startswith("robust/") for term in terms[-1])
    # A teacher takes part in the end, and only where there is one.
    assert any(term.startswith("distill/") for term in terms[-1]) == config.taught


@pytest.mark.parametrize("name", [name for name in NAMES if resolve(file=recipes.place(name)).taught])
def test_its_teacher_starts(name: str, tmp_path: Path) -> None:
    config = narrow(name)
    data = data_for(config)
    (teacher,) = config.teachers

    class Context:
        eps, seed, threads, device = config.train.eps, 0, None, "cpu"

        def fit(self, train: TrainOptions, attack: Any, bound: Any, model: Any) -> list[list[str]]:
            assert model is None
            options: Any = teacher.options
            for key in ("objective", "steps", "restarts", "step_size", "decay"):
                assert attack[key] == getattr(options, key)
            for key in ("epochs", "ramp", "lr", "lr_decay", "l1", "edac", "attack_eps_factor", "keep"):
                assert getattr(train, key) == getattr(options, key)
            found = resolve({"data.name": config.data.name} | {f"attack.{key}": value for key, value in attack.items()})
            method = resolve({"bound.name": bound["name"]}).bound.create()
            plugins = Plugins(method, config.distill.create(), found.attack.create(), config.propagation.create())
            module = config.model.create().build(data.input_shape, data.classes)
            return three_steps(
                Trainer("teacher", "teacher", module, data, plugins, train, (), tmp_path, Silent(), StopRequest(), ""),
                1,  # it has no natural training
            )

    terms: Any = teacher.create().obtain(Context())
    assert all(any(term.startswith("robust/") for term in each) for each in terms)


# The command line ----------------------------------------------------------------------------------------


def test_they_are_listed(ctkd_command: Command) -> None:
    code, out, _ = ctkd_command("recipes")
    assert code == 0
    assert all(name in out for name in NAMES)
    code, out, _ = ctkd_command("recipes", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert list(listed) == NAMES
    assert listed["cifar10-2-255-mtl-ibp"]["published"][0] | {"source": ""} == {
        "natural": 80.11,
        "certified": 63.24,
        "verifier": "OVAL branch and bound, 1800 s an image",
        "source": "",
    }


def test_one_is_shown(ctkd_command: Command) -> None:
    code, out, _ = ctkd_command("recipes", "show", "cifar10-8-255-cc-dist")
    assert code == 0
    assert "run by ctkd: no" in out
    assert "not known: Alpha and L1 of this row were not found" in out
    assert tomllib.loads(out[out.index("[data]") :])["bound"]["alpha"] == 0.5
    code, out, _ = ctkd_command("recipes", "show", "cifar10-8-255-cc-dist", "--json")
    assert json.loads(out)["config"]["distill"]["weight"] == 5.0


def test_a_copy_is_a_configuration(ctkd_command: Command, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    code, out, _ = ctkd_command("recipes", "copy", "mnist-0.3-taps-ctbench", str(file))
    assert code == 0
    assert f"ctkd train --config {file}" in out
    assert resolve(file=file).tables() == resolve(file=recipes.place("mnist-0.3-taps-ctbench")).tables()
    code, _, err = ctkd_command("recipes", "copy", "mnist-0.3-taps-ctbench", str(file))
    assert (code, err) == (2, f"error: {file} exists already; name another file\n")
    code, _, err = ctkd_command("recipes", "copy", "mnist-0.3-taps-ctbench", str(tmp_path / "no" / "my.toml"))
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'no' / 'my.toml'}: there is no folder")


def test_flags_override_a_recipe(ctkd_command: Command) -> None:
    arguments = ("train", "--recipe", "mnist-0.1-cc-ibp", "--seed", "3", "--set", "bound.alpha=0.2", "--print-config")
    code, out, _ = ctkd_command(*arguments)
    assert code == 0
    shown = tomllib.loads(out)
    assert (shown["train"]["seed"], shown["bound"]["alpha"], shown["train"]["lr"]) == (3, 0.2, 5e-4)
    assert re.search(r"lr = 0.0005 +# recipe mnist-0.1-cc-ibp", out)
    code, out, _ = ctkd_command("cite", "--recipe", "mnist-0.3-pgd-ctbench")
    assert code == 0
    assert "Generating Less Certain Adversarial Examples" in out


def test_a_shorter_training_keeps_its_shape(tmp_path: Path) -> None:
    place = recipes.place("cifar10-2-255-mtl-ibp-ctbench")
    train = resolve({"train.epochs": 16}, place).train
    assert (train.warmup, train.ramp, train.milestones, train.average_from) == (0.1, 8.0, (12.0, 14.0), 15.0)
    assert resolve({"train.epochs": 16, "train.ramp": 3}, place).train.ramp == 3
    assert resolve({"train.epochs": 7}, recipes.place("mnist-0.1-cc-ibp")).train.average_from is None
    file = tmp_path / "my.toml"
    file.write_text("[train]\nwarmup = 3\nramp = 4\n")  # without a length of its own it means what it says
    assert resolve({"train.epochs": 10}, file).train.warmup == 3
    file.write_text('[train]\nepochs = 20\nwarmup = "a"\nmilestones = ["1/2"]\n')
    with pytest.raises(BadInput, match=r"train.warmup=a: 'a' is not a finite number") as caught:
        resolve({"train.epochs": 10}, file)
    assert len(caught.value.messages) == 1
    file.write_text("[train]\nepochs = 0\nwarmup = 1\n")
    assert resolve({"train.epochs": 60}, file).train.warmup == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "--recipe", "cifar10-2-255-ccibp"),
            f"no recipe 'cifar10-2-255-ccibp': did you mean 'cifar10-2-255-cc-ibp', .* lists all {len(NAMES)}",
        ),
        (
            ("train", "--recipe", "mnist-0.1-cc-ibp", "--dataset", "cifar10"),
            r"data.shift is not an option: accepted: crop, .* \(recipe mnist-0.1-cc-ibp sets it\)",
        ),
        (("recipes", "show", "zzz"), f"no recipe 'zzz': `ctkd recipes` lists all {len(NAMES)}"),
        (("recipes", "copy", "../header", "x.toml"), "no recipe '../header': "),
        (
            ("train", "--recipe", "mnist-0.1-cc-ibp", "--config", "my.toml"),
            "--recipe and --config are both a whole configuration; give one of them",
        ),
        (
            ("train", "--recipe", "mnist-0.1-cc-ibp", "--resume", "runs/x"),
            "--resume takes everything from the run's own configuration; leave out the other options",
        ),
        (
            ("train", "--recipe", "imagenet64-1-255-cc-ibp"),
            "data set 'imagenet64' is not downloaded: ",
        ),
    ],
)
def test_bad_input_is_one_line(ctkd_command: Command, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = ctkd_command(*arguments)
    assert (code, out) == (2, "")
    assert re.match(f"error: {message}", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["tinyimagenet-1-255-mtl-ibp", "cifar10-2-255-mtl-ibp", "mnist-0.1-mtl-ibp"])
def test_data_that_are_not_there(
    ctkd_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = ctkd_command("train", "--recipe", name, "--data-dir", "empty")
    assert (code, out) == (2, "")
    assert all(line.startswith(f"error: data set {name.split('-')[0]!r}") for line in err.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_header_may_not_say_just_anything(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    text = recipes.load("mnist-0.1-cc-ibp").text
    file.write_text(text.replace('method = "CC-IBP"', 'methods = "CC-IBP"').replace('code = "exp', 'code = "imp'))
    with pytest.raises(BadInput) as caught:
        resolve(file=file)
    assert sorted(caught.value.messages) == [
        "recipe.code=impressive-losses: must be 'expressive-losses', 'CTBench' or 'ctkd'",
        "recipe.method must be given",
        "recipe.methods is not an option: did you mean 'method'? accepted: code, differences, method, paper, "
        "published, rerun, settings, title, unknown",
    ]


def test_listing_needs_no_torch() -> None:
    code = "import sys; from ctkd.cli.main import run; run(['recipes', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_eps_is_a_number_of_the_field() -> None:
    from pydantic import TypeAdapter

    assert all(0 < TypeAdapter(Number).validate_python(recipes.load(name).eps) <= 0.3 for name in NAMES)
