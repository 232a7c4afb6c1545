# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Plugins with lifecycle hooks in the kit: one that keeps the contract, and some that break it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctkd.testing import ConformanceError, checks, run_checks

from .conftest import Register, module

NAME = "stranger"


def started(folder: Any, config: Any) -> None:
    (folder.path / "log").mkdir(exist_ok=True)
    (folder.path / "log" / "bound.txt").write_text(config["bound"]["name"])


def epoch(folder: Any, network: str, metrics: Any) -> None:
    with (folder.path / "log" / f"{network.replace('/', '-')}.txt").open("a") as file:
        file.write(f"{metrics['epoch']} {metrics['losses']['loss']}\n")


def finished(folder: Any, summary: Any) -> None:
    (folder.path / "log" / "end.txt").write_text(str(summary["certified_accuracy"]))


def writes_beside(summary: Any) -> None:
    Path("results.txt").write_text("here")


def writes_home(metrics: Any) -> None:
    (Path.home() / ".stranger").write_text("here")


def overwrites(folder: Any, summary: Any) -> None:
    folder.metrics.write_text("mine")


def formats(summary: Any) -> None:
    print(f"{summary['certified_accuracy']:.2f}")


def needs_robust(metrics: Any) -> None:
    assert metrics["losses"]["robust/box"] > 0


def adds_time(metrics: Any) -> None:
    metrics["minutes"] = metrics["seconds"] / 60


def insists(folder: Any) -> None:
    (folder.path / "log").mkdir()


def remembers() -> Callable[..., None]:
    first: list[Path] = []

    def epoch(folder: Any, metrics: Any) -> None:
        first.append(folder.path)
        with (first[0] / "events.txt").open("a") as file:
            file.write(f"{metrics['epoch']}\n")

    return epoch


def exports(config: Any) -> None:
    os.environ["STRANGER_RUN"] = "1"
    tempfile.tempdir = None


def test_a_good_logger_passes(register: Register) -> None:
    hooks = {"ctkd_run_started": started, "ctkd_epoch_finished": epoch, "ctkd_run_finished": finished}
    register(module(NAME, **hooks), origin="stranger 1.0")
    failed = [result for result in run_checks("logger", NAME) if result.status == "failed"]
    assert not failed, "\n".join(result.message for result in failed)


@pytest.mark.parametrize(
    ("hook", "function", "name", "words"),
    [
        ("ctkd_run_finished", writes_beside, "writes-into-the-run-folder-alone", ["results.txt", "beside the run"]),
        ("ctkd_epoch_finished", writes_home, "writes-into-the-run-folder-alone", ["home/.stranger", "folder.path"]),
        (
            "ctkd_run_finished",
            overwrites,
            "writes-into-the-run-folder-alone",
            ["metrics.jsonl", "these files are ctkd's"],
        ),
        ("ctkd_run_finished", formats, "follows-a-run", ["TypeError", "certification"]),
        ("ctkd_epoch_finished", needs_robust, "follows-a-run", ["KeyError: 'robust/box'"]),
        ("ctkd_epoch_finished", adds_time, "follows-a-run", ["ctkd_epoch_finished changed its arguments", "copy"]),
        ("ctkd_run_started", insists, "follows-a-resumed-run", ["FileExistsError"]),
        ("ctkd_epoch_finished", remembers(), "keeps-runs-apart", ["changed events.txt of the first", "folder.path"]),
        ("ctkd_run_started", exports, "leaves-global-state-alone", ["os.environ"]),
    ],
)
def test_a_broken_logger_fails_with_words_that_teach(
    register: Register, hook: str, function: Callable[..., None], name: str, words: list[str]
) -> None:
    register(module(NAME, **{hook: function}), origin="stranger 1.0")
    (check,) = (each for each in checks("logger", NAME) if each.name == name)
    with pytest.raises(ConformanceError) as caught:
        check()
    for word in words:
        assert word in str(caught.value)


def test_a_plugin_without_lifecycle_hooks_is_no_logger() -> None:
    (check,) = (each for each in checks("logger", "builtin") if each.name == "follows-a-run")
    with pytest.raises(ConformanceError, match=r"ctkd.builtin implements none of ctkd_run_started"):
        check()
    (check,) = (each for each in checks("logger", "nobody") if each.name == "follows-a-run")
    with pytest.raises(ConformanceError, match=r"no plugin of that name was loaded; entry points: .*builtin"):
        check()
