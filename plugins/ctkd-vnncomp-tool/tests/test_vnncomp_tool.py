# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Marabou through the three scripts, the standard's test solver as a program, and made-up tools that fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ctkd_vnncomp_tool.options import VnncompToolOptions
from ctkd_vnncomp_tool.verifier import VnncompTool

from ctkd.errors import BadInput, Contradiction
from ctkd.run import verify
from ctkd.testing import conformance, save_tiny_network, tiny_specification
from ctkd.verifying import Answer, Query

MARABOU = Path(__file__).parents[1] / "examples" / "marabou"
BESIDE = Path(sys.executable).parent
has_marabou = bool(shutil.which("Marabou") or (BESIDE / "Marabou").exists())
has_solver = (BESIDE / "vnnlibTestSolver").exists()
needs_marabou = pytest.mark.skipif(not has_marabou, reason="the Marabou program is not installed")
needs_solver = pytest.mark.skipif(not has_solver, reason="vnnlib-test-solver is not installed")

test_marabou_conforms = conformance("verifier", "vnncomp-tool", options={"scripts": str(MARABOU), "witness_digits": 6})
test_unset_conforms = conformance("verifier", "vnncomp-tool")


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``install_tool.sh``: the scripts find the program."""
    monkeypatch.setenv("PATH", str(BESIDE), prepend=":")


def specification_2(high: float) -> str:
    lines = ["(vnnlib-version <2.0>)", "(declare-network f", "    (declare-input X float32 [1,3])"]
    lines += ["    (declare-output Y float32 [1,2])", ")"]
    lines += [f"(assert (>= X[0,{i}] 0.0))\n(assert (<= X[0,{i}] {high}))" for i in range(3)]
    return "\n".join([*lines, "(assert (or (>= Y[0,0] Y[0,1])))"]) + "\n"


def ask(folder: Path, tool: VnncompTool, *, high: float = 1.0, timeout: float = 20.0) -> Answer:
    text = specification_2(high) if tool.formats == ("2.0",) else tiny_specification(high)
    (folder / "spec.vnnlib").write_text(text)
    scratch = folder / f"scratch-{time.monotonic_ns()}"
    scratch.mkdir()
    return tool.verify(Query(save_tiny_network(folder), folder / "spec.vnnlib", timeout, scratch))


def scripts(folder: Path, run: str, prepare: str = "") -> VnncompTool:
    """A tool of made-up scripts; in ``run`` stand ``$5`` for the results file and ``$6`` for the timeout."""
    folder.mkdir(exist_ok=True)
    (folder / "prepare_instance.sh").write_text(prepare + "\n")
    (folder / "run_instance.sh").write_text(run + "\n")
    return VnncompTool(VnncompToolOptions(scripts=folder))


@needs_marabou
def test_marabou_by_its_scripts(tmp_path: Path) -> None:
    tool = VnncompTool(VnncompToolOptions(scripts=MARABOU, tool="Marabou 2.0.0"))
    assert tool.check()["tool"] == "Marabou 2.0.0"
    assert ask(tmp_path, tool, high=0.2).verdict == "verified"
    broken = ask(tmp_path, tool)
    assert broken.verdict == "falsified"
    assert broken.witness is not None
    x = broken.witness
    assert max(x[0] - x[1], 0) >= 0.25 + max(x[2], 0) / 4 - 1e-5


def save_folder(folder: Path, version: str = "1.0") -> Path:
    """Two instances, robust and broken."""
    folder.mkdir()
    model, write = save_tiny_network(folder), tiny_specification if version == "1.0" else specification_2
    for name, high in (("robust", 0.2), ("broken", 1.0)):
        (folder / f"{name}.vnnlib").write_text(write(high))
    rows = [f"{model.name},{name}.vnnlib,20" for name in ("robust", "broken")]
    (folder / "instances.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_paths_with_spaces_and_other_letters(tmp_path: Path) -> None:
    """And a category that is not the default."""
    folder = save_folder(tmp_path / "Prüfung 1 ☃")
    checks = '[ -f "$3" ] && [ -f "$4" ] && [ "$2" = mnist_fc ] && [ "$PWD" = "$(dirname "$5")" ]'
    tool = tmp_path / "mein Löser"
    scripts(tool, f'{checks} && [ -f ready ] && echo unsat > "$5"', '[ "$1 $2" = "v1 mnist_fc" ] && touch ready')
    answer = ask(folder, VnncompTool(VnncompToolOptions(scripts=tool, category="mnist_fc")), high=0.2)
    assert (answer.verdict, answer.message) == ("verified", "")


@needs_marabou
def test_the_example_takes_such_paths(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "Prüfung 1 ☃")
    assert counts(folder, scripts=str(MARABOU), witness_digits=6) == {"verified": 1, "falsified": 1, "error": 0}


def counts(folder: Path, **options: Any) -> dict[str, int]:
    found = verify(folder, ("vnncomp-tool",), settings={f"vnncomp-tool.{k}": v for k, v in options.items()})
    return {verdict: found["verifiers"]["vnncomp-tool"][verdict] for verdict in ("verified", "falsified", "error")}


@needs_marabou
def test_the_command_with_marabou(tmp_path: Path) -> None:
    """`ctkd verify` as users call it."""
    folder = save_folder(tmp_path / "benchmark")
    settings = ("--set", f"vnncomp-tool.scripts={MARABOU}", "--set", "vnncomp-tool.witness_digits=6")
    command = [sys.executable, "-m", "ctkd", "verify", str(folder), "--verifier", "vnncomp-tool", *settings, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verified"], found["falsified"], found["open"]) == (1, 1, 0)


PRETEND = """#!/bin/bash
while [ "$1" != --summary-file ]; do shift; done
"""


@pytest.mark.parametrize(
    ("code", "verdict", "says"),
    [
        ("true", "error", "no verdict in Marabou's summary"),
        (": > $2", "error", "no verdict in Marabou's summary"),
        ("echo maybe 1 2 3 > $2", "error", "no verdict in Marabou's summary: maybe"),
        ("echo unsat 0 1 0 > $2; echo Caught a MarabouError error; exit 1", "error", "Caught a MarabouError error"),
        ("echo UNKNOWN 0 1 0 > $2", "unknown", "it gave up"),
        ("echo TIMEOUT 0 1 0 > $2", "timeout", ""),
        ("sleep 60", "timeout", ""),
    ],
)
def test_the_example_calls_no_failure_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, verdict: str, says: str
) -> None:
    """Nor does it leave anything outside of its folder, also where it is killed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "Marabou").write_text(f"{PRETEND}{code}\n")
    (tmp_path / "bin" / "Marabou").chmod(0o755)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    tool = VnncompTool(VnncompToolOptions(scripts=MARABOU))
    answer = ask(tmp_path, tool, timeout=2.0 if "sleep" in code else 20.0)
    assert answer.verdict == verdict
    assert says in answer.message
    assert list((tmp_path / "tmp").iterdir()) == []


@needs_solver
def test_a_program_that_lies_about_its_witness(tmp_path: Path) -> None:
    config = tmp_path / "solver.toml"
    program = ("vnnlibTestSolver", "--config", str(config))

    def found(name: str, assignments: str) -> dict[str, int]:
        rule = ['[solver]\nname = "Stand-in"\nversion = "7"\n[[rules]]\nmatch = "*"\nresult = "sat"', assignments]
        config.write_text("\n".join(rule) + "\n")
        return counts(save_folder(tmp_path / name, "2.0"), program=program)

    with pytest.warns(UserWarning, match="outside"):  # of the robust instance's box; it breaks the other one
        assert found("one", "assignments = {X = [1, 0, 0], Y = [1, 0.25]}") == {
            "verified": 0,
            "falsified": 1,
            "error": 1,
        }
    with pytest.warns(UserWarning, match="its witness violates nothing"):  # whatever outputs it claims
        assert found("two", "assignments = {X = [0, 0, 0], Y = [9, 0]}") == {"verified": 0, "falsified": 0, "error": 2}


@needs_solver
def test_a_program_of_the_standard(tmp_path: Path) -> None:
    config = tmp_path / "solver.toml"

    def answers(*lines: str) -> None:
        rule = ['[solver]\nname = "Stand-in"\nversion = "7"', "[[rules]]", 'match = "*"', *lines]
        config.write_text("\n".join(rule) + "\n")

    tool = VnncompTool(VnncompToolOptions(program=("vnnlibTestSolver", "--config", str(config))))
    answers('result = "unsat"')
    assert tool.check() == {"Stand-in": "7"}
    for result, verdict in (("unsat", "verified"), ("unknown", "unknown"), ("timed-out", "timeout")):
        answers(f'result = "{result}"')
        assert ask(tmp_path, tool).verdict == verdict
    answers('result = "sat"', "assignments = {X = [1, 0.25, 3e-7], Y = [0, 1]}")
    answer = ask(tmp_path, tool)
    assert answer.verdict == "falsified"
    assert answer.witness is not None
    assert answer.witness.tolist() == [1, 0.25, 3e-7]
    answers('result = "sat"', 'raw_stdout = "perhaps\\n"')
    assert "its result is 'perhaps'" in ask(tmp_path, tool).message
    answers('result = "sat"', "exit_code = 3")
    assert ask(tmp_path, tool).message.startswith("vnnlibTestSolver ended with exit code 3")
    answers('result = "unsat"', "delay_seconds = 30")
    assert ask(tmp_path, tool, timeout=1.0).verdict == "timeout"


@pytest.mark.parametrize(
    ("run", "verdict", "says"),
    [
        ("echo unsat > $5", "verified", ""),
        ("printf 'holds\\r\\n' > $5", "verified", ""),
        ("echo unknown > $5", "unknown", "it gave up"),
        ("echo timed-out > $5", "timeout", ""),
        ("echo error > $5", "error", "it answered error"),
        ("echo maybe > $5", "error", "its result is 'maybe'"),
        ("true > $5", "error", "its result is empty"),
        ("true", "error", "wrote no results file"),
        ("echo unsat > $5; echo out of memory; exit 9", "error", "ended with exit code 9: out of memory"),
        ("echo unsat > $5; kill -9 $$", "error", "ended with signal 9"),
        ("echo unsat > $5; sleep 60", "timeout", ""),
        ("echo sat > $5", "falsified", "it gives no witness"),
        ("printf 'sat\\n((X_0 0.5)\\n (X_2 1))' > $5", "falsified", "its witness cannot be read"),
        ('[ "$1 $2 $6" = "v1 ctkd 3" ] && echo unsat > $5', "verified", ""),
        ("ln -s /proc/self/mem $5", "error", "the results file of run_instance.sh cannot be read"),
        ("mkdir $5", "error", "wrote no results file"),
        ("mkfifo $5", "error", "wrote no results file"),
        ("printf 'SAT\\n' > $5", "falsified", "it gives no witness"),
        ("printf 'error\\nout of memory\\n' > $5", "error", "it answered error 'out of memory'"),
        ("printf '\\xff\\xfe\\x00' > $5", "error", "its result is"),
        ("printf '\\033[31mred\\n'; exit 2", "error", "ended with exit code 2: ?[31mred"),
        ("head -c 3000000 /dev/zero | tr '\\0' 'x'; echo unsat > $5", "verified", ""),
    ],
)
def test_answers_of_scripts(tmp_path: Path, run: str, verdict: str, says: str) -> None:
    answer = ask(tmp_path, scripts(tmp_path / "tool", run), timeout=3.0)
    assert answer.verdict == verdict
    assert says in answer.message
    assert "\n" not in answer.message


@pytest.mark.parametrize(
    ("prepare", "seconds", "verdict", "says"),
    [
        ("echo no licence; exit 4", 600, "error", "prepare_instance.sh ended with exit code 4: no licence"),
        ("sleep 60", 0.5, "error", "ran for more than 0.5 s"),
        ("sleep 60", 600, "timeout", ""),
    ],
)
def test_preparation(tmp_path: Path, prepare: str, seconds: float, verdict: str, says: str) -> None:
    scripts(tmp_path / "tool", "echo unsat > $5", prepare)
    tool = VnncompTool(VnncompToolOptions(scripts=tmp_path / "tool", prepare_seconds=seconds))
    answer = ask(tmp_path, tool, timeout=2.0)
    assert answer.verdict == verdict
    assert says in answer.message


def test_children_of_a_tool_that_hangs_are_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    tool = scripts(tmp_path / "tool", f"setsid sleep 300 & echo $! > {note}; wait")
    assert ask(tmp_path, tool, timeout=1.0).verdict == "timeout"
    assert ended(int(note.read_text()))


def ended(number: int) -> bool:
    return not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_what_must_be_said(tmp_path: Path) -> None:
    for options in ({}, {"scripts": tmp_path, "program": ("x",)}):
        with pytest.raises(BadInput, match="say which tool: --set vnncomp-tool"):
            VnncompTool(VnncompToolOptions(**options)).check()
    with pytest.raises(BadInput, match=r"prepare_instance\.sh cannot be read: No such file"):
        VnncompTool(VnncompToolOptions(scripts=tmp_path)).check()
    with pytest.raises(BadInput, match="'no-such-solver' is not installed"):
        VnncompTool(VnncompToolOptions(program=("no-such-solver",))).check()
    with pytest.raises(BadInput, match="--name ended with exit code 1"):
        VnncompTool(VnncompToolOptions(program=("false",))).check()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("sleep 60", "--name ran for more than 1 s; by VNN-LIB 2.0"),
        ("printf '\\033[31mSOLVER'", r"ended with exit code 0: \?\[31mSOLVER; by VNN-LIB 2.0"),
        ("head -c 300 /dev/zero | tr '\\0' x", "ended with exit code 0: x{200}; by"),
        ("[ $1 = --name ] && echo SOLVER", "--version ended with exit code 1; by VNN-LIB 2.0"),
        ("true", "--name ended with exit code 0; by VNN-LIB 2.0"),
    ],
)
def test_a_program_that_does_not_say_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    monkeypatch.setattr("ctkd_vnncomp_tool.verifier.ASKING", 1.0)
    path = tmp_path / "solver"
    path.write_text(f"#!/bin/bash\n{code}\n")
    path.chmod(0o755)
    with pytest.raises(BadInput, match=says) as problem:
        VnncompTool(VnncompToolOptions(program=(str(path),))).check()
    assert str(problem.value).isprintable()


def test_how_a_program_is_asked(tmp_path: Path) -> None:
    """By the name that the specification gives the network; not by one in a comment."""
    folder = save_folder(tmp_path / "mit Leerzeichen", "2.0")
    path = folder / "robust.vnnlib"
    path.write_text(f"; (declare-network g\n{path.read_text()}")
    solver = tmp_path / "solver"
    wanted = f"verify {path} --network f={folder}/net.onnx --timeout 3"
    solver.write_text(f'#!/bin/bash\n[ "$*" = "{wanted}" ] && [ $# = 6 ] && echo unsat\n')
    solver.chmod(0o755)
    tool = VnncompTool(VnncompToolOptions(program=(str(solver),)))
    answer = tool.verify(Query(folder / "net.onnx", path, 2.5, tmp_path))
    assert (answer.verdict, answer.message) == ("verified", "")


def test_scripts_that_change_are_another_tool(tmp_path: Path) -> None:
    versions = [scripts(tmp_path / "tool", run).check() for run in ("echo unsat > $5", "echo unknown > $5")]
    versions.append(scripts(tmp_path / "tool", "echo unknown > $5", "true").check())
    assert len({each["scripts"] for each in versions}) == 3


def test_preparing_takes_its_part_of_the_time(tmp_path: Path) -> None:
    """What it leaves running is ended before the other script runs."""
    note = tmp_path / "pid"
    tool = scripts(tmp_path / "tool", "echo unsat > $5; echo $6", f"setsid sleep 300 & echo $! > {note}; sleep 1.2")
    answer = ask(tmp_path, tool, timeout=30.0)
    assert answer.verdict == "verified"
    assert int(answer.log) <= 29
    assert ended(int(note.read_text()))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_folder_of_instances(tmp_path: Path, version: str) -> None:
    """Through ctkd: what is true is booked, what is a lie is an error."""
    folder = save_folder(tmp_path / "benchmark", version)
    truth = (
        "case $4 in *robust*) echo unsat > $5 ;; "
        "*) printf 'sat\\n((X_0 1.0)\\n (X_1 0.0)\\n (X_2 0.0)\\n (Y_0 1.0)\\n (Y_1 0.25))\\n' > $5 ;; esac"
    )
    tool = tmp_path / "tool"
    scripts(tool, truth)
    assert counts(folder, scripts=str(tool), vnnlib=version) == {"verified": 1, "falsified": 1, "error": 0}
    other = save_folder(tmp_path / "other", version)
    scripts(tool, "printf 'sat\\nX float32 [1,3]\\n0.0\\n0.0\\n0.0\\n' > $5")
    with pytest.warns(UserWarning, match="its witness violates nothing"):
        found = counts(other, scripts=str(tool), vnnlib=version)
    assert found == {"verified": 0, "falsified": 0, "error": 2}


def test_rounded_witnesses(tmp_path: Path) -> None:
    """One that rounding moved out of the box is moved back, where the option says that it was rounded."""
    folder = save_folder(tmp_path / "benchmark")
    path = folder / "broken.vnnlib"
    path.write_text(path.read_text().replace("(>= X_0 0.0)", "(>= X_0 0.3333334)"))
    (folder / "instances.csv").write_text("net.onnx,broken.vnnlib,20\n")
    scripts(tmp_path / "tool", "printf 'sat\\n((X_0 0.333333) (X_1 0.0) (X_2 0.0))' > $5")
    found = counts(folder, scripts=str(tmp_path / "tool"), witness_digits=6)
    assert found == {"verified": 0, "falsified": 1, "error": 0}
    with pytest.warns(UserWarning, match="its witness is outside of the box by 4e-07"):
        assert counts(folder, scripts=str(tmp_path / "tool"))["error"] == 1


def test_two_tools_by_labels(tmp_path: Path) -> None:
    """In one call: they agree, and then they do not."""
    folder = save_folder(tmp_path / "benchmark")
    scripts(tmp_path / "one", "echo unsat > $5")
    scripts(tmp_path / "two", "case $4 in *robust*) echo unsat > $5 ;; *) echo unknown > $5 ;; esac")
    names = ("vnncomp-tool:a", "vnncomp-tool:b")
    settings = {f"{name}.scripts": str(tmp_path / each) for name, each in zip(names, ("one", "two"), strict=True)}
    (folder / "instances.csv").write_text("net.onnx,robust.vnnlib,20\n")
    found = verify(folder, names, settings=settings)
    assert [found["verifiers"][name]["verified"] for name in names] == [1, 1]
    scripts(tmp_path / "two", "printf 'sat\\n((X_0 0) (X_1 0) (X_2 9))' > $5")
    with pytest.warns(UserWarning, match="vnncomp-tool:b.*its witness is outside of the box by 8.8"):
        found = verify(folder, names, settings=settings)
    assert [found["verifiers"][name]["error"] for name in names] == [0, 1]


def test_two_tools_by_two_calls(tmp_path: Path) -> None:
    """Each is stored with its own options, and they are held against each other."""
    folder = save_folder(tmp_path / "benchmark")
    scripts(
        tmp_path / "one", "printf 'sat\\n((X_0 1) (X_1 0) (X_2 0))' > $5; case $4 in *robust*) echo unsat > $5 ;; esac"
    )
    scripts(tmp_path / "two", "echo unsat > $5")
    out = tmp_path / "answers.sqlite"

    def call(name: str) -> None:
        settings = {"vnncomp-tool.scripts": str(tmp_path / name), "vnncomp-tool.tool": name}
        verify(folder, ("vnncomp-tool",), settings=settings, out=out)

    call("one")
    with pytest.warns(UserWarning, match="it says verified"), pytest.raises(Contradiction):
        call("two")
    (evidence,) = tmp_path.glob("contradictions/instance-*/contradiction.json")
    answers = json.loads(evidence.read_text())["answers"]
    assert [(each["versions"]["tool"], each["said"]) for each in answers] == [("one", "falsified"), ("two", "verified")]
