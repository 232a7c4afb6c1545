# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Plugins that break the contract fail the kit, in the right check and with words that teach; good ones pass."""

from __future__ import annotations

import pytest
from torch import Tensor

from ctkd.api import Enclosure, Lesson
from ctkd.testing import ConformanceError, NotApplicable, checks, run_checks

from . import broken_bounds as bounds
from . import broken_parts as parts
from . import broken_training as training
from . import broken_verifiers as verifiers
from .conftest import Register

CASES: list[tuple[str, type, str, list[str]]] = [
    ("bound", bounds.SmallBox, "loss-is-a-bound-where-it-says-so", ["above the training loss", "sound = False"]),
    ("bound", bounds.HairTooTight, "loss-is-a-bound-where-it-says-so", ["above the training loss", "sound = False"]),
    ("bound", bounds.WrongBox, "enclosures-hold", ["kind 'box' is left by", "Enclosure.estimated"]),
    ("bound", bounds.Detached, "loss-is-finite-and-attached", ["detached from the student", "torch.no_grad()"]),
    ("bound", bounds.WrongShape, "loss-is-finite-and-attached", ["shape (8, 4) for a batch of 8", "(8,)", "scalar"]),
    ("bound", bounds.NotANumber, "goes-to-a-finite-loss-with-the-radius", ["NaN", "a box of no width"]),
    ("bound", bounds.Explodes, "goes-to-a-finite-loss-with-the-radius", ["at radius 1e-6", "at 1e-9", "divisions"]),
    ("bound", bounds.GlobalNoise, "repeats-under-its-seed", ["differs between two equal runs", "step.noise"]),
    ("bound", bounds.GlobalNoise, "leaves-global-state-alone", ["torch's global random numbers", "generator"]),
    ("bound", bounds.WrongKinds, "evaluates-what-it-says", ["evaluates is ['box', 'point']", "on ['box']"]),
    ("bound", bounds.Undeclared, "loss-is-finite-and-attached", ["step['clean']", "needs(schedule)", "Needs(points"]),
    ("bound", bounds.UnaskedPoint, "asks-for-what-there-is", ["context.points['adversarial']", "searched"]),
    ("bound", bounds.OwnLoss, "enclosures-hold", ["own_loss is False", "set own_loss = True"]),
    ("bound", bounds.FrozenHead, "gradient-reaches-every-parameter", ["does not reach parameter", "detach()"]),
    ("bound", bounds.ForgetsItsState, "resumes-to-the-same-weights", ["killed", "state_dict()"]),
    ("bound", bounds.RoundsItsState, "keeps-its-state-in-checkpoints", ["another loss", "all their digits"]),
    ("bound", bounds.TensorState, "keeps-its-state-in-checkpoints", ["cannot be written as JSON", ".tolist()"]),
    ("bound", bounds.SetsThreads, "leaves-global-state-alone", ["number of threads", "context manager"]),
    ("bound", bounds.SetsDtype, "leaves-global-state-alone", ["default dtype (torch.float32 ->", "os.environ"]),
    ("bound", bounds.WritesWeights, "leaves-the-student-alone", ["tensor of the student", "changed in place"]),
    ("bound", bounds.Raises, "loss-is-finite-and-attached", ["ZeroDivisionError: my table is empty"]),
    ("bound", bounds.Undocumented, "has-frozen-and-documented-options", ["alpha of SilentOptions", "docstring"]),
    ("bound", bounds.Loose, "has-frozen-and-documented-options", ["frozen", "leave model_config alone"]),
    ("bound", bounds.Loose, "refuses-unknown-options", ["LooseOptions accepts", "never ignored"]),
    ("bound", bounds.Mutable, "has-frozen-and-documented-options", ["weights of ListOptions holds a list", "tuple"]),
    ("bound", bounds.Named, "has-frozen-and-documented-options", ["option 'name'", "reserved"]),
    ("distill", training.ReadsAdversarial, "reads-only-what-it-declares", ["['adversarial']", "teacher_inputs"]),
    ("distill", training.ReadsStudent, "reads-only-what-it-declares", ["lesson.points['clean']", "student_points"]),
    ("distill", training.ReadsFeatures, "reads-only-what-it-declares", ["features", "needs_features = True"]),
    ("distill", training.ReadsSecondTeacher, "reads-only-what-it-declares", ["lesson.teachers[1]", "teachers = 2"]),
    ("distill", training.BatchMean, "loss-is-per-sample-finite-and-attached", ["shape ()", "Objective.loss", "(8,)"]),
    ("distill", training.Deaf, "listens-to-its-teachers", ["does not depend on lesson.teachers[0]"]),
    ("distill", training.Root, "stays-finite-at-the-extremes", ["student = teacher", "square roots"]),
    ("distill", training.Logarithm, "stays-finite-at-the-extremes", ["infinite", "logarithms"]),
    ("distill", training.WritesLogits, "reads-only-what-it-declares", ["in place", "shared by all enclosures"]),
    ("distill", training.ForgetsItsMean, "resumes-to-the-same-weights", ["killed", "state_dict()"]),
    ("distill", training.LearnsACopy, "learns-its-own-tensors", ["does not reach all tensors of prepare", "copies"]),
    ("attack", training.WrongSign, "finds-smaller-margins", ["mean smallest margin", "sign of the step"]),
    ("attack", training.LeavesTheBox, "returns-points-of-the-box", ["0.3 outside the box", "box.clamp"]),
    ("attack", training.LeavesGradients, "leaves-network-and-inputs-alone", [".grad of parameter", "autograd.grad"]),
    ("attack", training.KeepsTheGraph, "returns-points-of-the-box", ["require a gradient", "detach()"]),
    ("attack", training.GlobalStart, "draws-from-its-noise-alone", ["differs between two equal runs", "noise"]),
    ("attack", training.GlobalStart, "leaves-global-state-alone", ["Python's global random numbers"]),
    ("attack", training.WritesInput, "leaves-network-and-inputs-alone", ["perturb changed x", "clone"]),
    ("attack", training.SetsMode, "leaves-network-and-inputs-alone", ["the mode of the network"]),
    ("attack", training.DividesByWidth, "stays-put-in-a-box-without-width", ["lower = upper", "divide by nothing"]),
    ("model", parts.TwoFaced, "does-the-same-in-both-modes", ["in training mode", "self.training"]),
    ("model", parts.Unused, "every-parameter-is-trained", ["spare", "takes no part in the logits"]),
    ("model", parts.Tied, "every-parameter-is-trained", ["cannot be stored", "tied weights"]),
    ("model", parts.TenClasses, "builds-classifiers", ["(4, 10)", "(4, 5)", "build(input_shape, classes)"]),
    ("model", parts.Unseeded, "is-initialised-by-the-seed-of-a-run", ["shift", "reset_parameters()"]),
    ("dataset", parts.Overlap, "keeps-its-splits-apart", ["12 of 12 images of the test split are in the train"]),
    ("dataset", parts.EightBit, "loads-checked-data", ["pixels must lie in [0, 1]", "divide 8-bit images by 255"]),
    ("dataset", parts.Shuffled, "loads-the-same-twice", ["differ in the train split", "fixed seed"]),
    ("dataset", parts.NoSuchClass, "loads-checked-data", ["no image of class 3", "Data.classes"]),
    ("dataset", parts.Brightens, "augments-within-the-contract", ["pixels from", "clamp to [0, 1]"]),
    ("dataset", parts.Overwrites, "augments-within-the-contract", ["wrote to its input", "copy"]),
    ("dataset", parts.NeedsFile, "names-the-folder-where-files-are-missing", ["FileNotFoundError", "BadInput"]),
    ("stage", parts.HairAbove, "margins-are-lower-bounds", ["below the bound", "wrong certificate"]),
    ("stage", parts.NeedsWidth, "is-right-without-a-radius", ["NaN", "divisions by the width"]),
    ("stage", parts.Single, "returns-margins", ["torch.float32 for 3 boxes in torch.float64", "dtype"]),
    ("stage", parts.MarksWeights, "leaves-the-network-alone", ["changed the network", "network.detach()"]),
    ("teacher", parts.Absent, "obtains-a-teacher-that-fits", ["obtain returned None", "context.fit"]),
    ("teacher", parts.Guesses, "obtains-a-teacher-that-fits", ["at chance level", "train longer"]),
    ("teacher", parts.AnySeed, "repeats-under-its-seed", ["other weights", "seed=context.seed"]),
    ("teacher", parts.SaysItTrainsNot, "obtains-a-teacher-that-fits", ["called context.fit", "trains = True"]),
    ("teacher", parts.SaysNoFeatures, "has-features-where-it-says-so", ["features is False", "has some"]),
    ("propagation", training.Shrinks, "bounds-hold", ["is left by", "'linear' and 'narrow'"]),
    ("propagation", training.DeafToTighter, "hears-tighter-bounds", ["tighten was called with", "before the operator"]),
    ("propagation", training.MovesStatistics, "clean-pass-is-the-module", ["running statistics", "training mode"]),
    ("propagation", training.Detaches, "gradient-reaches-every-parameter", ["CrownIBP", "the gradient does not reach"]),
    ("verifier", verifiers.NoVersion, "names-its-versions", ["check returned {}", "stored with every answer"]),
    ("verifier", verifiers.OldFormat, "reads-known-formats", ["formats is ('0.9',)", "1.0, 2.0"]),
    ("verifier", verifiers.Upside, "does-not-deny-what-holds", ["CROWN proves is falsified", "unsat is verified"]),
    ("verifier", verifiers.Upside, "does-not-prove-what-fails", ["violates is verified", "unsat is verified"]),
    ("verifier", verifiers.Proves, "takes-a-tie-for-a-violation", ["every input is a tie is verified", "not strict"]),
    ("verifier", verifiers.Backwards, "does-not-prove-what-fails", ["outside of the box", "row-major order"]),
    ("verifier", verifiers.Miscomputes, "computes-what-onnxruntime-computes", ["outputs returned", "own logits"]),
    ("verifier", verifiers.GivesUp, "calls-what-it-cannot-read-an-error", ["damaged net.onnx, it answers unknown"]),
    ("verifier", verifiers.Leaves, "keeps-to-its-time", ["left 1 processes running", "run_program"]),
    ("verifier", verifiers.WritesBeside, "writes-to-its-scratch-only", ["property.cache", "Query.scratch"]),
    ("verifier", verifiers.Forgets, "does-not-deny-what-holds", ["answers error with the message ''", "one line"]),
]


@pytest.mark.parametrize(("kind", "plugin", "name", "words"), CASES, ids=[f"{c[1].__name__}-{c[2]}" for c in CASES])
def test_a_broken_plugin_fails_with_words_that_teach(
    register: Register, kind: str, plugin: type, name: str, words: list[str]
) -> None:
    register(plugin, kind)
    (check,) = (each for each in checks(kind, plugin.__name__) if each.name == name)
    with pytest.raises(ConformanceError) as caught:
        check()
    message = str(caught.value)
    assert message.startswith(f"{kind} '{plugin.__name__}'\n  found: ")
    for word in words:
        assert word in message
    assert caught.value.contract
    assert caught.value.advice


def test_every_broken_plugin_is_in_the_table() -> None:
    tested = {plugin for _, plugin, _, _ in CASES}
    assert tested == {
        *bounds.BROKEN,
        *(plugin for room in (training, parts, verifiers) for some in room.BROKEN.values() for plugin in some),
    }


@pytest.mark.parametrize(
    ("kind", "plugin"),
    [
        ("bound", bounds.Good),
        ("bound", bounds.Interval),
        *training.GOOD.items(),
        *parts.GOOD.items(),
        *verifiers.GOOD.items(),
    ],
)
def test_a_good_plugin_passes(register: Register, kind: str, plugin: type) -> None:
    register(plugin, kind)
    failed = [result for result in run_checks(kind, plugin.__name__) if result.status == "failed"]
    assert not failed, "\n".join(result.message for result in failed)


def test_what_does_not_apply_says_why(register: Register) -> None:
    register(bounds.Good, "bound")
    (check,) = (each for each in checks("bound", "Good") if each.name == "loss-is-a-bound-where-it-says-so")
    with pytest.raises(NotApplicable, match="its loss is an estimate"):
        check()


def test_a_verifier_that_is_not_installed_is_not_asked(register: Register) -> None:
    register(verifiers.NotHere, "verifier")
    results = run_checks("verifier", "NotHere")
    assert {result.status for result in results} == {"passed", "not applicable"}
    assert any("pip install nothere" in result.message for result in results)


class LosesAKey(training.Follow):
    def loss(self, enclosure: Enclosure, lesson: Lesson) -> Tensor:
        raise KeyError("table")


def test_a_key_that_an_objective_loses_is_not_blamed_on_the_step(register: Register) -> None:
    register(LosesAKey, "distill")
    messages = [result.message for result in run_checks("distill", "LosesAKey") if result.status == "failed"]
    assert any("KeyError" in message for message in messages)
    assert not any("needs(schedule)" in message for message in messages)
