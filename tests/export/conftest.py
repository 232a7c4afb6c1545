# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Small networks of every exportable kind, and two that were trained a little on the bundled digits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ctkd.propagate import Network, trace

from .material import Material, sorted_digits, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctkd.export.benchmark import BenchmarkReport

IMAGE = (1, 8, 8)


class Normalise(nn.Module):
    """(x - mean) / std, per channel."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(0.3, 0.5, shape[0]).reshape(shape))
        self.register_buffer("std", torch.linspace(0.2, 0.4, shape[0]).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """A block with a sum, a projection on the shortcut, and a sum with the network's input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(1, 1, 3, padding=1)
        self.main = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, 1, 1))
        self.short = nn.Conv2d(1, 3, 1, 2, bias=False)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.same(x)
        x = torch.relu(self.main(x) + self.short(x))
        return self.head(x.flatten(1))


class Unflattened(nn.Module):
    """Flat input to an image, an image to another one, back to flat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x.reshape(-1, 1, 8, 8))
        return self.head(torch.relu(self.conv(x.view(-1, 4, 4, 4))).flatten(1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def _flat_norm() -> nn.Module:
    """Scales that no affine layer before them can take in."""
    return nn.Sequential(Normalise(64), nn.Linear(64, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 10, bias=False))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, (3, 2), padding=(1, 0)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 10),
        nn.BatchNorm1d(10),
    )


def _normalised() -> nn.Module:
    """Padding behind a normalisation, and a batch norm behind a ReLU."""
    layers = [nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)]
    return nn.Sequential(Normalise(1, 1, 1), *layers, nn.Flatten(), nn.Linear(32, 10))


def _colour() -> nn.Module:
    return nn.Sequential(Normalise(3, 1, 1), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def _pooled() -> nn.Module:
    layers = [
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1),
        nn.ReLU(),
        nn.AvgPool2d((4, 4)),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 10))


def _max_pooled() -> nn.Module:
    """Windows that leave a pixel over, and one that covers what is left."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(3, 4, 1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(8, 10))


def _curved() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 10))


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, IMAGE),
    "flat-norm": (_flat_norm, (64,)),
    "cnn": (_cnn, IMAGE),
    "residual": (Residual, IMAGE),
    "normalised": (_normalised, IMAGE),
    "colour": (_colour, (3, 6, 6)),
    "pooled": (_pooled, IMAGE),
    "max-pooled": (_max_pooled, IMAGE),
    "curved": (_curved, IMAGE),
    "unflattened": (Unflattened, (64,)),
}


def bound(module: nn.Module, shape: tuple[int, ...]) -> Network:
    return trace(module.eval(), shape).bind().detach()


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ZOO)
def network(request: pytest.FixtureRequest) -> Network:
    """Random weights; batch norm statistics as after some training."""
    make, shape = ZOO[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = make().train()
        for _ in range(20):
            module(torch.rand(16, *shape))
    return bound(module, shape)


class Digits(NamedTuple):
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="package")
def digits() -> Digits:
    data = load_digits()
    return Digits(torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target))


@pytest.fixture(scope="package")
def trained(one_thread: None, digits: Digits) -> dict[str, Network]:
    """Two small classifiers, trained with noise for a second each; about nine in ten digits right."""
    networks = {}
    with torch.random.fork_rng():
        for name in ("mlp", "cnn"):
            torch.manual_seed(5)
            module = ZOO[name][0]().train()
            optimiser = torch.optim.Adam(module.parameters(), 5e-3)
            for _ in range(250):
                rows = torch.randint(len(digits.labels), (128,))
                x = digits.images[rows]
                noisy = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)
                optimiser.zero_grad()
                F.cross_entropy(module(noisy), digits.labels[rows]).backward()
                optimiser.step()
            networks[name] = bound(module, IMAGE)
    return networks


# The Marabou program ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def marabou() -> str:
    beside = Path(sys.executable).with_name("Marabou")
    found = str(beside) if beside.is_file() else shutil.which("Marabou")
    if found is None and sys.version_info >= (3, 12):
        pytest.skip("maraboupy has no wheel for Python 3.12 and newer")
    if found is None:
        pytest.fail("the command Marabou is missing; `pip install maraboupy==2.0.0` brings it")
    return found


class Answer(NamedTuple):
    verdict: str
    x: np.ndarray
    y: np.ndarray


def ask(marabou: str, model: Path, specification: Path, timeout: int = 20) -> Answer:
    summary = specification.with_suffix(".summary")
    command = [
        marabou,
        model,
        specification,
        "--timeout",
        str(timeout),
        "--verbosity",
        "0",
        "--summary-file",
        summary,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout + 20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary.is_file(), done.stdout + done.stderr
    values = {
        letter: np.array([float(v) for v in re.findall(rf"^\s*{letter}\d+ = (\S+)$", done.stdout, re.MULTILINE)])
        for letter in "xy"
    }
    return Answer(summary.read_text().split()[0], values["x"].astype(np.float32), values["y"])


# Benchmarks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def material(trained: dict[str, Network], digits: Digits) -> Material:
    return sorted_digits(trained["cnn"], digits.images, digits.labels)


@pytest.fixture(scope="package")
def made(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchmarkReport]:
    """A benchmark and its report. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("benchmark") / "bench"
    return folder, write(material, folder)
