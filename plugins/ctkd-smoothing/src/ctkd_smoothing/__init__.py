# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Randomised smoothing for ctkd: training with noise, and probabilistic certificates of L2 radii."""

from __future__ import annotations

from ctkd import Paper, Registration, hookimpl

CTKD_INTERFACE = 1

SMOOTHING = Paper(
    ("Cohen, Jeremy", "Rosenfeld, Elan", "Kolter, J. Zico"),
    "Certified Adversarial Robustness via Randomized Smoothing",
    2019,
    "International Conference on Machine Learning (ICML)",
    arxiv="1902.02918",
)
DISTRIBUTIONAL = Paper(
    ("Yang, Jungang", "Xiang, Liyao", "others"),
    "Certified Distributional Robustness on Smoothed Classifiers",
    2020,
    arxiv="2010.10987",
)


@hookimpl
def ctkd_bound_methods() -> list[Registration]:
    return [
        Registration(
            "gaussian-noise",
            "ctkd_smoothing.training:GaussianNoise",
            "cross entropy at images with Gaussian noise, for randomised smoothing",
            (SMOOTHING,),
            options="ctkd_smoothing.options:GaussianNoiseOptions",
        ),
        Registration(
            "noisy-adversarial",
            "ctkd_smoothing.training:NoisyAdversarial",
            "noisy adversarial learning: the noisy loss at the shift of the image that pays most for its length",
            (DISTRIBUTIONAL, SMOOTHING),
            options="ctkd_smoothing.options:NoisyAdversarialOptions",
        ),
    ]


@hookimpl
def ctkd_commands() -> list[Registration]:
    return [
        Registration(
            "smooth",
            "ctkd_smoothing.command:command",
            "certify a run's student behind Gaussian noise: L2 radii that hold with a stated probability",
            (SMOOTHING,),
        )
    ]
