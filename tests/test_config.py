# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Merging and validation of configurations, and every shipped file of defaults."""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from pathlib import Path

import pytest

from ctkd.config import ROLES, SECTIONS, dump, resolve
from ctkd.errors import BadInput
from ctkd.plugins import create, options_class, registry

SHIPPED = [f for f in importlib.resources.files("ctkd.defaults").iterdir() if f.name.endswith(".toml")]


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nlr = 0.25\nbatch_size = 17\n[bound]\nname = 'cc-ibp'\nalpha = 0.1\n")
    config = resolve({"train.lr": 0.5}, file)
    assert (config.train.lr, config.train.batch_size) == (0.5, 17)
    assert config.bound.options.model_dump() == {"alpha": 0.1}
    assert resolve({}).train.batch_size == 64


def test_a_bare_call_is_the_main_job() -> None:
    config = resolve({})
    names = {role: table["name"] for role, table in config.tables().items() if role in ROLES}
    assert names["data"] == "digits"
    assert (names["bound"], names["teacher"], names["distill"]) == ("crown-ibp", "pgd", "features")
    assert config.train.eps == 0.1


def test_without_a_teacher_there_is_nothing_to_distil() -> None:
    assert resolve({"teacher.name": "none"}).distill.name == "none"


def test_other_epochs_keep_the_shape_of_the_schedule() -> None:
    usual = resolve({})
    half = resolve({"train.epochs": usual.train.epochs // 2})
    assert half.train.ramp == pytest.approx(usual.train.ramp / 2)
    assert half.train.milestones == pytest.approx(tuple(m / 2 for m in usual.train.milestones))
    assert resolve({"train.epochs": 20, "train.ramp": 3}).train.ramp == 3


def test_defaults_for_a_radius_do_not_leak_into_another() -> None:
    assert resolve({"train.eps": 0.2}).train.batch_size == 256
    assert resolve({"train.eps": "1/10"}).train.batch_size == 64


def test_a_recipe_applies_only_to_its_bound_method() -> None:
    base = {"data.name": "mnist", "train.eps": 0.1}
    assert resolve({**base, "bound.name": "cc-ibp"}).attack.options.model_dump()["steps"] == 1
    assert resolve({**base, "bound.name": "adversarial"}).attack.options.model_dump()["steps"] == 8


def test_the_dumped_configuration_resolves_to_itself(tmp_path: Path) -> None:
    config = resolve({"bound.name": "mtl-ibp", "distill.name": "logits", "train.epochs": 7, "train.threads": 2})
    file = tmp_path / "c.toml"
    file.write_text(dump(config))
    assert resolve({}, file).tables() == config.tables()
    assert tomllib.loads(dump(config, sources=True)) == config.tables()


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.name)
def test_every_shipped_file_is_valid_with_every_plugin_it_names(file: Path) -> None:
    tables = tomllib.loads(file.read_text())
    stem = file.name.removesuffix(".toml")
    dataset, _, radius = (stem, "", "") if stem in registry().names("dataset") else stem.rpartition("-")
    base = {"data.name": dataset, **({"train.eps": radius.replace("_", "/")} if radius else {})}
    if not radius and "eps" not in tables.get("train", {}):
        base["train.eps"] = "1/255"  # no radius is usual for these data
    config = resolve(base)
    for role, table in tables.items():
        if role == "recipe":
            for bound, roles in table.items():
                own = resolve({**base, "bound.name": bound}).tables()
                for part, options in roles.items():
                    assert own[part].items() >= options.items()
            continue
        assert role in {**ROLES, **SECTIONS}
        for key, value in table.items():
            if isinstance(value, dict):
                own = resolve({**base, f"{role}.name": key})
                for option, content in value.items():
                    assert own.tables()[role][option] == content
            elif key != "name":
                assert config.tables()[role][key] == value


@pytest.mark.parametrize("bound", registry().names("bound"))
@pytest.mark.parametrize("distill", registry().names("distill"))
def test_every_pair_works_or_is_refused_with_a_reason(bound: str, distill: str) -> None:
    found = {kind: registry().find(kind, name) for kind, name in (("bound", bound), ("distill", distill))}
    method, objective = (create(entry, options_class(entry)()) for entry in found.values())
    flags = {"bound.name": bound, "distill.name": distill}
    if objective.teachers == 2:
        flags["teacher.2.name"] = "natural"
    name = re.escape(distill)
    reasons = [
        (not objective.reads & method.evaluates, f"distill.name={name} reads .*, but bound.name={bound} takes"),
        (
            getattr(objective, "point", "any") == "adversarial" and getattr(method, "point", "") == "clean",
            f"distill.name={name} is defined at the adversarial point|bound {bound} brings .* and distill {name}",
        ),
        (
            getattr(objective, "needs_functionals", False) and getattr(method, "own_loss", False),
            f"distill.name={name} replaces the loss .*, and bound.name={bound} as set has a loss of its own",
        ),
    ]
    refusals = [match for applies, match in reasons if applies and distill != "none"]
    if refusals:
        with pytest.raises(BadInput, match="|".join(refusals)):
            resolve(flags)
    else:
        assert resolve(flags).distill.name == distill


def test_none_survives_a_configuration_file(tmp_path: Path) -> None:
    config = resolve({"data.name": "mnist", "train.average_from": "none"})
    assert config.train.average_from is None
    (tmp_path / "config.toml").write_text(dump(config))
    assert resolve(file=tmp_path / "config.toml").tables() == config.tables()


def test_keeping_one_epoch_drops_shipped_averaging() -> None:
    train = resolve({"data.name": "mnist", "train.keep": "best-interval", "train.epochs": 8}).train
    assert (train.average_from, train.final) == (None, False)
    with pytest.raises(BadInput, match="average_from"):
        resolve({"data.name": "mnist", "train.keep": "best-interval", "train.average_from": 60.0})
