# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The plugin door: foreign modules, failures that are named, clashes, lifecycle hooks, attribution."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch

import ctkd.plugins as door
from ctkd import Registration, hookimpl
from ctkd.errors import BadInput, RunFailed
from ctkd.hookspecs import INTERFACE, KINDS, Hooks
from ctkd.options import Count, Options, Unit
from ctkd.plugins import Registry, create, load, options_class, registry
from ctkd.run import train

from .conftest import QUICK


def module(name: str, interface: int | None = INTERFACE, **hooks: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    if interface is not None:
        made.CTKD_INTERFACE = interface  # type: ignore[attr-defined]
    for hook, function in hooks.items():
        setattr(made, hook, hookimpl(function))
    return made


@pytest.fixture
def fresh() -> Registry:
    """A registry of its own with the built-ins."""
    import ctkd.builtin

    manager = pluggy.PluginManager("ctkd")
    manager.add_hookspecs(Hooks)
    made = Registry(manager)
    made.add(ctkd.builtin, "ctkd")
    return made


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, fresh: Registry) -> Registry:
    """The process's registry, replaced for one test."""
    for place in ("ctkd.plugins", "ctkd.config", "ctkd.session", "ctkd.run"):
        monkeypatch.setattr(f"{place}.registry", lambda: fresh, raising=False)
    return fresh


def test_builtins_come_through_the_entry_point() -> None:
    assert registry().find("bound", "ibp").origin.startswith("ctkd ")
    assert registry().failures == []


def test_every_registered_target_and_its_options_load() -> None:
    for entry in registry().entries.values():
        assert load(entry.target, entry.origin) is not None
        if entry.kind != "command":
            assert issubclass(options_class(entry), Options)


def test_option_classes_say_what_their_options_mean() -> None:
    for entry in registry().entries.values():
        if entry.kind != "command" and (options := options_class(entry)) is not Options:
            assert options.__doc__
            for name, field in options.model_fields.items():
                assert field.description, (entry.name, name)


def test_a_hook_that_raises_is_named_and_the_others_go_on(fresh: Registry) -> None:
    def broken() -> list[Registration]:
        raise ZeroDivisionError("my table is empty")

    def fine() -> list[Registration]:
        return [Registration("mine", "nowhere:X", "x")]

    fresh.add(module("bad", ctkd_bound_methods=broken, ctkd_models=fine), "bad 1.0")
    (failure,) = fresh.failures
    assert str(failure) == (
        "plugin bad 1.0 was not loaded: ctkd_bound_methods raised ZeroDivisionError: my table is empty"
    )
    assert "mine" in fresh.names("model")
    assert "ibp" in fresh.names("bound")


@pytest.mark.parametrize(
    ("version", "words"), [(None, "does not say CTKD_INTERFACE"), (99, "was made for interface 99")]
)
def test_another_interface_version_is_refused(fresh: Registry, version: int | None, words: str) -> None:
    fresh.add(module("old", version), "old 0.1")
    assert words in str(fresh.failures[0])
    assert f"this ctkd has interface {INTERFACE}" in str(fresh.failures[0])


def test_a_clash_keeps_the_first_and_names_both(fresh: Registry) -> None:
    fresh.add(module("other", ctkd_bound_methods=lambda: [Registration("ibp", "other:IBP", "x")]), "other 2.0")
    assert fresh.find("bound", "ibp").origin == "ctkd"
    assert str(fresh.failures[0]) == (
        "plugin other 2.0 was not loaded: bound 'ibp' is already registered by ctkd, which is kept"
    )


def test_a_hook_with_unknown_arguments_is_refused(fresh: Registry) -> None:
    def wrong(folder: Any, nonsense: Any) -> None: ...

    fresh.add(module("odd", ctkd_run_finished=wrong), "odd 1")
    assert "nonsense" in str(fresh.failures[0])


def test_entry_points_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, entry_points

    real = list(entry_points(group="ctkd"))
    gone = EntryPoint("gone", "module_that_is_gone", "ctkd")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [*real, gone])
    door.registry.cache_clear()
    try:
        found = door.registry()
        assert "ibp" in found.names("bound")
        (failure,) = found.failures
        assert "module_that_is_gone" in str(failure)
    finally:
        door.registry.cache_clear()


def test_a_target_that_cannot_be_imported_names_its_plugin() -> None:
    entry = Registration("mine", "nowhere_at_all:Thing", "x", kind="bound", origin="mine 1.0")
    with pytest.raises(RunFailed, match=r"plugin mine 1.0: nowhere_at_all:Thing cannot be loaded: ModuleNotFoundError"):
        create(entry, Options())


def test_every_hook_is_documented() -> None:
    for name, function in vars(Hooks).items():
        if name.startswith("ctkd_"):
            assert function.__doc__, name
    assert set(KINDS) == {n for n in vars(Hooks) if n.startswith("ctkd_") and "run_" not in n and "epoch" not in n}


# A method as a stranger writes it ------------------------------------------------------------------------


class HalfOptions(Options):
    share: Unit = 0.5


class HalfIBP:
    """A foreign method: half the clean point's loss, half the box's."""

    Options = HalfOptions
    evaluates = frozenset({"point", "box"})
    sound = False

    def __init__(self, options: HalfOptions) -> None:
        self.options = options
        self.calls = 0

    def needs(self, schedule: Any) -> Any:
        from ctkd.api import Needs, full_box

        return Needs(points=frozenset({"clean"}), boxes={"full": full_box})

    def combine(self, step: Any) -> torch.Tensor:
        self.calls += 1
        share = self.options.share
        loss: torch.Tensor = share * step.loss(step["clean"]) + (1 - share) * step.loss(step["full"])
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class RaisesIBP(HalfIBP):
    def combine(self, step: Any) -> torch.Tensor:
        raise KeyError("lost")


SETTINGS = {**QUICK, "teacher.name": "none", "train.epochs": 1, "train.ramp": 0.5}


def add_methods(where: Registry) -> None:
    here = __name__

    def methods() -> list[Registration]:
        return [
            Registration("half-ibp", f"{here}:HalfIBP", "half and half"),
            Registration("raises-ibp", f"{here}:RaisesIBP", "raises"),
        ]

    where.add(module("foreign", ctkd_bound_methods=methods), "foreign 3.1")


def test_a_foreign_method_trains_and_its_state_is_kept(foreign: Registry, tmp_path: Path) -> None:
    import json

    from ctkd.storage import read_tensors

    add_methods(foreign)
    _, summary = train(settings={**SETTINGS, "bound.name": "half-ibp", "bound.share": 0.25}, out=tmp_path / "run")
    assert summary["certified_accuracy"] is not None
    _, metadata = read_tensors(tmp_path / "run" / "student" / "checkpoint.safetensors")
    assert json.loads(metadata["values"])["plugins"]["bound"]["calls"] > 0
    with pytest.raises(BadInput, match=r"bound.share=2: must be less than or equal to 1"):
        train(settings={**SETTINGS, "bound.name": "half-ibp", "bound.share": 2})


def test_a_method_that_raises_stops_the_run_and_is_named(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    with pytest.raises(RunFailed, match=r"bound 'raises-ibp' of foreign 3.1 raised KeyError: 'lost'"):
        train(settings={**SETTINGS, "bound.name": "raises-ibp"}, out=tmp_path / "run")


def test_lifecycle_hooks_hear_of_everything_and_a_broken_one_is_switched_off(foreign: Registry, tmp_path: Path) -> None:
    heard: list[str] = []

    def started(folder: Any, config: Any) -> None:
        heard.append(f"started {config['bound']['name']} in {folder.path.name}")

    def epoch(network: str, metrics: Any) -> None:
        heard.append(f"{network} {metrics['epoch']}")

    def finished(summary: Any) -> None:
        heard.append(f"finished {summary['samples']}")

    def broken(metrics: Any) -> None:
        heard.append("broken")
        raise OSError("disk full")

    foreign.add(
        module("logger", ctkd_run_started=started, ctkd_epoch_finished=epoch, ctkd_run_finished=finished), "l 1"
    )
    foreign.add(module("bad", ctkd_epoch_finished=broken), "bad 1.0")
    with pytest.warns(UserWarning, match=r"plugin bad 1.0: ctkd_epoch_finished raised OSError\('disk full'\)"):
        train(settings={**SETTINGS, "train.epochs": 2, "bound.name": "ibp"}, out=tmp_path / "run")
    assert heard.count("broken") == 1
    assert [line for line in heard if line != "broken"] == [
        "started ibp in run",
        "student 1",
        "student 2",
        "finished 40",
    ]


def test_counts_are_at_least_one() -> None:
    class Own(Options):
        steps: Count = 1

    problems: list[str] = []
    from ctkd.options import validate

    assert validate(Own, {"steps": 0}, "attack", problems) is None
    assert problems == ["attack.steps=0: must be greater than or equal to 1"]
