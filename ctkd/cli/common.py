# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What several sub-commands share: options, progress on standard error, tables on standard output."""

from __future__ import annotations

import functools
import json
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ctkd.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from ctkd.progress import Reporter

F = TypeVar("F", bound=Callable[..., Any])


FLAGS = {
    "eps": "train.eps",
    "dataset": "data.name",
    "data_dir": "data.dir",
    "model": "model.name",
    "bound": "bound.name",
    "distill": "distill.name",
    "attack": "attack.name",
    "propagation": "propagation.name",
    "epochs": "train.epochs",
    "seed": "train.seed",
    "device": "train.device",
    "threads": "train.threads",
    "precision": "train.precision",
}
"""Short forms of settings that a configuration is usually given by."""
CONFIG_OPTIONS = [
    click.option("--bound", help="Bound method, such as crown-ibp (see `ctkd plugins`)."),
    click.option("--teacher", multiple=True, help="Teacher source, such as pgd, file, none; repeatable."),
    click.option("--distill", help="Distillation objective, such as features, logits, none."),
    click.option("--attack", help="Attack of the training, such as pgd."),
    click.option("--propagation", help="Engine of the training bounds, such as native."),
    click.option("--dataset", help="Data set, such as mnist; also file.npz or a folder of images."),
    click.option("--data-dir", help="Folder with the data set's files; nothing is downloaded then."),
    click.option("--model", help="Architecture, such as cnn-small; also pkg.mod:factory."),
    click.option("--eps", help="L-infinity radius in pixel units, such as 0.1 or 2/255."),
    click.option("--epochs", type=int, help="Length of the student's training; its schedule scales with it."),
    click.option("--seed", type=int, help="Seed of everything random."),
    click.option("--device", help="Where to train: cpu, cuda."),
    click.option("--threads", type=int, help="CPU threads."),
    click.option("--precision", help="Arithmetic of the training: fp32, mixed (attack in bfloat16), bf16."),
    click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Set any option; repeatable."),
    click.option("--config", type=click.Path(path_type=Path), help="TOML file, one table per role; flags override it."),
    click.option("--recipe", help="A published row's configuration (see `ctkd recipes`); flags override it."),
]


def config_options(function: F) -> F:
    """The options that describe a configuration; the function gets the file of ``--recipe`` as ``config``."""

    @functools.wraps(function)
    def command(*arguments: Any, config: Path | None, recipe: str | None, **named: Any) -> Any:
        if recipe is not None:
            from ctkd.recipes import place

            if config is not None:
                raise BadInput("--recipe and --config are both a whole configuration; give one of them")
            config = place(recipe)
        return function(*arguments, config=config, **named)

    decorated: Any = command
    for option in reversed(CONFIG_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def settings_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """``role.key`` -> value from what ``config_options`` collected, ``--config`` apart."""
    values = {FLAGS[name]: value for name, value in flags.items() if name in FLAGS and value is not None}
    names = enumerate(flags.get("teacher", ()), start=1)
    values |= {"teacher.name" if i == 1 else f"teacher.{i}.name": name for i, name in names}
    settings = dict(parse_setting(text) for text in flags.get("settings", ()))
    for path in values.keys() & settings.keys():
        if str(values[path]) != str(settings[path]):
            raise BadInput(f"{path} is {values[path]} by its flag and {settings[path]} by --set; give one of them")
    return values | settings


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else.")(
        function
    )


def parse_setting(text: str) -> tuple[str, Any]:
    """``section.key=value``; the value as TOML where it is, else as text."""
    path, equals, value = text.partition("=")
    if not equals or "." not in path:
        raise BadInput(f"--set {text}: write section.key=value, such as --set bound.alpha=0.3")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value.strip()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def reporter() -> Reporter:
    """Live on a terminal, plain lines elsewhere; always on standard error, so that results can be piped."""
    return Live() if sys.stderr.isatty() else Plain()


def epoch_line(network: str, metrics: Mapping[str, Any]) -> str:
    seen = metrics["validation"]
    return (
        f"{network} epoch {metrics['epoch']}: eps {metrics['eps']:.4f}  loss {metrics['losses']['loss']:.4f}  "
        f"validation natural {percent(seen['natural_accuracy'])}  "
        f"interval-certified {percent(seen['interval_certified_accuracy'])}  {metrics['seconds']:.1f} s"
    )


class Plain:
    """One line an epoch; within long phases one line every 30 seconds."""

    def __init__(self) -> None:
        self.phase, self.total, self.done, self.spoke = "", 0, 0, 0.0

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        self.phase, self.total, self.done, self.spoke = phase, total, done, time.monotonic()
        self.say(f"{phase}: {done} of {total} done" if done else phase)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        if time.monotonic() - self.spoke > 30:
            self.spoke = time.monotonic()
            self.say(f"{self.phase}: {self.done} of {self.total}")

    def end(self) -> None: ...

    def epoch(self, network: str, metrics: Mapping[str, Any]) -> None:
        self.spoke = time.monotonic()
        self.say(epoch_line(network, metrics))

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def warn(self, message: str) -> None:
        self.say(f"warning: {message}")


class Live:
    """A progress bar a phase, the latest epoch beside it."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.note = ""

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self.note = ""
        self.task = self.bar.add_task(phase, total=total, completed=done, note="")
        self.bar.start()

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=steps)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def epoch(self, network: str, metrics: Mapping[str, Any]) -> None:
        seen = metrics["validation"]
        self.note = (
            f"loss {metrics['losses']['loss']:.3f} val {percent(seen['natural_accuracy'])} "
            f"IBP {percent(seen['interval_certified_accuracy'])}"
        )
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, note=self.note)

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False)

    def warn(self, message: str) -> None:
        self.console.print(f"[yellow]warning:[/] {message}", highlight=False, soft_wrap=True)


def print_table(table: Table) -> Console:
    """On standard output, all of it: a narrow terminal breaks lines, not words. Returns where to print the rest."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, needed)).print(table)
    return console


def results_table(summary: Mapping[str, Any]) -> None:
    """Teacher and student side by side, on standard output."""
    from rich.table import Table

    part = f"{summary['samples']} {summary['split']} samples, eps {summary['eps']:.4g}"
    table = Table(title=f"Accuracy on {part}", title_justify="left")
    for column in ("", "natural", "adversarial", "certified"):
        table.add_column(column, justify="right" if column else "left")
    first = summary.get("teacher")
    for teacher in [first, *summary.get("further_teachers", [])] if first else []:
        who = f"teacher {teacher['name']}" if summary.get("further_teachers") else "teacher"
        table.add_row(who, percent(teacher["natural_accuracy"]), percent(teacher["adversarial_accuracy"]), "-")
    keys = ("natural_accuracy", "adversarial_accuracy", "certified_accuracy")
    table.add_row("model" if "model" in summary else "student", *(percent(summary[key]) for key in keys))
    console = print_table(table)
    for line in notes(summary):
        console.print(line, highlight=False, soft_wrap=True)


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What the figures need beside them: stages, undecided samples, sampling error."""
    from ctkd.certify.rounding import described

    lines = []
    attack = summary.get("attack")
    if attack and summary["adversarial_accuracy"] is not None:
        further = "".join(f"; then {table['name']}" for table in attack["further"])
        lines.append(f"attack: {attack['name']}, {attack['steps']} steps, {attack['restarts']} restarts{further}")
    if summary.get("stages"):
        by_count = sorted(summary["stages"].items(), key=lambda pair: -pair[1])
        stages = ", ".join(f"{name} {count}" for name, count in by_count)
        counts = summary["counts"]
        lines.append(f"certified by stage: {stages}; broken {counts['broken']}, undecided {counts['undecided']}")
        low, high = summary["robust_accuracy_interval"]
        if high > low:
            lines.append(
                f"robust accuracy lies between {percent(low)} and {percent(high)}: undecided samples may be either"
            )
    if (devices := summary.get("devices", {})) and set(devices) != {"cpu"}:
        lines.append(f"computed on {', '.join(f'{name} ({count})' for name, count in devices.items())}")
    lines += [f"float32: {said}" for said in described(summary)]
    error = summary.get("certified_standard_error")
    if error == 0:  # rule of three
        rest = percent(min(1, 3 / summary["samples"]))
        lines.append(f"a part of the split, all alike: fewer than {rest} of the split differ, with 95 % confidence")
    elif error is not None:
        lines.append(f"a part of the split: certified accuracy +- {percent(error)} (one binomial standard error)")
    if summary.get("validation_seen_in_training"):
        lines.append("trained on training and validation data; validation figures are optimistic")
    return lines
