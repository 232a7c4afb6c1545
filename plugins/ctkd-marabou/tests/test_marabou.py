# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The real program, and made-up ones that fail in the ways programs do."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from ctkd_marabou.options import MarabouOptions
from ctkd_marabou.verifier import Marabou
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ctkd.errors import BadInput, RunFailed
from ctkd.run import verify
from ctkd.testing import conformance, save_tiny_network, tiny_specification
from ctkd.verifying import Answer, Query

try:
    VERSION = Marabou(MarabouOptions()).check()
except BadInput:
    VERSION = {}
needs_marabou = pytest.mark.skipif(not VERSION, reason="the Marabou program is not installed")

test_marabou_conforms = conformance("verifier", "marabou")


def save(path: Path, *layers: tuple[str, list[NDArray[np.float32]]]) -> Path:
    """A chain of nodes, each with its weights; three inputs, two outputs."""
    nodes, weights, name = [], [], "x"
    for k, (kind, arrays) in enumerate(layers):
        names = [f"w{k}_{i}" for i in range(len(arrays))]
        weights += [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)]
        target = "y" if k == len(layers) - 1 else f"h{k}"
        extra = {"transB": 1} if kind == "Gemm" else {}
        nodes.append(helper.make_node(kind, [name, *names], [target], **extra))
        name = target
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def gemm(rows: list[list[float]], bias: list[float]) -> tuple[str, list[NDArray[np.float32]]]:
    return "Gemm", [np.array(rows, np.float32), np.array(bias, np.float32)]


RELU: tuple[str, list[NDArray[np.float32]]] = ("Relu", [])


def network(folder: Path) -> Path:
    """y0 = relu(x0 - x1), y1 = 0.25 + relu(x2) / 4; x in [0, 1] gives y1 in [0.25, 0.5]."""
    first = gemm([[1, -1, 0], [0, 0, 1]], [0, 0])
    return save(folder / "net.onnx", first, RELU, gemm([[1, 0], [0, 0.25]], [0, 0.25]))


def ask(
    folder: Path,
    model: Path,
    property_text: str,
    *,
    high: float = 1.0,
    verifier: Marabou | None = None,
    timeout: float = 20.0,
) -> Answer:
    lines = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0", "Y_1")]
    lines += [f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} {high}))" for i in range(3)]
    (folder / "spec.vnnlib").write_text("\n".join([*lines, property_text]) + "\n")
    scratch = folder / f"scratch-{len(list(folder.iterdir()))}"
    scratch.mkdir()
    return (verifier or Marabou(MarabouOptions())).verify(Query(model, folder / "spec.vnnlib", timeout, scratch))


@needs_marabou
def test_both_verdicts(tmp_path: Path) -> None:
    model = network(tmp_path)
    robust = ask(tmp_path, model, "(assert (>= Y_0 Y_1))", high=0.2)  # y0 <= 0.2 < 0.25 <= y1
    assert (robust.verdict, robust.witness) == ("verified", None)
    broken = ask(tmp_path, model, "(assert (>= Y_0 Y_1))")
    assert broken.verdict == "falsified"
    assert broken.witness is not None
    x = broken.witness
    assert x.shape == (3,)
    assert max(x[0] - x[1], 0) >= 0.25 + max(x[2], 0) / 4 - 1e-5
    assert "Input assignment:" in broken.log


@needs_marabou
def test_its_outputs_are_those_of_the_network(tmp_path: Path) -> None:
    model = network(tmp_path)
    for x in ([0.75, 0.25, 0.5], [0.1, 0.9, 0.0], [1.0, 0.0, 1.0]):
        expected = [max(x[0] - x[1], 0), 0.25 + x[2] / 4]
        assert Marabou(MarabouOptions()).outputs(model, np.array(x)) == pytest.approx(expected, abs=2e-6)


@needs_marabou
def test_what_it_cannot_read_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    model = save(tmp_path / "div.onnx", ("Div", [np.full((1, 3), 2, np.float32)]), gemm([[1, 0, 0], [0, 1, 0]], [0, 0]))
    answer = ask(tmp_path, model, "(assert (>= Y_0 Y_1))")
    assert answer.verdict == "error"
    assert "Onnx operation Div not currently supported" in answer.message
    with pytest.raises(RunFailed, match=r"Marabou does not evaluate div\.onnx"):
        Marabou(MarabouOptions()).outputs(model, np.zeros(3))
    answer = ask(tmp_path, network(tmp_path), "(assert (< Y_0 Y_1))")
    assert answer.verdict == "error"


@needs_marabou
def test_a_broadcast_constant_shows_in_its_outputs(tmp_path: Path) -> None:
    """It reads memory that it should not, without a message: the reason why ctkd compares networks."""
    shift = ("Add", [np.full((1, 1), 0.5, np.float32)])
    model = save(tmp_path / "add.onnx", shift, gemm([[1, 0, 0], [0, 1, 0]], [0, 0]))
    found = []
    for _ in range(2):
        try:
            found.append(Marabou(MarabouOptions()).outputs(model, np.array([0.25, 0.5, 0.0])))
        except RunFailed:
            continue
    right = [y.shape == (2,) and np.allclose(y, [0.75, 1.0], atol=1e-4) for y in found]
    assert not all(right) or not found


@needs_marabou
def test_large_constants_are_refused(tmp_path: Path) -> None:
    """With 1e7 it was seen to prove what is false."""
    answer = ask(tmp_path, network(tmp_path), "(assert (<= Y_0 10000000.0))")
    assert answer.verdict == "error"
    assert "a number of 1e+07; beyond 100000 Marabou errs silently" in answer.message


@needs_marabou
def test_narrow_boxes_are_refused(tmp_path: Path) -> None:
    """It takes what varies by 1e-5 for constant, and proves what is false: y1 is 0.25, and never above 1."""
    model = network(tmp_path)
    answer = ask(tmp_path, model, "(assert (<= Y_1 1.0))", high=0.000001)
    assert (answer.verdict, answer.witness) == ("error", None)
    assert "an input that varies by 1e-06; up to 1e-05 Marabou errs silently: it was not asked" in answer.message
    assert ask(tmp_path, model, "(assert (<= Y_1 1.0))", high=0.0).verdict == "falsified"
    narrow = tmp_path / "spec.vnnlib"
    narrow.write_text(re.sub(r"(<= X_\d) 0\.0", r"\1 0.000001", narrow.read_text()))
    wrong = Marabou(MarabouOptions())._ask(model, narrow, 20.0, tmp_path)
    assert wrong.verdict == "verified"


@needs_marabou
def test_neurons_that_hardly_vary_are_constant_to_it(tmp_path: Path) -> None:
    """A wrong proof that no plugin can see; the README says so. y0 is x0, by way of a neuron between 0 and 1e-6."""
    small = gemm([[1e-6, 0, 0], [0, 0, 1]], [0, 0])
    model = save(tmp_path / "small.onnx", small, RELU, gemm([[1e6, 0], [0, 0.25]], [0, 0]))
    assert ask(tmp_path, model, "(assert (>= Y_0 0.5))").verdict == "verified"


HALVES = "(and (<= X_0 0.2) (>= Y_0 0.9)) (and (>= X_0 0.5) (<= X_0 0.8) (>= Y_0 0.7))"


@needs_marabou
@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("(assert (>= Y_0 Y_1)) ; (assert (<= Y_1 0.0))", "falsified"),  # behind text it reads comments, too
        (f"(assert (or {HALVES})) ; (assert (<= Y_1 0.0))", "falsified"),
        (f"(assert (or {HALVES.replace('0.7', '0.85')}))", "verified"),
        ("(assert (>= (- Y_0 Y_1) 0.9))", "verified"),
        ("(assert (<= X_0 0.1))\n(assert (<= X_0 1.0))\n(assert (>= Y_0 Y_1))", "verified"),  # the last one counts
        ("(assert (>= Y_0 0.5e+00))", "falsified"),  # it reads no such sign
    ],
)
def test_forms_that_it_reads_wrongly_or_not_are_written_anew(tmp_path: Path, text: str, verdict: str) -> None:
    answer = ask(tmp_path, network(tmp_path), text)
    assert (answer.verdict, answer.message) == (verdict, "")


@needs_marabou
def test_further_arguments_reach_it(tmp_path: Path) -> None:
    verifier = Marabou(MarabouOptions(arguments=("--snc", "--num-workers", "1")))
    assert ask(tmp_path, network(tmp_path), "(assert (>= Y_0 Y_1))", high=0.2, verifier=verifier).verdict == "verified"
    verifier = Marabou(MarabouOptions(arguments=("--no-such-option",)))
    answer = ask(tmp_path, network(tmp_path), "(assert (>= Y_0 Y_1))", verifier=verifier)
    assert answer.verdict == "error"


def program(folder: Path, code: str) -> Marabou:
    """A program in the place of Marabou."""
    path = folder / "Pretend"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nsummary = sys.argv[sys.argv.index('--summary-file') + 1]\n{code}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Marabou(MarabouOptions(program=str(path)))


PRINTS = "open(summary, 'w').write('sat 0 1 0'); print('Input assignment:'); "
CASES = {
    "sys.exit(3)": ("error", "it ended with exit code 3 and the summary ''"),
    "": ("error", "it ended with exit code 0 and the summary ''"),
    "open(summary, 'w').write('maybe 1 2 3')": ("error", "it ended with exit code 0 and the summary 'maybe 1 2 3'"),
    "open(summary, 'w').write('unsat 0 1 0'); sys.exit(1)": (
        "error",
        "it ended with exit code 1 and the summary 'unsat 0 1 0'",
    ),
    "print('Network: /tmp/errors/net.onnx'); sys.exit(3)": ("error", "it ended with exit code 3 and the summary ''"),
    "print('Network: error'); print('RuntimeError: no'); sys.exit(1)": ("error", "RuntimeError: no"),
    "print('an error'); print('MarabouError 1', file=sys.stderr); sys.exit(1)": ("error", "MarabouError 1"),
    "os.kill(os.getpid(), 9)": ("error", "it ended with signal 9 and the summary ''"),
    "print('Caught a MarabouError error. Code: 105'); sys.exit(1)": ("error", "Caught a MarabouError error. Code: 105"),
    "open(summary, 'w').write('UNKNOWN 0 1 0')": ("unknown", "it gave up"),
    "open(summary, 'w').write('TIMEOUT 0 1 0')": ("timeout", ""),
    "open(summary, 'w').write('unsat 0 1 0')": ("verified", ""),
    "print('unsat'); open(summary, 'w').write('sat')": ("falsified", ""),
}


@pytest.mark.parametrize("code", CASES)
def test_verdicts_come_from_the_summary_and_a_good_end(tmp_path: Path, code: str) -> None:
    answer = ask(tmp_path, network(tmp_path), "(assert (>= Y_0 Y_1))", verifier=program(tmp_path, code))
    assert (answer.verdict, answer.message) == CASES[code]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["x0 = 0.5", "x1 = -0.000000", "x2 = 1e-05"], [0.5, 0.0, 1e-5]),
        (["x0 = 0.5", "x2 = 1"], []),
        (["x0 = 0.5", "x1 = garbage", "x2 = 1"], []),
        ([], []),
    ],
)
def test_witnesses_are_read_whole_or_not_at_all(tmp_path: Path, lines: list[str], expected: list[float]) -> None:
    code = PRINTS + "; ".join(f"print('\\t{line}')" for line in lines)
    answer = ask(tmp_path, network(tmp_path), "(assert (>= Y_0 Y_1))", verifier=program(tmp_path, code))
    assert answer.verdict == "falsified"
    assert answer.witness is not None
    assert answer.witness.tolist() == expected


@pytest.mark.parametrize(("timeout", "seconds"), [(0.1, 1), (2.0, 2), (2.5, 3), (1e12, 2**31 - 1)])
def test_it_gets_whole_seconds(tmp_path: Path, timeout: float, seconds: int) -> None:
    """Never fewer, so that it does not give up early; and no more than it can read."""
    code = "open(summary, 'w').write('UNKNOWN'); print('for', sys.argv[sys.argv.index('--timeout') + 1])"
    verifier = program(tmp_path, code if timeout > 1 else f"{code}; time.sleep(60)")
    answer = ask(tmp_path, network(tmp_path), "(assert (>= Y_0 Y_1))", verifier=verifier, timeout=timeout)
    assert answer.verdict == ("unknown" if timeout > 1 else "timeout")
    assert f"for {seconds}\n" in answer.log or timeout < 1


def test_it_is_ended_with_its_children(tmp_path: Path) -> None:
    """Whatever it wrote until then."""
    note = tmp_path / "child"
    child = "import subprocess; child = subprocess.Popen(['sleep', '300'], start_new_session=True); "
    child += f"open({str(note)!r}, 'w').write(str(child.pid)); "
    code = f"{child} open(summary, 'w').write('unsat 0 1 0'); time.sleep(60)"
    answer = ask(tmp_path, network(tmp_path), "(assert (>= Y_0 Y_1))", verifier=program(tmp_path, code), timeout=2.0)
    assert (answer.verdict, answer.message) == ("timeout", "")
    state = Path(f"/proc/{note.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_outputs_of_a_program_that_denies_what_holds(tmp_path: Path) -> None:
    """No number, so that they differ from onnxruntime's."""
    denies = program(tmp_path, "open(summary, 'w').write('unsat 0 1 0')")
    assert np.isnan(denies.outputs(network(tmp_path), np.zeros(3))).all()
    gives_up = program(tmp_path, "open(summary, 'w').write('UNKNOWN 0 1 0')")
    with pytest.raises(RunFailed, match=r"does not evaluate net\.onnx: it gave up"):
        gives_up.outputs(network(tmp_path), np.zeros(3))


ROUNDS = """
if "--version" in sys.argv:
    sys.exit(print("Marabou version 2.0.0"))
if "point.vnnlib" in " ".join(sys.argv):
    sys.exit("it cannot be asked for its outputs")
open(sys.argv[sys.argv.index("--summary-file") + 1], "w").write("sat 0 1 0")
print("x0 = 0.333333\\nx1 = 0.000000\\nx2 = 0.000000")
"""


def test_witnesses_have_six_decimals(tmp_path: Path) -> None:
    """Through ctkd: one that rounding moved out of the box is moved back."""
    model, specification = save_tiny_network(tmp_path), tmp_path / "spec.vnnlib"
    specification.write_text(tiny_specification(1.0).replace("(>= X_0 0.0)", "(>= X_0 0.3333334)"))
    path = tmp_path / "Pretend"
    path.write_text(f"#!{sys.executable}\nimport sys\n{ROUNDS}")
    path.chmod(0o755)
    found = verify(model, ("marabou",), specification=specification, settings={"marabou.program": str(path)})
    assert found["verifiers"]["marabou"]["falsified"] == 1


def test_it_is_found_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment that is not activated."""
    program(tmp_path, "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert Marabou(MarabouOptions(program="Pretend")).program == str(tmp_path / "Pretend")


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Marabou(MarabouOptions(program="~/Pretend")).program == str(tmp_path / "Pretend")


def test_how_to_get_it_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'no-such-marabou' is not installed: pip install maraboupy==2\.0\.0"):
        Marabou(MarabouOptions(program="no-such-marabou")).check()
    path = tmp_path / "other"
    path.write_text(f"#!{sys.executable}\nprint('another program')\n")
    path.chmod(0o755)
    with pytest.raises(BadInput, match="does not name a version of Marabou"):
        Marabou(MarabouOptions(program=str(path))).check()
    path.write_text("#!/no/such/interpreter\n")
    with pytest.raises(BadInput, match="cannot be started"):
        Marabou(MarabouOptions(program=str(path))).check()
