# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One question to one tool, and what of its answer can be believed."""

from __future__ import annotations

import datetime
import math
import re
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ctkd.errors import BadInput, CtkdError, RunFailed
from ctkd.hookspecs import Registration
from ctkd.options import Options, validate
from ctkd.plugins import create, one_line, options_class, registry
from ctkd.verify.model import Model
from ctkd.verify.replay import Replay, challenge, points, replay
from ctkd.verify.store import Reason, Result
from ctkd.verifying import Answer, Query, Verdict
from ctkd.vnnlib import Specification

TOLERANCE = 1e-4
"""Largest accepted difference of a tool's logit, times the largest logit where that exceeds 1; as for exports."""
PACKAGES = ("abcrown", "marabou", "neuralsat", "vnncomp-tool")
"""Verifiers that have a package in this repository's ``plugins``."""
COMPARED = 3
"""Inputs at which a tool's logits are compared with onnxruntime's."""
LOG = 20_000
"""Characters of a log that are kept: its end."""


@dataclass(eq=False)
class Tool:
    """A verifier with its options, checked to be there. ``differences`` remembers comparisons by model.

    ``name`` is the plugin's, or ``NAME:LABEL``, by which one plugin is asked with several options.
    """

    name: str
    entry: Registration
    options: Options
    plugin: Any
    versions: Mapping[str, str]
    differences: dict[str, Future[tuple[float | None, str]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(getattr(self.plugin, "formats", ("1.0",)))

    @staticmethod
    def load(name: str, values: Mapping[str, Any]) -> Tool:
        """Raises: BadInput if there is none of that name, options are wrong, or the tool is not installed."""
        plugin_name, colon, label = name.partition(":")
        if colon and not re.fullmatch(r"[A-Za-z0-9_-]+", label):
            raise BadInput(f"{name}: behind the colon goes a label of letters, digits, '_' and '-'; or leave both out")
        try:
            entry = registry().find("verifier", plugin_name)
        except BadInput as problem:
            package = f"pip install plugins/ctkd-{plugin_name}" if plugin_name in PACKAGES else "see `ctkd plugins`"
            raise BadInput(f"{problem}; verifiers are packages of their own: {package}") from None
        problems: list[str] = []
        options = validate(options_class(entry), values, name, problems)
        if options is None:
            raise BadInput(*problems)
        plugin = create(entry, options)
        try:
            versions = {entry.origin.rpartition(" ")[0] or entry.origin: entry.origin.rpartition(" ")[2]}
            versions |= {str(key): str(value) for key, value in dict(plugin.check()).items()}
        except CtkdError:
            raise
        except Exception as error:  # a foreign plugin: anything may come out of it
            raise RunFailed(f"verifier {name!r} of {entry.origin}: check raised {one_line(error)}") from error
        return Tool(name, entry, options, plugin, versions)

    def compare(self, model: Model, specification: Specification) -> tuple[float | None, str]:
        """The largest difference of its logits from onnxruntime's, None if it cannot be asked; and what is wrong.

        Asked once for each model, whatever the number of threads.
        """
        with self.lock:
            first = model.digest not in self.differences
            future = self.differences.setdefault(model.digest, Future())
        if first:
            try:
                future.set_result(self._compare(model, specification))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _compare(self, model: Model, specification: Specification) -> tuple[float | None, str]:
        outputs = getattr(self.plugin, "outputs", None)
        if outputs is None:
            return None, ""
        largest = 0.0
        for x in points(specification, model, COMPARED):
            try:
                found = np.asarray(outputs(model.path, x.copy()), np.float64).reshape(-1)
            except Exception:  # a tool that cannot read the model says so again when it is asked about it
                return None, ""
            expected = model(x)
            if found.shape != expected.shape:
                return math.inf, f"it computes {found.size} outputs, onnxruntime {expected.size}"
            difference = np.abs(found - expected).max()
            allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            if not difference <= allowed:  # also where it is not a number
                return (
                    float(difference),
                    f"its logits differ from onnxruntime's by {difference:.3g}, and at most {allowed:.3g} is accepted",
                )
            largest = max(largest, float(difference))
        return largest, ""


@dataclass(frozen=True, eq=False)
class Question:
    """One instance for one tool, with everything that an answer is checked against.

    Attributes:
        text: the specification as the tool gets it: a copy, because some tools write beside the file.
        version: of VNN-LIB in ``text``.
        file_name: of that copy.
        folder: this question's own, deleted afterwards.
    """

    tool: Tool
    model: Model
    specification: Specification
    text: bytes
    version: str
    file_name: str
    timeout: float
    folder: Path


def ask(question: Question) -> Result:
    """The booked answer.

    ``falsified`` needs a witness that onnxruntime confirms; ``verified`` is tried at a few points. Whatever the tool or
    its plugin does wrong is an ``error`` with a reason.
    """
    asked = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    tool = question.tool

    def refused(reason: Reason, message: str, difference: float | None = None) -> Result:
        return Result("error", "error", reason, message, 0.0, None, difference, None, None, "", asked)

    if question.version not in tool.formats:
        formats = " and ".join(tool.formats)
        return refused("format", f"it reads VNN-LIB {formats}, and the specification is VNN-LIB {question.version}")
    difference, mismatch = tool.compare(question.model, question.specification)
    if mismatch:
        return refused(
            "network-mismatch", f"network-mismatch: {mismatch}; it was not asked about this model", difference
        )
    answer, seconds = _answer(question)
    booked = Result(
        answer.verdict, answer.verdict, "", answer.message, seconds, answer.seconds, difference, None, None,
        answer.log, asked,
    )  # fmt: skip
    if answer.verdict == "falsified":
        digits = getattr(tool.plugin, "witness_digits", None)
        return _replayed(booked, replay(question.model, question.specification, answer.witness, digits))
    if answer.verdict == "verified" and (found := challenge(question.model, question.specification)):
        message = "it says verified, and onnxruntime finds a violation inside the box"
        return replace(booked, verdict="error", reason="refuted", message=message, witness=found.x, outputs=found.y)
    return booked


def _replayed(booked: Result, found: Replay) -> Result:
    if not found.reason:
        return replace(booked, message=found.detail, witness=found.x, outputs=found.y)
    message = f"it says falsified, and {found.detail}"
    return replace(booked, verdict="error", reason=found.reason, message=message, witness=found.x, outputs=found.y)


def _answer(question: Question) -> tuple[Answer, float]:
    """What the plugin returned, made safe, and the time that it took."""
    scratch = question.folder / "scratch"
    scratch.mkdir(parents=True)
    specification = question.folder / question.file_name
    specification.write_bytes(question.text)
    query = Query(question.model.path, specification, question.timeout, scratch)
    began = time.monotonic()
    try:
        answer: Any = question.tool.plugin.verify(query)
    except Exception as error:  # a foreign plugin: anything may come out of it
        answer = Answer("error", message=f"the plugin raised {one_line(error)}")
    finally:
        seconds = time.monotonic() - began
        shutil.rmtree(question.folder, ignore_errors=True)
    return _clean(answer), seconds


def _clean(answer: Any) -> Answer:
    if not isinstance(answer, Answer):
        return Answer("error", message=f"the plugin returned {type(answer).__name__}; it must return an Answer")
    if answer.verdict not in get_args(Verdict):
        return Answer(
            "error", message=f"the plugin returned the verdict {answer.verdict!r}", log=str(answer.log)[-LOG:]
        )
    try:
        seconds = None if answer.seconds is None else float(answer.seconds)
    except (TypeError, ValueError):
        seconds = None
    message = "".join(c if c.isprintable() else "?" for c in " ".join(str(answer.message).split())[:300])
    return replace(answer, seconds=seconds, message=message, log=str(answer.log)[-LOG:].replace("\0", ""))
