# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Asks every tool about every instance, several at a time, and records each answer as it comes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

from ctkd.errors import BadInput, CtkdError, Interrupted, RunFailed
from ctkd.interrupt import StopRequest
from ctkd.programs import stopped_by
from ctkd.progress import Reporter
from ctkd.verify.asking import Question, Tool, ask
from ctkd.verify.conflicts import conflict, stop
from ctkd.verify.instances import Instance
from ctkd.verify.model import Model
from ctkd.verify.store import Answers, Result
from ctkd.vnnlib import Specification, parse_specification
from ctkd.vnnlib.read import read_unpacked

TICK = 0.2
"""Seconds between two looks at a request to stop."""
WRITTEN = ("1.0", "2.0")
"""Versions of VNN-LIB that a specification which is no file can be written in; the first one identifies it."""


@dataclass(eq=False)
class Prepared:
    """An instance whose files were read. ``number`` is its id in the store."""

    instance: Instance
    model: Model
    text: bytes
    number: int

    @cached_property
    def specification(self) -> Specification:
        """Raises: BadInput if it cannot be read, or is about a network of other sizes."""
        found = parse_specification(self.text.decode(errors="replace"))
        self.model.check_fits(found)
        return found

    def text_for(self, tool: Tool) -> tuple[bytes, str]:
        """The specification in the version that a tool likes best, where there is a choice."""
        if isinstance(self.instance.specification, Path):
            return self.text, self.specification.version
        version = next((each for each in tool.formats if each in WRITTEN), WRITTEN[0])
        return self.instance.specification(version).encode(), version


@dataclass(eq=False)
class Driver:
    """The work on one list of instances.

    Attributes:
        retry: whether stored errors are asked again.
        evidence: the folder that gets ``contradictions/``.
        unusable: instances that nobody can be asked about, and why; filled while it works.
    """

    tools: Sequence[Tool]
    answers: Answers
    jobs: int
    retry: bool
    evidence: Path
    reporter: Reporter
    stop: StopRequest
    unusable: dict[str, str] = field(default_factory=dict)
    numbers: dict[int, Instance] = field(default_factory=dict)
    """The instances by their ids in the store."""
    samples: dict[int, list[int]] = field(default_factory=dict)
    """By such an id, the samples that it stands for: several where an image comes more than once."""

    def __post_init__(self) -> None:
        self._ids = [
            self.answers.verifier(tool.name, tool.options.model_dump(mode="json"), tool.versions) for tool in self.tools
        ]
        self._failed = False
        self._asked = 0
        self._running: dict[Future[Result | None], tuple[Prepared, int]] = {}
        self._models: dict[Path, Model] = {}
        self._warned: set[tuple[int, str, str]] = set()

    def __enter__(self) -> Driver:
        self._stack = ExitStack()
        scratch = tempfile.TemporaryDirectory(prefix="ctkd-verify-", ignore_cleanup_errors=True)
        self._scratch = Path(self._stack.enter_context(scratch))
        self._pool = self._stack.enter_context(ThreadPoolExecutor(self.jobs))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._failed = self._failed or kind is not None  # programs that still run are ended
        self._stack.close()

    @property
    def ids(self) -> dict[str, int]:
        """The tools' ids in the store."""
        return {tool.name: number for tool, number in zip(self.tools, self._ids, strict=True)}

    def run(self, instances: Sequence[Instance]) -> int:
        """Ask what is not stored yet; returns how many answers came.

        Raises:
            Contradiction: an instance has two answers that cannot both be true, now or from before.
            Interrupted: a signal came. All answers before it are stored.
            RunFailed: an answer cannot be stored, or a question cannot be written.
        """
        self.reporter.begin(f"asking {', '.join(self.ids)}", len(instances) * len(self.tools))
        try:
            for instance in instances:
                self._submit(instance)
                self._check_stop()
            while self._running:
                self._collect()
                self._check_stop()
        except BaseException:
            self._failed = True
            while self._running:  # ended by now; what they settled before is not lost
                self._drain()
            raise
        finally:
            self.reporter.end()
        return self._asked

    def _submit(self, instance: Instance) -> None:
        prepared = self._prepare(instance)
        if prepared is None:
            self.reporter.advance(len(self.tools))
            return
        stored = {(each.verifier, each.timeout): each.result for each in self.answers.answers(prepared.number)}
        self._check_conflict(prepared)
        for k, number in enumerate(self._ids):
            known = stored.get((number, instance.timeout))
            if known is not None and not (self.retry and known.verdict == "error"):
                self.reporter.advance()
                continue
            question = self._question(prepared, self.tools[k])
            if question is None:
                self.reporter.advance(len(self.tools) - k)
                return
            while len(self._running) >= self.jobs:
                self._collect()
                self._check_stop()
            self._running[self._pool.submit(self._ask, question)] = (prepared, k)

    def _prepare(self, instance: Instance) -> Prepared | None:
        try:
            model = self._model(instance.model)
            if isinstance(instance.specification, Path):
                text = read_unpacked(instance.specification)
            else:
                text = instance.specification(WRITTEN[0]).encode()
        except BadInput as problem:
            self._refuse(instance, problem)
            return None
        number = self.answers.instance(model.digest, hashlib.sha256(text).hexdigest(), instance.name, instance.sample)
        self.numbers[number] = instance
        if instance.sample is not None:
            self.samples.setdefault(number, []).append(instance.sample.index)
        return Prepared(instance, model, text, number)

    def _model(self, path: Path) -> Model:
        if path not in self._models:
            self._models.clear()  # instances of one network follow each other
            self._models[path] = Model(self._plain(path) if path.suffix == ".gz" else path)
        return self._models[path]

    def _plain(self, path: Path) -> Path:
        """Unpacked, for tools: a folder for each, because files of different folders may have the same name."""
        folder = Path(tempfile.mkdtemp(prefix="model-", dir=self._scratch))
        (folder / path.stem).write_bytes(read_unpacked(path))
        return folder / path.stem

    def _question(self, prepared: Prepared, tool: Tool) -> Question | None:
        try:
            specification = prepared.specification
            text, version = prepared.text_for(tool)
        except BadInput as problem:
            self._refuse(prepared.instance, problem)
            return None
        self._asked += 1
        return Question(
            tool,
            prepared.model,
            specification,
            text,
            version,
            Path(prepared.instance.row[1]).name.removesuffix(".gz"),
            prepared.instance.timeout,
            self._scratch / f"question-{self._asked}",
        )

    def _refuse(self, instance: Instance, problem: BadInput) -> None:
        self.unusable[instance.name] = str(problem)
        self.reporter.warn(f"{instance.name} cannot be used: {problem}")

    def _ask(self, question: Question) -> Result | None:
        """In a thread. None where the answer was cut short."""
        with stopped_by(self._halted):
            result = ask(question)
        settled = result.verdict in ("verified", "falsified") or result.reason == "refuted"
        return None if self._halted() and not settled else result

    def _halted(self) -> bool:
        return self._failed or bool(self.stop)

    def _collect(self) -> None:
        """Record what has been answered; returns soon, whether or not something was."""
        for future in wait(self._running, TICK, FIRST_COMPLETED).done:
            self._finish(future)

    def _drain(self) -> None:
        """Record what is left, whatever else goes wrong: there is an error to report already."""
        for future in wait(self._running).done:
            try:
                self._finish(future)
            except CtkdError:
                continue

    def _finish(self, future: Future[Result | None]) -> None:
        prepared, k = self._running.pop(future)
        try:
            result = future.result()
        except BadInput as problem:  # onnxruntime fails at it
            self._refuse(prepared.instance, problem)
            return
        except OSError as error:
            raise RunFailed(
                f"a question could not be written to {self._scratch} ({error.strerror}); all answers so far are kept"
            ) from None
        if result is None:
            return
        self.answers.add(prepared.number, self._ids[k], prepared.instance.timeout, result)
        self.reporter.advance()
        self._warn(prepared, k, result)
        self._check_conflict(prepared)

    def _warn(self, prepared: Prepared, k: int, result: Result) -> None:
        """What is wrong; what is true of a whole model or tool once, and so the first error of a tool's own."""
        name, where = self.tools[k].name, prepared.instance.name
        mismatch = result.reason == "network-mismatch"
        once = (k, result.reason, prepared.model.digest if mismatch else "")
        if result.verdict != "error" or once in self._warned:
            return
        if result.reason in ("", "format", "network-mismatch"):
            self._warned.add(once)
            where = prepared.instance.row[0] if mismatch else "among others " + where
        said = "" if result.reason else "it says error: "
        self.reporter.warn(f"{name}, {where}: {said}{result.message or 'without a reason; its log is stored'}")

    def _check_conflict(self, prepared: Prepared) -> None:
        found = conflict(self.answers.answers(prepared.number), prepared.instance.sample)
        if found:
            raise stop(
                found,
                prepared.instance,
                prepared.number,
                prepared.model.path,
                prepared.text,
                self.answers,
                self.evidence,
            )

    def _check_stop(self) -> None:
        if self.stop.signal_number is not None:
            raise Interrupted(
                "interrupted; all answers so far are stored. The same command goes on", self.stop.signal_number
            )
