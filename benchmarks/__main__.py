# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``python -m benchmarks``: needs the repository, and auto_LiRPA for what it is compared with."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.cases import BATCHES, MODELS, PRECISIONS, RADII, SHAPES, STEPS, Case, model_layers


class Misuse(click.ClickException):
    """One line, exit 2."""

    exit_code = 2


class Names(click.ParamType[Any]):
    """A name out of several, or several separated by commas."""

    name = "names"

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        names = [name.strip() for name in value.split(",") if name.strip()]
        for name in names:
            if name not in self.choices:
                close = difflib.get_close_matches(name, self.choices, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                self.fail(f"{name!r} is unknown: {hint}accepted: {', '.join(self.choices)}", param, ctx)
        return names


def names(flag: str, choices: Sequence[str], default: Sequence[str], text: str) -> Any:
    """A repeatable option that also takes commas."""
    return click.option(
        flag,
        type=Names(choices),
        multiple=True,
        default=[list(default)],
        show_default=", ".join(default),
        help=f"{text} ({', '.join(choices)}; repeatable).",
    )


def flat(given: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for part in given for name in part))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else.")
threads_option = click.option(
    "--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads of each contender."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """How fast ctkd is, beside auto_LiRPA and beside what the machine can do. docs/results/speed.md says how."""


@cli.command()
@names("--step", STEPS, STEPS, "Training step")
@names("--model", MODELS, MODELS, "Network")
@names("--data", tuple(SHAPES), tuple(SHAPES), "Shape of the images")
@names("--precision", PRECISIONS, ("fp32",), "Of ctkd; peers compute in fp32")
@names("--against", ("autolirpa", "autolirpa-backend", "ctrain", "nothing"), ("autolirpa",), "Peers")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Samples of each contender.")
@click.option("--batch", type=click.IntRange(2), help="Images [default: 256 for mnist, 128 for cifar10].")
@click.option("--width", type=click.IntRange(1), help="Channels of the first layer [default: the published network's].")
@click.option("--eps", type=float, help="Radius [default: 0.1 for mnist, 2/255 for cifar10].")
@click.option("--python", type=click.Path(), help="Interpreter for ctrain [default: this one].")
@click.option(
    "--path", multiple=True, type=click.Path(), help="Folder that ctrain's interpreter also imports from; repeatable."
)
@click.option(
    "--set", "given", multiple=True, metavar="KEY=VALUE", help="Training option of ctkd, such as l1=0; repeatable."
)
@click.option("--floor/--no-floor", "floor", default=True, help="Measure each layer's rate.")
@click.option("--check/--no-check", "check", default=True, help="Compare losses and gradients first.")
@click.option("--guard/--no-guard", "guard", default=True, help="Take a sample again that other processes disturbed.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@threads_option
@as_json
def step(
    step: Any, model: Any, data: Any, precision: Any, against: Any, rounds: int, batch: int | None, width: int | None,
    eps: float | None, python: str | None, path: tuple[str, ...], given: tuple[str, ...], floor: bool, check: bool,
    guard: bool, device: str, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Time one full training step, ctkd's and its peers' in turn.

    \b
    python -m benchmarks step --model cnn7 --data cifar10 --step ibp --precision fp32,bf16 --json > step.json
    """
    from benchmarks import output
    from benchmarks import step as steps
    from benchmarks.process import Entrant

    _check_device(device)
    options = dict(_setting(text) for text in given)
    ours = [Entrant("ctkd", name, given=options) for name in flat(precision)]
    peers = [
        Entrant(name, python=python or sys.executable, path=path) if name == "ctrain" else Entrant(name)
        for name in flat(against)
        if name != "nothing"
    ]
    results = []
    for shape in flat(data):
        for network in flat(model):
            for method in flat(step):
                layers = model_layers(network, SHAPES[shape], width=width)
                size, radius = batch or BATCHES[shape], eps if eps is not None else RADII[shape]
                case = Case(method, network, layers, SHAPES[shape], size, radius, device=device)
                result = steps.run(case, ours, peers, rounds, threads, check=check, guard=guard)
                if floor:
                    steps.add_floor(result, case, ours, threads)
                results.append(result)
    if as_json:
        output.print_json(output.document(results, rounds=rounds, threads=threads, guard=guard))
    else:
        steps.show(results)


@cli.command()
@names("--model", MODELS, ("cnn-small",), "Network")
@names("--data", tuple(SHAPES), ("mnist",), "Shape of the images")
@names("--stage", ("ibp", "crown-ibp", "crown"), ("ibp", "crown-ibp", "crown"), "Stage")
@names("--dtype", ("float64", "float32"), ("float64", "float32"), "Arithmetic of the bounds")
@click.option("--samples", default=128, show_default=True, type=click.IntRange(1), help="Of the cheap stages.")
@click.option("--crown-samples", default=8, show_default=True, type=click.IntRange(1), help="Of the stage crown.")
@click.option("--width", type=click.IntRange(1), help="Channels of the first layer [default: the published network's].")
@click.option("--eps", type=float, help="Radius [default: 0.1 for mnist, 2/255 for cifar10].")
@click.option(
    "--epochs", default=6, show_default=True, type=click.IntRange(1), help="Of IBP training before, on enlarged digits."
)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Samples of each contender.")
@click.option("--guard/--no-guard", "guard", default=True, help="Take a sample again that other processes disturbed.")
@threads_option
@as_json
def certify(
    model: Any, data: Any, stage: Any, dtype: Any, samples: int, crown_samples: int, width: int | None,
    eps: float | None, epochs: int, rounds: int, guard: bool, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Samples per second of the certification stages, beside auto_LiRPA used directly."""
    import torch

    from benchmarks import certify as stages
    from benchmarks import output
    from benchmarks.contenders.autolirpa import load

    load()  # refused before anything is trained
    torch.set_num_threads(threads)
    results = []
    counts = {"ibp": samples, "crown-ibp": samples, "crown": crown_samples}
    for shape in flat(data):
        for network in flat(model):
            layers = model_layers(network, SHAPES[shape], width=width)
            case = Case("ibp", network, layers, SHAPES[shape], BATCHES[shape], eps if eps is not None else RADII[shape])
            results += stages.run(case, flat(stage), flat(dtype), counts, epochs, rounds, guard)
    if as_json:
        output.print_json(output.document(results, rounds=rounds, threads=threads, guard=guard, epochs=epochs))
    else:
        stages.show(results)


@cli.command()
@names("--step", ("ibp", "crown-ibp"), ("ibp", "crown-ibp"), "Training step")
@names("--axis", ("width", "depth", "batch", "classes"), ("width", "depth", "batch", "classes"), "What grows")
@names("--against", ("autolirpa", "nothing"), ("nothing",), "Peers")
@names("--precision", PRECISIONS, ("fp32",), "Of ctkd")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Samples of each point.")
@click.option("--tiny", is_flag=True, help="Two small sizes of each axis, to see that it works.")
@click.option("--plot", type=click.Path(), help="Write a plot here (PNG, SVG or PDF by the name).")
@click.option("--guard/--no-guard", "guard", default=True, help="Take a sample again that other processes disturbed.")
@threads_option
@as_json
def growth(
    step: Any, axis: Any, against: Any, precision: Any, rounds: int, tiny: bool, plot: str | None, guard: bool,
    threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Step time and memory against width, depth, batch and classes."""
    from benchmarks import growth as growing
    from benchmarks import output
    from benchmarks.process import Entrant

    if plot:
        _check_plot(plot)
    entrants = [Entrant("ctkd", name) for name in flat(precision)]
    entrants += [Entrant(name) for name in flat(against) if name != "nothing"]
    axes = {name: growing.AXES[name][:2] if tiny else growing.AXES[name] for name in flat(axis)}
    small: dict[str, Any] = (
        {"base": {"width": 4, "depth": 2, "batch": 8, "classes": 10}, "shape": (1, 8, 8)} if tiny else {}
    )
    results = growing.run(entrants, flat(step), axes, rounds, threads, guard=guard, **small)
    if plot:
        growing.plot(results, Path(plot))
    if as_json:
        output.print_json(output.document(results, rounds=rounds, threads=threads, guard=guard))
    else:
        growing.show(results)


@cli.command()
@click.option("--device", default="cuda", show_default=True, help="A torch device.")
@click.option("--tiny", is_flag=True, help="Everything at the smallest size, to see that it works.")
@click.option(
    "--work", default="gpu-work", show_default=True, type=click.Path(), help="Checkpoints and finished parts."
)
@click.option("--out", type=click.Path(), help="Results, no weights [default: $OUT, else gpu-results].")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Samples of each contender.")
@click.option(
    "--set", "given", multiple=True, metavar="ROLE.KEY=VALUE", help="Setting of the training run; repeatable."
)
@threads_option
@as_json
def gpu(
    device: str,
    tiny: bool,
    work: str,
    out: str | None,
    rounds: int,
    given: tuple[str, ...],
    threads: int,
    as_json: bool,
) -> None:
    """The step table on a GPU, a check for host synchronisation, and one whole run. The same command goes on."""
    _check_device(device)
    from benchmarks import gpu as everything
    from benchmarks import output

    target = Path(out or os.environ.get("OUT") or "gpu-results")
    rounds = 1 if tiny else rounds
    document = everything.main(
        device, tiny, Path(work), target, dict(_setting(text) for text in given), rounds, threads
    )
    if as_json:
        output.print_json(document)
    else:
        print(f"results: {target / 'gpu.json'}")


def _check_plot(path: str) -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise Misuse("--plot needs matplotlib: pip install -c constraints.txt '.[benchmarks]'")
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise Misuse(f"--plot {path}: accepted endings are .png, .svg, .pdf")


def _setting(text: str) -> tuple[str, Any]:
    import tomllib

    key, equals, value = text.partition("=")
    if not equals:
        raise Misuse(f"--set {text}: write key=value, such as --set l1=0")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _check_device(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Misuse(f"device {device}: torch {torch.__version__} sees no GPU here; accepted: cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for misuse and for what is missing here, 1 for a contender that failed."""
    from benchmarks.process import ContenderFailed
    from benchmarks.worker import Unavailable

    try:
        cli.main(
            args=None if arguments is None else list(arguments), prog_name="python -m benchmarks", standalone_mode=False
        )
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ContenderFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0
    except click.ClickException as error:
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
