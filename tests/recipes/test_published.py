# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The recipes against the published settings and figures, transcribed once more and arranged as their sources are."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import pytest

from ctkd import recipes
from ctkd.config import RunConfig, resolve

# expressive-losses 3df64fa, README. Row: epochs, start and length of the ramp, milestones, training radius / radius,
# attack's steps, step size and radius / training radius.
EXPRESSIVE: dict[str, tuple[int, int, int, tuple[int, int], float, int, float, float]] = {
    "mnist-0.1": (70, 1, 20, (50, 60), 2.0, 1, 10.0, 1.0),
    "mnist-0.3": (70, 1, 20, (50, 60), 1.334, 1, 10.0, 1.0),
    "cifar10-2-255": (160, 2, 80, (120, 140), 1.0, 8, 0.25, 2.1),
    "cifar10-8-255": (260, 2, 80, (180, 220), 1.0, 1, 10.0, 1.0),
    "tinyimagenet-1-255": (160, 2, 80, (120, 140), 1.0, 1, 10.0, 1.0),
    "imagenet64-1-255": (80, 2, 20, (60, 70), 1.0, 1, 10.0, 1.0),
}
# Alpha (SABR: lambda) and L1.
COEFFICIENTS: dict[str, dict[str, tuple[float, float]]] = {
    "mnist-0.1": {"cc-ibp": (0.1, 2e-6), "mtl-ibp": (1e-2, 1e-5)},
    "mnist-0.3": {"cc-ibp": (0.3, 3e-6), "mtl-ibp": (8e-2, 1e-6)},
    "cifar10-2-255": {
        "cc-ibp": (1e-2, 3e-6),
        "mtl-ibp": (4e-3, 3e-6),
        "exp-ibp": (9.5e-2, 4e-6),
        "sabr": (3e-2, 3e-6),
    },
    "cifar10-8-255": {"cc-ibp": (0.5, 0), "mtl-ibp": (0.5, 1e-7), "exp-ibp": (0.5, 0), "sabr": (0.6, 0)},
    "tinyimagenet-1-255": {"cc-ibp": (1e-2, 5e-5), "mtl-ibp": (1e-2, 5e-5), "exp-ibp": (4e-2, 5e-5)},
    "imagenet64-1-255": {"cc-ibp": (5e-2, 1e-5), "mtl-ibp": (5e-2, 1e-5), "exp-ibp": (5e-2, 1e-5)},
}

# CTBench 0f18162, scripts/examples. Row: epochs, begin and end of the ramp, milestones, where averaging begins.
CTBENCH: dict[str, tuple[int, int, int, tuple[int, int], int]] = {
    "mnist-0.1": (70, 0, 20, (50, 60), 65),
    "mnist-0.3": (70, 0, 20, (50, 60), 65),
    "cifar10-2-255": (160, 1, 81, (120, 140), 150),
    "cifar10-8-255": (240, 1, 121, (200, 220), 225),
    "tinyimagenet-1-255": (160, 1, 81, (120, 140), 150),
}
# L1, weight of the robust loss, and what else the script sets: t training radius, a alpha, s lambda, n steps, r
# restarts, b first block, g gradient scale, k ReLU shrinkage, x attack's radius / training radius, e EDAC, m part of a
# batch.
SCRIPTS: dict[str, dict[str, tuple[float, float, dict[str, Any]]]] = {
    "mnist-0.1": {
        "ibp": (2e-6, 0.7, {"t": 0.2}),
        "crown-ibp": (5e-6, 0.7, {"t": 0.2}),
        "sabr": (1e-6, 0.7, {"t": 0.2, "s": 0.4, "n": 10, "r": 3}),
        "taps": (2e-6, 0.7, {"t": 0.2, "b": 10, "g": 4, "n": 10, "r": 3}),
        "staps": (5e-6, 0.7, {"t": 0.2, "s": 0.4, "b": 17, "g": 4, "n": 10, "r": 3}),
        "mtl-ibp": (1e-5, 0.7, {"t": 0.2, "a": 2e-2, "n": 10, "r": 3}),
        "cc-ibp": (1e-5, 0.7, {"t": 0.2, "a": 2e-2, "n": 10, "r": 3}),
        "exp-ibp": (1e-5, 0.7, {"t": 0.2, "a": 2e-2, "n": 10, "r": 3}),
        "pgd": (1e-5, 1, {"t": 0.2, "n": 10, "r": 3, "e": 0.3}),
    },
    "mnist-0.3": {
        "ibp": (2e-6, 0.7, {}),
        "crown-ibp": (1e-6, 0.7, {}),
        "sabr": (2e-6, 1, {"s": 0.9, "n": 5, "r": 3}),
        "taps": (0, 1, {"t": 0.4, "b": 13, "g": 4, "n": 5, "r": 3}),
        "staps": (1e-5, 1, {"s": 0.6, "b": 17, "g": 4, "n": 10, "r": 3}),
        "mtl-ibp": (1e-6, 1, {"a": 0.5, "n": 1, "r": 3}),
        "pgd": (5e-6, 1, {"n": 5, "r": 3, "e": 0.3}),
    },
    "cifar10-2-255": {
        "ibp": (1e-6, 0.8, {}),
        "crown-ibp": (3e-6, 1, {}),
        "sabr": (1e-6, 1, {"t": 3 / 255, "s": 0.1, "k": 0.8, "n": 5, "r": 3}),
        "taps": (2e-6, 1, {"b": 4, "g": 4, "k": 0.8, "n": 8, "r": 3}),
        "staps": (1e-6, 1, {"s": 0.1, "k": 0.8, "b": 17, "g": 2, "n": 8, "r": 3}),
        "mtl-ibp": (3e-6, 0.9, {"a": 0.01, "x": 2, "n": 1, "r": 3}),
        "pgd": (2e-5, 1, {"n": 8, "r": 3, "e": 0.3}),
    },
    "cifar10-8-255": {
        "ibp": (0, 1, {}),
        "crown-ibp": (0, 1, {}),
        "sabr": (0, 1, {"s": 0.9, "n": 5, "r": 3}),
        "taps": (0, 1, {"b": 17, "g": 2, "n": 10, "r": 3}),
        "staps": (0, 1, {"s": 0.9, "b": 17, "g": 2, "n": 10, "r": 3}),
        "mtl-ibp": (0, 1, {"a": 0.6, "n": 1, "r": 3}),
        "pgd": (1e-6, 1, {"n": 10, "r": 3}),
    },
    "tinyimagenet-1-255": {
        "ibp": (1e-5, 1, {}),
        "crown-ibp": (2e-5, 1, {"m": 64}),
        "sabr": (5e-5, 1, {"s": 0.4, "n": 1, "r": 3}),
        "taps": (5e-5, 0.7, {"b": 17, "g": 8, "n": 1, "r": 3, "m": 32}),
        "staps": (5e-5, 1, {"s": 0.6, "b": 17, "g": 4, "n": 1, "r": 3, "m": 32}),
        "mtl-ibp": (5e-5, 0.7, {"a": 5e-2, "x": 1.5, "n": 1, "r": 3}),
        "cc-ibp": (5e-5, 0.7, {"a": 5e-2, "n": 1, "r": 3}),
        "exp-ibp": (1e-6, 1, {"a": 0.4, "n": 1, "r": 1}),
        "pgd": (1e-5, 1, {"n": 1, "r": 3, "e": 0.1}),
    },
}
AVERAGED = ("mtl-ibp", "cc-ibp", "exp-ibp")
SHORTER = "tinyimagenet-1-255-exp-ibp"
"""80 epochs, ramp 1 to 21, milestones 60 and 70, no averaging."""

# Natural and certified accuracy in percent: first the settings' authors', then other runs of the same code.
FIGURES: dict[str, list[tuple[float | None, float]]] = {
    "cifar10-2-255-cc-ibp": [(80.09, 63.78), (81.0, 63.7)],
    "cifar10-2-255-mtl-ibp": [(80.11, 63.24), (80.3, 63.8)],
    "cifar10-2-255-exp-ibp": [(80.61, 61.65), (79.9, 62.9)],
    "cifar10-2-255-cc-dist": [(None, 64.6)],
    "cifar10-8-255-cc-ibp": [(53.71, 35.27)],
    "cifar10-8-255-mtl-ibp": [(53.35, 35.44)],
    "cifar10-8-255-exp-ibp": [(53.97, 35.04)],
    "mnist-0.3-mtl-ibp": [(98.80, 93.62)],
    "tinyimagenet-1-255-mtl-ibp": [(37.56, 26.09)],
    "cifar10-2-255-ibp-ctbench": [(67.49, 55.99)],
    "cifar10-2-255-crown-ibp-ctbench": [(67.60, 57.11)],
    "cifar10-2-255-sabr-ctbench": [(77.86, 63.61)],
    "cifar10-2-255-taps-ctbench": [(74.44, 61.27)],
    "cifar10-2-255-staps-ctbench": [(77.05, 64.21)],
    "cifar10-2-255-mtl-ibp-ctbench": [(78.82, 64.41)],
    "cifar10-8-255-ibp-ctbench": [(48.51, 35.28)],
    "cifar10-8-255-crown-ibp-ctbench": [(48.25, 32.59)],
    "cifar10-8-255-sabr-ctbench": [(52.71, 35.34)],
    "cifar10-8-255-mtl-ibp-ctbench": [(54.28, 35.41)],
    "mnist-0.3-ibp-ctbench": [(98.54, 93.80)],
    "mnist-0.3-crown-ibp-ctbench": [(98.48, 93.90)],
    "mnist-0.3-sabr-ctbench": [(98.66, 93.68)],
    "mnist-0.3-mtl-ibp-ctbench": [(98.74, 93.90)],
    "tinyimagenet-1-255-ibp-ctbench": [(26.77, 19.82)],
    "tinyimagenet-1-255-crown-ibp-ctbench": [(28.44, 22.14)],
    "tinyimagenet-1-255-sabr-ctbench": [(30.58, 20.96)],
    "tinyimagenet-1-255-mtl-ibp-ctbench": [(35.97, 27.73)],
}

# Mean and standard deviation of pixels, augmentation, weight of the regularisers, images per step.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet64": ((0.4815, 0.4578, 0.4082), (0.2153, 0.2111, 0.2121)),
}
AUGMENTED = {"cifar10": 2, "tinyimagenet": 4, "imagenet64": 4}
REGULARISED = {"mnist": 0.5, "cifar10": 0.5, "tinyimagenet": 0.2, "imagenet64": 0.2}

EL_NAMES = [f"{row}-{method}" for row, methods in COEFFICIENTS.items() for method in methods]
CT_NAMES = [f"{row}-{method}-ctbench" for row, methods in SCRIPTS.items() for method in methods]
OWN = {name for name in recipes.names() if recipes.load(name).header.code == "ctkd"}


@functools.cache
def config_of(name: str) -> RunConfig:
    return resolve(file=recipes.place(name))


def eps_of(row: str) -> float:
    text = row.partition("-")[2]
    return float(Fraction(text.replace("-", "/")) if "-" in text else text)


def attack_of(config: RunConfig) -> tuple[int, float, int]:
    options: Any = config.attack.options
    assert (config.attack.name, options.objective, options.decay) == ("pgd", "cross-entropy", 1.0)
    return options.steps, options.step_size, options.restarts


def check_common(config: RunConfig, row: str, *, adversarial: bool = False) -> None:
    train, data, model = config.train, row.partition("-")[0], config.model.options
    assert train.eps == pytest.approx(eps_of(row))
    assert (train.optimizer, train.lr, train.lr_schedule, train.lr_decay) == ("adam", 5e-4, "milestones", 0.2)
    assert (train.weight_decay, train.clip, train.keep, train.final) == (0.0, 10.0, "last", True)
    assert train.batch_size == (256 if data == "mnist" else 128)
    assert (train.init, train.shi_weight) == (("default", 0.0) if adversarial else ("shi", REGULARISED[data]))
    assert (config.model.name, model.width, model.hidden) == ("cnn7", 64, 512)  # type: ignore[attr-defined]
    options: Any = config.data.options
    assert config.data.name == data
    if data in AUGMENTED:
        assert (options.flip, options.crop, options.padding) == (True, AUGMENTED[data], "edge")
    else:
        assert options.shift == 0


def normalised(config: RunConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    options: Any = config.model.options
    return options.mean, options.std


def check_expressive(config: RunConfig, row: str, method: str) -> None:
    epochs, start, length, milestones, factor, steps, step_size, wider = EXPRESSIVE[row]
    coefficient, l1 = COEFFICIENTS[row][method]
    train, bound = config.train, config.bound.options
    check_common(config, row)
    assert normalised(config) == (((), ()) if row.startswith("mnist") else STATISTICS[config.data.name])
    assert (train.epochs, train.warmup, train.ramp, train.milestones) == (epochs, start - 1, length, milestones)
    assert (train.train_eps_factor, train.attack_eps_factor, train.l1) == (factor, wider, l1)
    assert attack_of(config) == (steps, step_size, 1)
    assert config.bound.name == method
    assert getattr(bound, "lam" if method == "sabr" else "alpha") == coefficient
    assert getattr(bound, "relu_shrink", 1.0) == 1.0
    assert (train.statistics, train.population_statistics, train.average_from) == ("last-pass", False, None)
    assert (train.kappa_start, train.kappa_end, train.edac, train.micro_batch) == (0, 0, 0, None)


def check_ctbench(config: RunConfig, row: str, method: str) -> None:
    shorter = f"{row}-{method}" == SHORTER
    epochs, begin, end, milestones, averaged = (80, 1, 21, (60, 70), 0) if shorter else CTBENCH[row]
    l1, weight, more = SCRIPTS[row][method]
    train, bound, steps = config.train, config.bound.options, more.get("n", 0)
    check_common(config, row, adversarial=method == "pgd")
    assert normalised(config) == STATISTICS[config.data.name]
    assert (train.epochs, train.warmup, train.ramp, train.milestones) == (epochs, begin, end - begin, milestones)
    assert train.eps * train.train_eps_factor == pytest.approx(more.get("t", eps_of(row)), rel=1e-4)
    assert (train.attack_eps_factor, train.l1, train.edac) == (more.get("x", 1), l1, more.get("e", 0))
    assert (train.kappa_start, train.kappa_end) == pytest.approx((1 - weight, 1 - weight))
    assert train.micro_batch == more.get("m")
    assert train.statistics == "clean"
    assert train.population_statistics == (f"{row}-{method}" != "cifar10-2-255-staps")
    averages = not shorter and (method in AVERAGED or f"{row}-{method}" == "tinyimagenet-1-255-crown-ibp")
    assert train.average_from == (averaged if averages else None)
    assert config.bound.name == ("adversarial" if method == "pgd" else method)
    wanted: dict[str, Any] = {}
    if "a" in more:
        wanted["alpha"] = more["a"]
    if "s" in more:
        wanted["lam"] = more["s"]
    if method in ("sabr", "taps", "staps"):
        wanted["relu_shrink"] = more.get("k", 1.0)
    if "b" in more:  # of the source's 21 modules; the second block's ReLUs are counted here
        split = {4: 5, 10: 3, 13: 2, 17: 1}[more["b"]]
        wanted |= {"split": split, "gradient_scale": more["g"], "product": True}
        wanted |= {"steps": steps, "restarts": more["r"], "step_size": max(0.2, 2 / steps)}
    if method == "crown-ibp":
        wanted = {"beta_start": 1.0, "beta_end": 1.0, "loss_fusion": True}
    assert {key: getattr(bound, key) for key in wanted} == wanted
    if method in ("sabr", "staps"):
        assert attack_of(config) == (steps, 0.2, more["r"])
    elif steps and method != "taps":
        assert attack_of(config) == (steps, max(0.25, 2 / steps), more["r"])


def test_nothing_is_left_out_on_either_side() -> None:
    assert set(recipes.names()) == {*EL_NAMES, *CT_NAMES, *OWN}


@pytest.mark.parametrize("name", EL_NAMES)
def test_settings_of_expressive_losses(name: str) -> None:
    row = next(row for row in COEFFICIENTS if name.startswith(row))
    check_expressive(config_of(name), row, name.removeprefix(f"{row}-"))
    assert not config_of(name).taught


@pytest.mark.parametrize("name", CT_NAMES)
def test_settings_of_ctbench(name: str) -> None:
    row = next(row for row in SCRIPTS if name.startswith(row))
    check_ctbench(config_of(name), row, name.removeprefix(f"{row}-").removesuffix("-ctbench"))
    assert not config_of(name).taught


@pytest.mark.parametrize("name", sorted(OWN))
def test_methods_with_teachers_stand_on_the_settings_below_them(name: str) -> None:
    """CC-Dist on CC-IBP of expressive-losses, AD-CERT on MTL-IBP of CTBench; the teacher on CTBench's PGD."""
    config, (row, method) = config_of(name), (name.rsplit("-", 2)[0], "-".join(name.rsplit("-", 2)[1:]))
    distill: Any = config.distill.options
    if method == "cc-dist":
        check_expressive(config, row, "cc-ibp")
        assert (config.distill.name, distill.weight, distill.map) == ("features", 5.0, "none")
    else:
        check_ctbench(config, row, "mtl-ibp")
        assert (config.distill.name, distill.variant, distill.weight) == ("logits", "adversarial", 1.0)
        assert (distill.temperature, distill.teacher_input) == (1.0, "clean")
    (teacher,) = config.teachers
    options: Any = teacher.options
    # TinyImageNet stands for ImageNet64, for which CTBench has no script.
    l1, _, more = SCRIPTS["tinyimagenet-1-255" if row.startswith("imagenet64") else row]["pgd"]
    assert (teacher.name, options.l1, options.steps, options.restarts) == ("pgd", l1, more["n"], more["r"])
    assert (options.step_size, options.edac) == (max(0.25, 2 / more["n"]), more.get("e", 0))
    assert (options.epochs, options.ramp, options.batch_size) == (config.train.epochs, config.train.ramp, 128)
    assert [part * options.epochs for part in options.milestones] == pytest.approx(list(config.train.milestones))
    assert (options.optimizer, options.lr, options.lr_decay, options.eps_factor) == ("adam", 5e-4, 0.2, 1.0)


@pytest.mark.parametrize("name", recipes.names())
def test_figures(name: str) -> None:
    published = recipes.load(name).header.published
    assert [(each.natural, each.certified) for each in published] == FIGURES.get(name, [])
