# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Verifiers (``ctkd.verifying.Verifier``): asked about tiny networks whose answers are known."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ctkd.boxes import perturbation_box
from ctkd.certify.stages import CrownStage
from ctkd.errors import BadInput
from ctkd.export import RobustnessProperty, to_onnx, write_vnnlib
from ctkd.export.vnnlib2 import write_vnnlib2
from ctkd.options import Options
from ctkd.programs import marked
from ctkd.propagate import Network
from ctkd.propagate.ops import Linear
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.nets import CLASSES, batch, network
from ctkd.testing.runs import sandbox
from ctkd.testing.subject import NotApplicable, Subject
from ctkd.verify.asking import TOLERANCE
from ctkd.verify.model import Model
from ctkd.verify.replay import replay
from ctkd.verifying import Answer, Query, Verdict
from ctkd.vnnlib import read_specification

FORMATS = ("1.0", "2.0")
ENOUGH = 120.0
"""Seconds for a question that is easy."""
SHORT, GRACE = 0.5, 15.0
"""Seconds for a question that is cut short, and until the call must have returned."""
EPS = 0.001
MARK = "CTKD_CONFORMANCE"
CONTRACT = "Verifier.verify(query) returns a ctkd.verifying.Answer with what the tool said"


@dataclass(frozen=True)
class Case:
    """A question in a folder of its own, as files."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "net.onnx"

    @property
    def specification(self) -> Path:
        return self.folder / "property.vnnlib"

    def query(self, timeout: float = ENOUGH) -> Query:
        scratch = self.folder.parent / f"scratch-{time.monotonic_ns()}"
        scratch.mkdir()
        return Query(self.model, self.specification, timeout, scratch)

    def content(self) -> dict[str, str]:
        """What lies around it, by digest."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _net() -> Network:
    return network("plain", trained=True, dtype=torch.float32)


def _tied() -> Network:
    """All classes have the same logit everywhere: every input is a tie."""
    net = network("linear", dtype=torch.float32)
    for node in net.nodes:
        if isinstance(node.op, Linear):
            for _, tensor in node.op.tensors():
                tensor.copy_(tensor[:1].expand_as(tensor).clone())
    return net


def _formats(plugin: Any) -> tuple[str, ...]:
    return tuple(getattr(plugin, "formats", FORMATS[:1]))


@contextmanager
def _case(plugin: Any, net: Network, row: int, eps: float, wins: bool = True) -> Iterator[Case]:
    """One image's box; the property is that the class of its largest logit wins, or that of the smallest."""
    x = batch(torch.float32)[0][row : row + 1]
    with torch.no_grad():
        logits = net(x)[0]
    box = perturbation_box(x, eps)
    lower, upper = (bound.reshape(-1).numpy() for bound in (box.lower, box.upper))
    prop = RobustnessProperty(lower, upper, int(logits.argmax() if wins else logits.argmin()), CLASSES)
    version = next((each for each in _formats(plugin) if each in FORMATS), "1.0")
    text = write_vnnlib2(prop, net.input_shape, eps=eps) if version == "2.0" else write_vnnlib(prop, eps=eps)
    with sandbox() as folder:
        case = Case(folder / "question")
        case.folder.mkdir()
        case.model.write_bytes(to_onnx(net).SerializeToString())
        case.specification.write_text(text)
        yield case


def _certain_row() -> int:
    """An image whose box is proved robust by CROWN, so that an answer is known."""
    net = _net().to(torch.float64)
    x, _ = batch()
    labels = net(x).argmax(1)
    margins = CrownStage(Options()).margins(net, perturbation_box(x.float(), EPS).to(torch.float64), labels)
    least = margins.scatter(1, labels[:, None], torch.inf).amin(1)
    assert float(least.max()) > 1e-3
    return int(least.argmax())


def _plugin(subject: Subject) -> Any:
    """Raises: NotApplicable where the tool is not installed."""
    plugin = subject.create()
    try:
        plugin.check()
    except BadInput as problem:
        raise NotApplicable(f"the tool is not here: {problem}") from None
    return plugin


def _ask(subject: Subject, plugin: Any, query: Query, what: str) -> Answer:
    answer = plugin.verify(query)
    if not isinstance(answer, Answer) or answer.verdict not in get_args(Verdict):
        subject.reject(
            f"asked about {what}, verify returned {answer!r}"[:300],
            f"{CONTRACT}; verdict is one of {', '.join(get_args(Verdict))}",
            "return Answer(verdict=..., ...)",
        )
    if "\n" in answer.message or (answer.verdict == "error" and not answer.message):
        subject.reject(
            f"asked about {what}, it answers {answer.verdict} with the message {answer.message!r}",
            "Answer.message is one line, which says why where the verdict is error",
            "take the line of the tool's output that says what went wrong",
        )
    return answer


def _reject_error(subject: Subject, answer: Answer, what: str) -> None:
    if answer.verdict == "error":
        subject.reject(
            f"asked about {what}, it answers error: {answer.message}",
            "a network of two or three layers in the form that ctkd exports can be read by every tool",
            f"look at the tool's output: {answer.log[-300:]!r}",
        )


def exercise(subject: Subject) -> None:
    """One easy question."""
    plugin = _plugin(subject)
    with _case(plugin, _net(), 0, EPS) as case:
        _ask(subject, plugin, case.query(), "an easy instance")


def names_its_versions(subject: Subject) -> None:
    """``check`` returns versions by name, or says in one line how to get what is missing."""
    plugin = subject.create()
    try:
        found = plugin.check()
    except BadInput as problem:
        if "\n" in str(problem) or len(str(problem)) < 10:
            subject.reject(
                f"check raised BadInput: {problem}",
                "the line says what is missing and how to get it",
                "such as: the program 'x' is not installed: pip install x",
            )
        return
    texts = isinstance(found, dict) and all(isinstance(each, str) and each for pair in found.items() for each in pair)
    if not found or not texts:
        subject.reject(
            f"check returned {found!r}",
            "Verifier.check() returns versions by name, as texts: they are stored with every answer",
            'return {"my-tool": "1.2"}',
        )


def reads_known_formats(subject: Subject) -> None:
    """``formats`` and ``witness_digits`` are what core knows how to use."""
    plugin = subject.create()
    formats, digits = _formats(plugin), getattr(plugin, "witness_digits", None)
    if not formats or not set(formats) <= set(FORMATS):
        subject.reject(
            f"formats is {formats!r}", f"versions of VNN-LIB, of {', '.join(FORMATS)}", 'write formats = ("1.0",)'
        )
    if digits is not None and not (isinstance(digits, int) and 0 < digits < 20):
        subject.reject(f"witness_digits is {digits!r}", "a number of decimals, or None", "count them in its output")


def does_not_deny_what_holds(subject: Subject) -> None:
    """A property that CROWN proves is never ``falsified``."""
    plugin = _plugin(subject)
    with _case(plugin, _net(), _certain_row(), EPS) as case:
        answer = _ask(subject, plugin, case.query(), "a property that holds")
    _reject_error(subject, answer, "a property that holds")
    if answer.verdict == "falsified":
        subject.reject(
            "a property that CROWN proves is falsified",
            f"{CONTRACT}: falsified (sat) means that the violation exists",
            "a specification describes the violation: unsat is verified, sat is falsified",
        )


def does_not_prove_what_fails(subject: Subject) -> None:
    """A property that is violated everywhere is never ``verified``; a witness is replayed."""
    plugin = _plugin(subject)
    net = _net()
    for eps in (EPS, 0.2):
        with _case(plugin, net, 0, eps, wins=False) as case:
            _check_failing(subject, plugin, case, "a property that its box's centre violates")


def takes_a_tie_for_a_violation(subject: Subject) -> None:
    """Where two logits are equal everywhere, the property is not ``verified``."""
    plugin = _plugin(subject)
    with _case(plugin, _tied(), 0, EPS) as case:
        _check_failing(subject, plugin, case, "a network on which every input is a tie")


def _check_failing(subject: Subject, plugin: Any, case: Case, what: str) -> None:
    answer = _ask(subject, plugin, case.query(), what)
    _reject_error(subject, answer, what)
    if answer.verdict == "verified":
        subject.reject(
            f"{what} is verified",
            f"{CONTRACT}: verified (unsat) means that no input of the box is a violation",
            "a specification describes the violation: unsat is verified; comparisons are not strict",
        )
    if answer.verdict == "falsified":
        digits = getattr(plugin, "witness_digits", None)
        found = replay(Model(case.model), read_specification(case.specification), answer.witness, digits)
        if found.reason:
            subject.reject(
                f"asked about {what}, it answers falsified, and {found.detail}",
                "Answer.witness is the violating input, (inputs,), in row-major order; core replays it",
                "read all its numbers in full, in the order of X_0, X_1, ...; set witness_digits where it prints few",
            )


def computes_what_onnxruntime_computes(subject: Subject) -> None:
    """``outputs``, where there is one, are those of onnxruntime."""
    plugin = _plugin(subject)
    if getattr(plugin, "outputs", None) is None:
        raise NotApplicable("it has no outputs(model, x)")
    with _case(plugin, _net(), 0, EPS) as case:
        model = Model(case.model)
        for x in np.random.default_rng(0).random((2, model.inputs), np.float32).astype(np.float64):
            expected, found = model(x), np.asarray(plugin.outputs(case.model, x.copy()))
            right = found.shape == expected.shape and found.dtype == np.float64
            if not right or not np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max()):
                subject.reject(
                    f"outputs returned {found!r}, onnxruntime {expected!r}",
                    "Verifier.outputs(model, x) returns the tool's own logits, (outputs,), float64",
                    "if the tool really computes something else, it is wrong about such networks",
                )


def calls_what_it_cannot_read_an_error(subject: Subject) -> None:
    """A damaged network or specification is an ``error``, which says why."""
    plugin = _plugin(subject)
    for what in ("net.onnx", "property.vnnlib"):
        with _case(plugin, _net(), 0, EPS) as case:
            (case.folder / what).write_bytes(b"(this is nothing\n")
            answer = _ask(subject, plugin, case.query(), f"a damaged {what}")
        if answer.verdict != "error":
            subject.reject(
                f"asked about a damaged {what}, it answers {answer.verdict}",
                "whatever is no answer of the tool is an error: errors must not count as undecided",
                "look at the exit code, and take verdicts only from where the tool writes them",
            )


def keeps_to_its_time(subject: Subject) -> None:
    """Cut short, the call returns soon, no ``error``, and none of its processes is left."""
    plugin = _plugin(subject)
    with _case(plugin, _net(), 0, 0.3) as case, _marking() as mark:
        born, began = time.time(), time.monotonic()
        answer = _ask(subject, plugin, case.query(SHORT), "a harder instance with little time")
        seconds = time.monotonic() - began
        left = marked(MARK, mark, born)
    if seconds > SHORT + GRACE or left:
        subject.reject(
            f"with a timeout of {SHORT} s the call took {seconds:.1f} s and left {len(left)} processes running",
            "Query.timeout is what the tool may use, its start included; then it is ended with its children",
            "start it by ctkd.verifying.run_program with this timeout",
        )
    if answer.verdict == "error":
        subject.reject(
            f"with a timeout of {SHORT} s it answers error: {answer.message}",
            "running out of time is the verdict timeout",
            "look at Finished.timed_out before anything else",
        )


@contextmanager
def _marking() -> Iterator[str]:
    """Processes that start inside the block, and theirs, have a variable of that value."""
    os.environ[MARK] = mark = uuid.uuid4().hex
    try:
        yield mark
    finally:
        del os.environ[MARK]


def writes_to_its_scratch_only(subject: Subject) -> None:
    """Beside the network and the specification, and in the working directory, nothing is changed."""
    plugin = _plugin(subject)
    with _case(plugin, _net(), 0, EPS, wins=False) as case:
        before, here = case.content(), Path.cwd()
        _ask(subject, plugin, case.query(), "an easy instance")
        after = case.content()
        changed = sorted({*before.items()} ^ {*after.items()}) + sorted((str(path), "") for path in here.iterdir())
    if changed:
        subject.reject(
            f"it wrote {changed[0][0]}",
            "Query.scratch is the only place that a tool writes to: others may read the same files at the same time",
            "run it in the scratch folder, and copy or link there what it writes beside",
        )


def serves_several_threads(subject: Subject) -> None:
    """Asked twice at the same time, it gives the same verdict twice."""
    plugin = _plugin(subject)
    with _case(plugin, _net(), 0, EPS) as case, ThreadPoolExecutor(2) as pool:
        queries = [case.query(), case.query()]
        answers = list(pool.map(lambda query: _ask(subject, plugin, query, "an easy instance"), queries))
    if answers[0].verdict != answers[1].verdict:
        subject.reject(
            f"asked twice at the same time, it answers {answers[0].verdict} and {answers[1].verdict}",
            "`ctkd verify --jobs` asks one plugin object from several threads",
            "keep files in the query's scratch folder, and no state in the object",
        )


CHECKS = (
    *COMMON,
    names_its_versions,
    reads_known_formats,
    does_not_deny_what_holds,
    does_not_prove_what_fails,
    takes_a_tie_for_a_violation,
    computes_what_onnxruntime_computes,
    calls_what_it_cannot_read_an_error,
    keeps_to_its_time,
    writes_to_its_scratch_only,
    serves_several_threads,
    leaves_global_state_alone(exercise),
)
