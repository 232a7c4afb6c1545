# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The plugin door: foreign modules, failures that are named, clashes, lifecycle hooks, attribution."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import click
import pluggy
import pytest
import torch

from ctkd import Registration, hookimpl
from ctkd.cli.main import run
from ctkd.config import resolve
from ctkd.errors import BadInput, Contradiction, RunFailed
from ctkd.fingerprint import fit_key
from ctkd.hookspecs import INTERFACE, KINDS, Hooks
from ctkd.options import Count, Options, Unit
from ctkd.plugins import Registry, create, load, load_registry, options_class, registry, using
from ctkd.run import certify, export, resume, train
from ctkd.session import load_data
from ctkd.train.finish import finalise

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
def foreign(fresh: Registry) -> Iterator[Registry]:
    """The process's registry, replaced for one test."""
    with using(fresh):
        yield fresh


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
    monkeypatch.delenv("CTKD_LOAD_PLUGINS", raising=False)
    found = load_registry()
    assert "ibp" in found.names("bound")
    (failure,) = found.failures
    assert "module_that_is_gone" in str(failure)


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


class NeedsRadius(HalfIBP):
    needs_radius = True


class WrongShape(HalfIBP):
    def combine(self, step: Any) -> torch.Tensor:
        return super().combine(step)[:3]


class Detached(HalfIBP):
    def combine(self, step: Any) -> torch.Tensor:
        return super().combine(step).detach()


class NotATensor(HalfIBP):
    def combine(self, step: Any) -> Any:
        return float(super().combine(step).detach().mean())


class NaN(HalfIBP):
    def combine(self, step: Any) -> torch.Tensor:
        return super().combine(step) * float("nan")


class Unsound(HalfIBP):
    """Claims a margin that is too large for a box."""

    def combine(self, step: Any) -> torch.Tensor:
        box = step["full"]
        loss: torch.Tensor = step.loss(box.with_margins(box.margins + 50))
        return loss


class UnsoundLoss(HalfIBP):
    """Claims a loss of its own that is too small for a box."""

    def combine(self, step: Any) -> torch.Tensor:
        box = step["full"]
        loss: torch.Tensor = step.loss(dataclasses.replace(box, loss=0.01 * box.robust_loss()))
        return loss


class Inner:
    """Fails out of the backward pass, where no code of the plugin is on the stack."""

    @staticmethod
    def build() -> Any:
        class Fails(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> Any:
                return gradient[:1]

        return Fails


class FailsBackward(HalfIBP):
    def combine(self, step: Any) -> torch.Tensor:
        loss: torch.Tensor = Inner.build().apply(super().combine(step))
        return loss


class WrongObjective:
    """A foreign objective that returns one value for the whole batch."""

    reads = frozenset({"point", "box", "mixed"})
    teachers = 1
    teacher_inputs = frozenset({"clean"})
    student_points: frozenset[str] = frozenset()
    needs_features = False

    def __init__(self, options: Options) -> None: ...

    def loss(self, enclosure: Any, lesson: Any) -> torch.Tensor:
        total: torch.Tensor = lesson.robust.mean()
        return total


class StepOptions(Options):
    steps: Count = 1


class WrongAttack:
    Options = StepOptions

    def __init__(self, options: StepOptions) -> None: ...

    def perturb(self, logits: Any, x: torch.Tensor, labels: Any, box: Any, noise: Any) -> torch.Tensor:
        return x.double()


class NaNAttack(WrongAttack):
    def perturb(self, logits: Any, x: torch.Tensor, labels: Any, box: Any, noise: Any) -> torch.Tensor:
        return x * torch.nan


class CallsTeacher(WrongAttack):
    """Asks the teacher, and moves nowhere."""

    calls_teacher = True
    asked = 0

    def perturb(self, logits: Any, x: torch.Tensor, labels: Any, box: Any, noise: Any, *, teacher: Any) -> torch.Tensor:
        with torch.enable_grad():
            point = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(teacher(point).sum(), point)
        CallsTeacher.asked += int(gradient.abs().sum() > 0)
        return x


class Brings(WrongObjective):
    """A good objective that brings an attack."""

    attack: ClassVar[dict[str, Any]] = {"name": "calls-teacher", "steps": 3}

    def loss(self, enclosure: Any, lesson: Any) -> torch.Tensor:
        loss: torch.Tensor = lesson.robust
        return loss


class BringsWrong(Brings):
    attack: ClassVar[dict[str, Any]] = {"name": "calls-teacher", "stepps": 3}


class Undeclared(Brings):
    reads = frozenset({"points"})


class Missing:
    """Declares nothing."""

    def __init__(self, options: Options) -> None: ...


class RaisingModel:
    def __init__(self, options: Options) -> None: ...

    def build(self, input_shape: Any, classes: int) -> Any:
        raise IndexError("no layer 7")


class RaisingData(RaisingModel):
    def load(self, data_dir: Any) -> Any:
        raise IndexError("no shard 7")


class UnsoundStage:
    def __init__(self, options: Options) -> None: ...

    def margins(self, network: Any, box: Any, labels: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(labels), network.classes, dtype=torch.float64)


class NaNStage(UnsoundStage):
    def margins(self, network: Any, box: Any, labels: torch.Tensor) -> torch.Tensor:
        return super().margins(network, box, labels) * float("nan")


class NoModel(RaisingModel):
    def build(self, input_shape: Any, classes: int) -> Any:
        return None


class NoData(RaisingModel):
    def load(self, data_dir: Any) -> Any:
        return None


class NoCombine(HalfIBP):
    combine = None  # type: ignore[assignment]


class NoArguments:
    evaluates = frozenset({"box"})


class WrongOptions(HalfIBP):
    Options = dict  # type: ignore[assignment]


class WrongStage(UnsoundStage):
    def margins(self, network: Any, box: Any, labels: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(labels), dtype=torch.float64)


SETTINGS = {**QUICK, "teacher.name": "none", "train.epochs": 1, "train.ramp": 0.5}


@click.command()
@click.option("--how", default="ZeroDivisionError")
def raises(how: str) -> None:
    """A foreign command."""
    raise {"BadInput": BadInput("no such run"), "OSError": OSError(28, "No space left", "x.sqlite")}.get(
        how, ZeroDivisionError("nothing to divide")
    )


def add_methods(where: Registry) -> None:
    here = __name__
    hooks = {
        "ctkd_bound_methods": [
            ("half-ibp", HalfIBP),
            ("raises-ibp", RaisesIBP),
            ("needs-radius", NeedsRadius),
            ("wrong-shape", WrongShape),
            ("detached", Detached),
            ("no-tensor", NotATensor),
            ("nan", NaN),
            ("unsound", Unsound),
            ("unsound-loss", UnsoundLoss),
            ("fails-backward", FailsBackward),
            ("no-combine", NoCombine),
            ("no-arguments", NoArguments),
            ("wrong-options", WrongOptions),
        ],
        "ctkd_objectives": [
            ("wrong-objective", WrongObjective),
            ("brings", Brings),
            ("brings-wrong", BringsWrong),
            ("undeclared", Undeclared),
            ("missing", Missing),
        ],
        "ctkd_attacks": [("wrong-attack", WrongAttack), ("nan-attack", NaNAttack), ("calls-teacher", CallsTeacher)],
        "ctkd_commands": [("raises", raises)],
        "ctkd_models": [("raising-model", RaisingModel), ("no-model", NoModel)],
        "ctkd_datasets": [("raising-data", RaisingData), ("no-data", NoData)],
        "ctkd_certification_stages": [
            ("unsound-stage", UnsoundStage),
            ("wrong-stage", WrongStage),
            ("nan-stage", NaNStage),
        ],
    }

    def lister(found: list[tuple[str, Any]]) -> Any:
        return lambda: [Registration(n, f"{here}:{getattr(made, '__name__', n)}", "x") for n, made in found]

    where.add(module("foreign", **{hook: lister(found) for hook, found in hooks.items()}), "foreign 3.1")


def test_a_foreign_method_trains_and_its_state_is_kept(foreign: Registry, tmp_path: Path) -> None:
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
    words = r"bound 'raises-ibp' of foreign 3.1 raised KeyError: 'lost' in RaisesIBP.combine \(test_plugins.py:\d+\)"
    with pytest.raises(RunFailed, match=words):
        train(settings={**SETTINGS, "bound.name": "raises-ibp"}, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("else", "error: plugin foreign 3.1 raised ZeroDivisionError: nothing to divide in raises (test_plugins.py:"),
        ("BadInput", "error: no such run"),
        ("OSError", "error: x.sqlite: No space left"),
    ],
)
def test_a_command_that_raises_is_named(
    foreign: Registry, capsys: pytest.CaptureFixture[str], how: str, line: str
) -> None:
    add_methods(foreign)
    assert run(["raises", "--how", how]) == (2 if how == "BadInput" else 1)
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


def test_a_method_that_needs_a_radius_is_not_trained_without(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    settings = {**SETTINGS, "bound.name": "needs-radius"}
    with pytest.raises(
        BadInput, match=r"^bound\.name=needs-radius acts where the radius is above 0, and train\.eps=0 is"
    ):
        train(settings={**settings, "train.eps": 0}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert resolve({**settings, "train.eps": 0.01}).train.eps == 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bound.name": "wrong-shape"}, r"combine of bound 'wrong-shape' of foreign 3.1 returned .* shape \(3,\)"),
        ({"bound.name": "detached"}, "combine of bound 'detached' of foreign 3.1 returned a loss that is detached"),
        ({"bound.name": "no-tensor"}, "combine of bound 'no-tensor' of foreign 3.1 returned float"),
        ({"bound.name": "nan"}, "total loss is not finite, with bound 'nan' of foreign 3.1; the update was not made"),
        ({"bound.name": "unsound"}, "bound 'unsound' of foreign 3.1 claims a lower bound of the margins over a box"),
        ({"bound.name": "unsound-loss"}, "bound 'unsound-loss' of foreign 3.1 claims an upper bound of the loss"),
        ({"bound.name": "fails-backward"}, "bound 'fails-backward' of foreign 3.1: the run stopped with RuntimeError"),
        (
            {"bound.name": "ibp", "distill.name": "wrong-objective", "teacher.name": "natural", "teacher.epochs": 1},
            r"loss of distill 'wrong-objective' of foreign 3.1 returned .*\(\); the shape must be \(\d+,\), one value",
        ),
        (
            {"bound.name": "adversarial", "attack.name": "wrong-attack"},
            "perturb of attack 'wrong-attack' of foreign 3.1 returned .*float64; it must return inputs like those",
        ),
        (
            {"bound.name": "adversarial", "attack.name": "nan-attack"},
            "the attack's point is not finite, with attack 'nan-attack' of foreign 3.1; the update was not made",
        ),
        (
            {"distill.name": "undeclared", "teacher.name": "natural"},
            r"distill 'undeclared' of foreign 3.1: reads is frozenset\({'points'}\); it must be a frozenset",
        ),
        (
            {"distill.name": "missing", "teacher.name": "natural"},
            "distill 'missing' of foreign 3.1: the attribute reads is missing",
        ),
        ({"bound.name": "no-combine"}, "bound 'no-combine' of foreign 3.1: the method combine is missing"),
        ({"model.name": "no-model"}, "build of model 'no-model' of foreign 3.1 returned NoneType"),
        ({"data.name": "no-data", "train.eps": 0.1}, "load of dataset 'no-data' of foreign 3.1 returned NoneType"),
        ({"model.name": "raising-model"}, "model 'raising-model' of foreign 3.1 raised IndexError: no layer 7 in"),
        ({"data.name": "raising-data", "train.eps": 0.1}, "dataset 'raising-data' of foreign 3.1 raised IndexError"),
        (
            {"bound.name": "ibp", "certify.stages": ["wrong-stage"]},
            r"stage 'wrong-stage' of foreign 3.1 returned .* shape .*; it must return",
        ),
    ],
)
def test_what_a_plugin_does_wrong_is_named(
    foreign: Registry, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    add_methods(foreign)
    with pytest.raises(RunFailed, match=words) as caught:
        train(settings={**SETTINGS, **settings}, out=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_stage_that_returns_nan_proves_nothing_and_is_named(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    settings = {**SETTINGS, "bound.name": "ibp", "certify.stages": ["nan-stage"]}
    with pytest.warns(UserWarning, match="stage 'nan-stage' of foreign 3.1 returned NaN for some samples"):
        _, summary = train(settings=settings, out=tmp_path / "run")
    assert summary["certified_accuracy"] == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong-options", "bound 'wrong-options' has Options that are no"),
        ("no-arguments", "bound 'no-arguments' of foreign 3.1 cannot be made from its options: TypeError"),
    ],
)
def test_what_cannot_be_made_from_options_is_named(foreign: Registry, name: str, words: str) -> None:
    add_methods(foreign)
    with pytest.raises(BadInput, match=words):
        resolve({**SETTINGS, "bound.name": name})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Registration(3, None, None), "name, target and summary must be text"),  # type: ignore[arg-type]
        (Registration("a", "module_only", "x"), "target as module:Object"),
        (Registration("a", "m:X", "x", ("Doe 2026",)), "papers must be a tuple of ctkd.Paper"),  # type: ignore[arg-type]
        ("a", "it returned a str in the list"),
    ],
)
def test_a_registration_that_is_none_is_named(fresh: Registry, entry: Any, words: str) -> None:
    fresh.add(module("odd", ctkd_models=lambda: [entry]), "odd 1")
    (failure,) = fresh.failures
    assert words in str(failure)


def test_an_entry_point_must_name_a_module(fresh: Registry) -> None:
    fresh.add(object(), "odd 1")
    assert "it must name a module" in str(fresh.failures[0])


TAUGHT = {**SETTINGS, "teacher.name": "natural", "teacher.epochs": 2, "bound.name": "mtl-ibp", "distill.name": "brings"}


def test_an_objective_brings_an_attack_that_calls_the_teacher(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    settings = {key: value for key, value in TAUGHT.items() if key != "attack.steps"}
    config = resolve(settings)
    assert config.attack.table() == {"name": "calls-teacher", "steps": 3}
    assert config.sources["attack.name"] == "distill brings"
    before = CallsTeacher.asked
    folder, _ = train(settings=settings, out=tmp_path / "run")
    assert CallsTeacher.asked > before
    assert json.loads((folder.path / "environment.json").read_text())["plugins"] == ["foreign 3.1"]


def test_what_another_attack_does_not_have_is_left_out_with_a_warning(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    assert resolve(TAUGHT).attack.table() == {"name": "calls-teacher", "steps": 2}  # what is set wins
    chosen = resolve({**TAUGHT, "attack.name": "pgd"})
    assert chosen.attack.name == "pgd"
    assert chosen.notices == ()
    settings = {**TAUGHT, "distill.name": "rslad", "attack.name": "wrong-attack"}
    words = "distill rslad brings attack.objective=kl-teacher, which attack wrong-attack does not have"
    assert any(words in notice for notice in resolve(settings).notices)
    with pytest.warns(UserWarning, match=words), pytest.raises(RunFailed, match="float64"):
        train(settings=settings, out=tmp_path / "run")


def test_an_attack_that_calls_a_teacher_needs_one_with_gradients(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    settings = {**SETTINGS, "bound.name": "adversarial", "attack.name": "calls-teacher"}
    with pytest.raises(BadInput, match=r"attack.name=calls-teacher needs the teacher's prediction, and teacher.name"):
        train(settings=settings, out=tmp_path / "run")
    with pytest.raises(BadInput, match=r"certify.further_attacks: calls-teacher needs a teacher"):
        resolve({**SETTINGS, "certify.further_attacks": ["calls-teacher"]})
    folder, _ = train(settings={**SETTINGS, "bound.name": "adversarial", "export.samples": 1}, out=tmp_path / "plain")
    (model,) = (folder.exports / "onnx").glob("*.onnx")
    settings |= {"teacher.name": "onnx", "teacher.path": str(model), "distill.name": "logits"}
    with pytest.raises(BadInput, match="needs gradients of the teacher, and teacher 'onnx' has none"):
        train(settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_option_that_no_attack_has_names_who_brought_it(foreign: Registry) -> None:
    add_methods(foreign)
    with pytest.raises(BadInput, match=r"distill brings-wrong brings attack.stepps=3, which is no option of attack"):
        resolve({**TAUGHT, "distill.name": "brings-wrong"})


def test_a_trained_run_no_longer_needs_the_plugins_that_trained_it(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    train(settings={**SETTINGS, "bound.name": "half-ibp"}, out=tmp_path / "run")
    import ctkd.builtin

    plain = Registry(pluggy.PluginManager("ctkd"))
    plain.manager.add_hookspecs(Hooks)
    plain.add(ctkd.builtin, "ctkd")
    with using(plain):
        assert certify(tmp_path / "run", eps=0.05)["samples"] == 40
        assert export(tmp_path / "run", tmp_path / "out", samples=1)["instances"] == 1
        with pytest.raises(BadInput, match="bound 'half-ibp' is not known"):
            resolve(file=tmp_path / "run" / "config.toml")


@pytest.mark.parametrize(
    ("name", "marked", "words"),
    [
        ("ctkd_objective", True, "ctkd_objective is no hook: did you mean 'ctkd_objectives'?"),
        ("ctkd_models", False, "ctkd_models is not marked with @hookimpl, so it is not called"),
    ],
)
def test_hooks_that_would_never_be_called_are_named(fresh: Registry, name: str, marked: bool, words: str) -> None:
    def nothing() -> list[Registration]:
        return []

    made = module("odd")
    setattr(made, name, hookimpl(nothing) if marked else nothing)
    fresh.add(made, "odd 1")
    assert any(words in str(failure) for failure in fresh.failures)


def test_an_unknown_name_says_when_plugins_were_left_out(fresh: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTKD_LOAD_PLUGINS", "")
    with pytest.raises(BadInput, match=r"bound 'mine' is not known: .*\(CTKD_LOAD_PLUGINS is set"):
        fresh.find("bound", "mine")
    monkeypatch.delenv("CTKD_LOAD_PLUGINS")
    fresh.add(module("old", 99), "old 0.1")
    with pytest.raises(BadInput, match=r"\(not loaded: old 0.1\)"):
        fresh.find("bound", "mine")


def test_an_unsound_stage_is_a_contradiction_that_names_it(foreign: Registry, tmp_path: Path) -> None:
    add_methods(foreign)
    settings = {**SETTINGS, "bound.name": "ibp", "certify.stages": ["unsound-stage"]}
    with pytest.raises(Contradiction, match=r"certified by stage 'unsound-stage' of foreign 3.1"):
        train(settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_that_a_plugin_stopped_goes_on_once_it_is_mended(
    foreign: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_methods(foreign)
    settings = {**SETTINGS, "bound.name": "raises-ibp"}
    with pytest.raises(RunFailed):
        train(settings=settings, out=tmp_path / "run")
    monkeypatch.setattr(RaisesIBP, "combine", HalfIBP.combine)
    _, summary = resume(tmp_path / "run")
    whole, _ = train(settings=settings, out=tmp_path / "whole")
    assert summary["student_sha256"] == json.loads(whole.summary.read_text())["student_sha256"]


@pytest.mark.parametrize(
    ("wanted", "there", "warned"), [("", set(), 0), ("mine", {"mine"}, 0), ("a,mine", {"mine"}, 1)]
)
def test_an_environment_variable_chooses_plugins(
    monkeypatch: pytest.MonkeyPatch, wanted: str, there: set[str], warned: int
) -> None:
    from importlib.metadata import EntryPoint, entry_points

    real = [point for point in entry_points(group="ctkd") if point.value == "ctkd.builtin"]
    for name in ("mine", "yours"):
        made = module(f"{name}_plugin", ctkd_models=lambda name=name: [Registration(name, "nowhere:X", "x")])
        monkeypatch.setitem(sys.modules, made.__name__, made)
        real.append(EntryPoint(name, made.__name__, "ctkd"))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: real)
    monkeypatch.delenv("CTKD_LOAD_PLUGINS", raising=False)
    assert {"mine", "yours"} <= set(load_registry().names("model"))
    monkeypatch.setenv("CTKD_LOAD_PLUGINS", wanted)
    found = load_registry()
    assert {"mine", "yours"} & set(found.names("model")) == there
    assert "ibp" in found.names("bound")
    assert len(found.failures) == warned
    assert all("CTKD_LOAD_PLUGINS names it" in str(failure) for failure in found.failures)


def test_a_module_that_exits_or_prints_while_it_is_imported_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import EntryPoint, entry_points

    real = [point for point in entry_points(group="ctkd") if point.value == "ctkd.builtin"]
    (tmp_path / "prints_and_exits.py").write_text("print('hello')\nraise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [*real, EntryPoint("p", "prints_and_exits", "ctkd")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    monkeypatch.delenv("CTKD_LOAD_PLUGINS", raising=False)
    (failure,) = load_registry().failures
    assert "SystemExit" in str(failure)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello\n"


def test_one_distribution_may_bring_several_modules(fresh: Registry) -> None:
    fresh.add(module("one", ctkd_models=lambda: [Registration("a", "nowhere:X", "x")]), "dist 1.0")
    fresh.add(module("two", ctkd_models=lambda: [Registration("b", "nowhere:X", "x")]), "dist 1.0")
    assert fresh.failures == []
    assert {"a", "b"} <= set(fresh.names("model"))


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


def test_a_teacher_is_cached_by_the_code_of_foreign_plugins(
    foreign: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit anywhere in the plugin's package, of the same version, is another teacher."""
    package = tmp_path / "keyed_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helpers.py").write_text("WIDTH = 8\n")
    (package / "nets.py").write_text(
        "from torch import nn\n\n\nclass Keyed:\n    def __init__(self, options): ...\n\n"
        "    def build(self, input_shape, classes):\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = Registration("keyed", "keyed_plugin.nets:Keyed", "x")
    foreign.add(module("keyed_registration", ctkd_models=lambda: [entry]), "keyed 1.0")
    config = resolve({"model.name": "keyed", "teacher.name": "none"})
    data = load_data(config)
    fresh = finalise(config.model.create().build((1, 8, 8), 10), (1, 8, 8))

    def key() -> str:
        return fit_key(config, data, config.model, fresh, config.train, {"name": "pgd"}, {"name": "ibp"}, {}, {})

    before = key()
    assert key() == before
    (package / "helpers.py").write_text("WIDTH = 9\n")
    assert key() != before
