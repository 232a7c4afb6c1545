# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Real processes, killed at random moments: momentum, cyclic rates, warm starts and parts of batches all go on."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from ctkd.propagate import Network
from ctkd.storage import read_tensors
from ctkd.train import checkpoint

from ..test_resume import start, wait_for

SETTINGS = {
    "train.epochs": 3,
    "train.ramp": 2.0,
    "train.warmup": 0.5,
    "train.checkpoint_seconds": 0.05,
    "train.batch_size": 64,
    "train.micro_batch": 40,
    "train.optimizer": "sgd",
    "train.nesterov": "true",
    "train.lr": 0.05,
    "train.lr_schedule": "cyclic",
    "train.lr_cycles": 2,
    "train.milestones": "[]",
    "train.edac": 0.1,
    "attack.steps": 1,
    "attack.warm_start": "true",
    "bound.name": "exp-ibp",
    "teacher.name": "none",
    "model.channels": 4,
    "model.hidden": 16,
}


def new_run(out: Path) -> list[str]:
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return ["--threads", "1", "--no-certify", "--out", str(out), *sets]


def final(run: Path) -> tuple[str, dict[str, object]]:
    tensors = read_tensors(run / "student" / checkpoint.CURRENT)[0]
    return Network.load(run / "network.safetensors").sha256(), dict(tensors)


def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    process = start(tmp_path / "cache", *new_run(tmp_path / "whole"))
    began = wait_for(tmp_path / "whole" / "config.toml", process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    seconds = time.monotonic() - began
    run, moments, kills = tmp_path / "run", random.Random(0), 0
    process = start(tmp_path / "cache", *new_run(run))
    for _ in range(2):
        # The first checkpoint is written before the first step; what follows happens between steps and files.
        wait_for(run / "student" / checkpoint.CURRENT, process)
        time.sleep(moments.uniform(0.1, 0.4) * seconds)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = start(tmp_path / "cache", "--resume", str(run))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert kills > 0
    whole, resumed = final(tmp_path / "whole"), final(run)
    assert whole[0] == resumed[0]
    assert set(whole[1]) == set(resumed[1])
    assert {"attacked/places", "attacked/known", "optimizer/0/momentum_buffer"} <= set(whole[1])
    assert all(whole[1][name].equal(resumed[1][name]) for name in whole[1])  # type: ignore[attr-defined]
