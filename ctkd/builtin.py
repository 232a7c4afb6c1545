# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The plugins that come with ctkd, registered through the same hooks as anyone's."""

from __future__ import annotations

from ctkd.hookspecs import INTERFACE, Registration, hookimpl
from ctkd.papers import (
    AD_CERT,
    AKD,
    ALPAYDIN,
    ALPHA_CROWN,
    ARD,
    B_MTARD,
    BABSR,
    BETA_CROWN,
    CC_DIST,
    CHRABASZCZ,
    CROWN,
    EXPRESSIVE,
    FORWABS,
    FSB,
    GOWAL,
    HE,
    IAD,
    IBP_R,
    KRIZHEVSKY,
    LE,
    LECUN,
    MADRY,
    MAO,
    MART,
    MUELLER,
    RSLAD,
    SHI,
    SINGLEPROP,
    STALLKAMP,
    TRADES,
    XIAO,
    XU,
    ZHANG,
)

CTKD_INTERFACE = INTERFACE


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
            (ZHANG, XU),
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
        Registration(
            "exp-ibp",
            "ctkd.bounds.exp_ibp:ExpIBP",
            "geometric combination of the adversarial loss and the interval loss",
            (EXPRESSIVE,),
        ),
        Registration("sabr", "ctkd.bounds.sabr:SABR", "intervals over a small box near the attacked point", (MUELLER,)),
        Registration(
            "taps",
            "ctkd.bounds.taps:TAPS",
            "intervals through a first block, attacks in the latent box through the second",
            (MAO,),
        ),
        Registration("staps", "ctkd.bounds.staps:STAPS", "TAPS from the small box of SABR", (MAO, MUELLER)),
        Registration(
            "ibp-r",
            "ctkd.bounds.ibp_r:IBPR",
            "adversarial loss and the relaxation area of unstable ReLUs",
            (IBP_R,),
        ),
        Registration(
            "forwabs",
            "ctkd.bounds.forwabs:ForwAbs",
            "adversarial loss and output half-widths that ignore activations",
            (FORWABS,),
        ),
        Registration(
            "singleprop",
            "ctkd.bounds.singleprop:SingleProp",
            "clean loss and that of margins estimated in one forward pass",
            (SINGLEPROP,),
        ),
        Registration(
            "trades",
            "ctkd.bounds.trades:TRADES",
            "clean loss and divergence of the attacked prediction: no bounds at all",
            (TRADES,),
        ),
        Registration(
            "mart",
            "ctkd.bounds.mart:MART",
            "adversarial training that weighs misclassified samples: no bounds at all",
            (MART,),
        ),
    ]


@hookimpl
def ctkd_teachers() -> list[Registration]:
    return [
        Registration("none", "ctkd.teachers.none:NoTeacher", "no teacher"),
        Registration("pgd", "ctkd.teachers.pgd:PGDTeacher", "adversarially trained here, cached", (MADRY,)),
        Registration("natural", "ctkd.teachers.natural:NaturalTeacher", "trained here on clean images, cached"),
        Registration("trades", "ctkd.teachers.trades:TRADESTeacher", "trained here by TRADES, cached", (TRADES,)),
        Registration("mart", "ctkd.teachers.mart:MARTTeacher", "trained here by MART, cached", (MART,)),
        Registration(
            "file",
            "ctkd.teachers.file:FileTeacher",
            "a run's network, or a state dict (safetensors, PyTorch), also of expressive-losses and CTBench",
        ),
        Registration("onnx", "ctkd.teachers.onnx:OnnxTeacher", "any ONNX classifier, by its logits"),
        Registration(
            "ensemble", "ctkd.teachers.ensemble:EnsembleTeacher", "several files or trained networks as one", (AKD,)
        ),
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
            "KL divergence from the teacher's prediction (AD-CERT, RSLAD-CERT), replaces the point's cross entropy",
            (AD_CERT, RSLAD),
        ),
        Registration(
            "logits-box",
            "ctkd.distill.logits_box:LogitsBox",
            "worst-case KL divergence from the teacher's prediction over any enclosure, replaces the robust loss",
            (AD_CERT, GOWAL),
        ),
        Registration(
            "features+logits",
            "ctkd.distill.features_logits:FeaturesLogits",
            "features on every enclosure, and logits on points",
            (CC_DIST, AD_CERT),
        ),
        Registration(
            "ard",
            "ctkd.distill.ard:ARD",
            "softened KL divergence at the point, clean cross entropy for the rest",
            (ARD,),
        ),
        Registration(
            "rslad",
            "ctkd.distill.rslad:RSLAD",
            "KL divergence at the point and at the clean input (RSLAD-CERT); brings a soft-label attack",
            (RSLAD, AD_CERT),
        ),
        Registration(
            "iad",
            "ctkd.distill.iad:IAD",
            "trusts the teacher as far as it handles the adversarial input, the student for the rest (IAD-I)",
            (IAD,),
        ),
        Registration(
            "iad-ii",
            "ctkd.distill.iad_ii:IADII",
            "two teachers, adversarial and standard, with partial trust in the first",
            (IAD,),
        ),
        Registration(
            "akd",
            "ctkd.distill.akd:AKD",
            "cross entropy with a mixture of label and teacher's prediction",
            (AKD,),
        ),
        Registration(
            "b-mtard",
            "ctkd.distill.b_mtard:BMTARD",
            "two teachers, adversarial and natural, balanced by relative losses and entropies",
            (B_MTARD,),
        ),
    ]


@hookimpl
def ctkd_attacks() -> list[Registration]:
    return [Registration("pgd", "ctkd.attacks.pgd:PGD", "projected gradient descent with random restarts", (MADRY,))]


@hookimpl
def ctkd_models() -> list[Registration]:
    return [
        Registration("cnn-small", "ctkd.models.cnn_small:CNNSmall", "two strided convolutions, one hidden layer"),
        Registration("cnn5", "ctkd.models.cnn5:CNN5", "three convolutions, one hidden layer: a smaller cnn7"),
        Registration(
            "cnn7", "ctkd.models.cnn7:CNN7", "five convolutions, one hidden layer: the published network", (SHI,)
        ),
        Registration("mlp", "ctkd.models.mlp:MLP", "fully connected, batch norm after each hidden layer"),
        Registration("resnet", "ctkd.models.resnet:ResNet", "a small residual network", (HE,)),
        Registration("import", "ctkd.models.imported:Imported", "a function of yours; also --model pkg.mod:factory"),
    ]


@hookimpl
def ctkd_datasets() -> list[Registration]:
    return [
        Registration(
            "digits", "ctkd.data.digits:Digits", "1797 real 8x8 digits that come with scikit-learn", (ALPAYDIN,)
        ),
        Registration("mnist", "ctkd.data.mnist:MNIST", "70,000 28x28 digits", (LECUN,)),
        Registration(
            "fashion-mnist", "ctkd.data.fashion_mnist:FashionMNIST", "70,000 28x28 grey images of clothing", (XIAO,)
        ),
        Registration(
            "cifar10", "ctkd.data.cifar10:CIFAR10", "60,000 32x32 photographs of 10 kinds of things", (KRIZHEVSKY,)
        ),
        Registration(
            "cifar100", "ctkd.data.cifar100:CIFAR100", "60,000 32x32 photographs of 100 kinds of things", (KRIZHEVSKY,)
        ),
        Registration("gtsrb", "ctkd.data.gtsrb:GTSRB", "51,839 German traffic signs, resized to 32x32", (STALLKAMP,)),
        Registration(
            "tinyimagenet",
            "ctkd.data.tinyimagenet:TinyImageNet",
            "110,000 64x64 photographs, 200 classes of ImageNet",
            (LE,),
        ),
        Registration(
            "imagenet64",
            "ctkd.data.imagenet64:ImageNet64",
            "ImageNet's 1.3 million photographs in 64x64 pixels, 1000 classes",
            (CHRABASZCZ,),
        ),
        Registration("npz", "ctkd.data.npz:Npz", "arrays of a NumPy archive; also --dataset file.npz"),
        Registration("folder", "ctkd.data.folder:Folder", "a folder of images for each class; also --dataset DIR/"),
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
        Registration(
            "alpha-crown",
            "ctkd.certify.alpha_crown:AlphaCrownStage",
            "CROWN with slopes optimised for each margin",
            (ALPHA_CROWN,),
        ),
        Registration(
            "complete",
            "ctkd.certify.complete:CompleteStage",
            "branch and bound over ReLUs: certifies or breaks every sample, given the time",
            (BETA_CROWN, ALPHA_CROWN, FSB, BABSR),
        ),
    ]


@hookimpl
def ctkd_verifiers() -> list[Registration]:
    return [Registration("ctkd", "ctkd.verifiers.own:Own", "ctkd's own attack and certification stages")]


@hookimpl
def ctkd_commands() -> list[Registration]:
    return [
        Registration("train", "ctkd.cli.train:command", "Train a student with a teacher, certify it, export it."),
        Registration("certify", "ctkd.cli.certify:command", "Attack and certify a trained student."),
        Registration("check-proofs", "ctkd.cli.check_proofs:command", "Replay stored proofs by separate code."),
        Registration("radii", "ctkd.cli.radii:command", "Find each sample's certified radius."),
        Registration("report", "ctkd.cli.report:command", "Write one HTML page about runs, or comparing them."),
        Registration("curves", "ctkd.cli.curves:command", "Draw robustness curves of several runs in one picture."),
        Registration("weak", "ctkd.cli.weak:command", "Rank the weakest samples, make a validation set of them."),
        Registration("verify", "ctkd.cli.verify:command", "Ask external verifiers about a run or instances."),
        Registration("export", "ctkd.cli.export:command", "Write what verifiers read, or a whole benchmark."),
        Registration("sweep", "ctkd.cli.sweep:command", "Search over configurations, on validation images."),
        Registration("check", "ctkd.cli.check:command", "Say whether a model can be bounded, and what cannot."),
        Registration("recipes", "ctkd.cli.recipes:command", "List configurations of published rows."),
        Registration("cite", "ctkd.cli.cite:command", "Print BibTeX for the methods of a run or configuration."),
        Registration("plugins", "ctkd.cli.plugins:command", "List plugins and their options."),
    ]
