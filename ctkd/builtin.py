# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The plugins that come with ctkd, registered through the same hooks as anyone's."""

from __future__ import annotations

from ctkd.hookspecs import INTERFACE, Registration, hookimpl

CTKD_INTERFACE = INTERFACE

GOWAL = "Gowal et al. 2018, arXiv 1810.12715"
ZHANG = "Zhang et al. 2020, arXiv 1906.06316"
CROWN = "Zhang et al. 2018, arXiv 1811.00866"
MADRY = "Madry et al. 2018, arXiv 1706.06083"
EXPRESSIVE = "De Palma et al. 2024, arXiv 2305.13991"
CC_DIST = "De Palma 2026, arXiv 2602.02626"
AD_CERT = "Melis et al. 2026, arXiv 2606.31653"
SHI = "Shi et al. 2021, arXiv 2103.15887"


@hookimpl
def ctkd_bound_methods() -> list[Registration]:
    return [
        Registration(
            "adversarial",
            "ctkd.bounds.adversarial:Adversarial",
            "adversarial training: no bounds at all",
            (MADRY,),
        ),
        Registration("ibp", "ctkd.bounds.ibp:IBP", "interval bound propagation over the full box", (GOWAL, SHI)),
        Registration(
            "crown-ibp",
            "ctkd.bounds.crown_ibp:CrownIBP",
            "one backward linear relaxation on interval bounds, mixed with intervals along the ramp",
            (ZHANG,),
        ),
        Registration(
            "cc-ibp",
            "ctkd.bounds.cc_ibp:CCIBP",
            "convex combination of the adversarial point and the box, then one loss",
            (EXPRESSIVE,),
        ),
        Registration(
            "mtl-ibp",
            "ctkd.bounds.mtl_ibp:MTLIBP",
            "convex combination of the adversarial loss and the interval loss",
            (EXPRESSIVE,),
        ),
    ]


@hookimpl
def ctkd_teachers() -> list[Registration]:
    return [
        Registration("none", "ctkd.teachers.none:NoTeacher", "no teacher"),
        Registration("pgd", "ctkd.teachers.trained:PGDTeacher", "adversarially trained here, cached", (MADRY,)),
        Registration("natural", "ctkd.teachers.trained:NaturalTeacher", "trained here on clean images, cached"),
        Registration("file", "ctkd.teachers.file:FileTeacher", "weights from a safetensors file"),
    ]


@hookimpl
def ctkd_objectives() -> list[Registration]:
    return [
        Registration("none", "ctkd.distill.none:NoObjective", "no distillation"),
        Registration(
            "features",
            "ctkd.distill.features:Features",
            "worst-case squared distance between student's and teacher's features (CC-Dist), added",
            (CC_DIST,),
        ),
        Registration(
            "logits",
            "ctkd.distill.logits:Logits",
            "KL divergence from the teacher's prediction (AD-CERT), replaces the point's cross entropy",
            (AD_CERT,),
        ),
    ]


@hookimpl
def ctkd_attacks() -> list[Registration]:
    return [Registration("pgd", "ctkd.attacks.pgd:PGD", "projected gradient descent with random restarts", (MADRY,))]


@hookimpl
def ctkd_models() -> list[Registration]:
    return [
        Registration("cnn-small", "ctkd.models.cnn_small:CNNSmall", "two strided convolutions, one hidden layer"),
        Registration("mlp", "ctkd.models.mlp:MLP", "fully connected, batch norm after each hidden layer"),
    ]


@hookimpl
def ctkd_datasets() -> list[Registration]:
    return [
        Registration("digits", "ctkd.data.digits:Digits", "1797 real 8x8 digits that come with scikit-learn"),
        Registration("mnist", "ctkd.data.mnist:MNIST", "70,000 28x28 digits"),
    ]


@hookimpl
def ctkd_propagation_backends() -> list[Registration]:
    return [Registration("native", "ctkd.propagate.native:Native", "ctkd's own engine on plain torch")]


@hookimpl
def ctkd_certification_stages() -> list[Registration]:
    return [
        Registration("ibp", "ctkd.certify.stages:IBPStage", "interval bounds", (GOWAL,)),
        Registration(
            "crown-ibp", "ctkd.certify.stages:CrownIBPStage", "one backward pass on interval bounds", (ZHANG,)
        ),
        Registration("crown", "ctkd.certify.stages:CrownStage", "backward passes for every layer", (CROWN,)),
    ]


@hookimpl
def ctkd_commands() -> list[Registration]:
    return [
        Registration("train", "ctkd.cli.train:command", "Train a student with a teacher, certify it, export it."),
        Registration("certify", "ctkd.cli.certify:command", "Attack and certify a trained student."),
        Registration("export", "ctkd.cli.export:command", "Write ONNX, VNN-LIB and instances.csv for verifiers."),
        Registration("check", "ctkd.cli.check:command", "Say whether a model can be bounded, and what cannot."),
        Registration("plugins", "ctkd.cli.plugins:command", "List plugins and their options."),
    ]
