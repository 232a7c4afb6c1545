# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Models (``ctkd.api.ModelFactory``)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctkd.errors import BadInput
from ctkd.export import to_onnx
from ctkd.propagate import Graph, trace
from ctkd.randomness import generator
from ctkd.storage import read_tensors, write_tensors
from ctkd.testing.common import COMMON, leaves_global_state_alone
from ctkd.testing.runs import sandbox
from ctkd.testing.state import seed_everything
from ctkd.testing.subject import NotApplicable, Subject
from ctkd.train.finish import finalise
from ctkd.train.initialise import default_initialise

SHAPES = ((1, 8, 8), (3, 12, 12), (1, 28, 28), (3, 32, 32))
"""The small ones first; larger ones are tried only where those are refused."""
CLASSES, BATCH = 5, 4


def _shapes(subject: Subject) -> list[tuple[int, ...]]:
    """Up to two input shapes that the factory accepts."""
    factory = subject.create()
    found: list[tuple[int, ...]] = []
    reasons = []
    for shape in SHAPES:
        try:
            factory.build(shape, CLASSES)
            found.append(shape)
        except BadInput as problem:
            reasons.append(str(problem))
        if len(found) == 2 or (found and prod(shape) > 500):
            break
    if not found:
        subject.reject(
            f"build refuses inputs of every shape tried: {'; '.join(reasons)}",
            "ModelFactory.build(input_shape, classes) builds the architecture for the data set's images",
            f"compute sizes from input_shape; tried: {SHAPES}",
        )
    return found


def _build(subject: Subject, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    found = subject.create().build(shape, CLASSES)
    if not isinstance(found, nn.Module):
        subject.reject(
            f"build returned {type(found).__name__}",
            "ModelFactory.build returns a torch.nn.Module",
            "return the module",
        )
    return found.train()


def _graph(subject: Subject, module: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Raises: NotApplicable with the engine's reason where it refuses the module."""
    try:
        return trace(module, shape)
    except BadInput as problem:
        raise NotApplicable(f"ctkd's own engine refuses it, with these reasons: {problem}") from None


def _images(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(BATCH, *shape, generator=generator(seed, "conformance-model")).to(dtype)


def exercise(subject: Subject) -> None:
    """Build and use it."""
    shape = _shapes(subject)[0]
    _build(subject, shape)(_images(shape))


def builds_classifiers(subject: Subject) -> None:
    """``build`` gives a module of images to (batch, classes) logits, finite, in training and evaluation mode."""
    for shape in _shapes(subject):
        module = _build(subject, shape)
        for training in (True, False):
            logits = module.train(training)(_images(shape))
            wanted = (BATCH, CLASSES)
            if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted or not bool(logits.isfinite().all()):
                what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
                subject.reject(
                    f"for {BATCH} images of shape {shape} the module returned {what}",
                    f"a model maps (batch, *input_shape) to finite logits (batch, classes), here {wanted}",
                    "use both arguments of build(input_shape, classes), and return logits, no softmax",
                )


def is_reproducible(subject: Subject) -> None:
    """Under one seed of torch two builds have equal parameters, of their own each."""
    shape = _shapes(subject)[0]
    first, second = (_build(subject, shape) for _ in range(2))
    for name, value in first.state_dict().items():
        if not value.equal(second.state_dict()[name]):
            subject.reject(
                f"two builds after torch.manual_seed(0) differ in {name}",
                "weights depend on torch's random numbers alone: core seeds them",
                "initialise by torch.nn.init, not by numpy or random",
            )
    if any(a is b for a in first.parameters() for b in second.parameters()):
        subject.reject("two builds share parameters", "build makes a new module each time", "make layers inside build")


def is_initialised_by_the_seed_of_a_run(subject: Subject) -> None:
    """Once core has initialised its layers with a run's seed, nothing is left of what ``build`` drew."""
    shape = _shapes(subject)[0]
    states = []
    for seed in (1, 2):
        seed_everything(seed)
        module = subject.create().build(shape, CLASSES)
        default_initialise(module, generator(0, "conformance-model"))
        states.append(module.state_dict())
    different = [name for name, value in states[0].items() if not value.equal(states[1][name])]
    if different:
        subject.reject(
            f"{different[0]} depends on random numbers that build drew",
            "before training core calls reset_parameters() of every layer, with the run's seed: that alone makes runs "
            "reproducible",
            "give layers of your own a reset_parameters() method that draws their weights",
        )


def does_the_same_in_both_modes(subject: Subject) -> None:
    """But for the statistics of batch norm, forward is one function in training and in evaluation mode."""
    shape = _shapes(subject)[0]
    module = _build(subject, shape)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    with torch.no_grad():
        logits = module(_images(shape)), module.eval()(_images(shape))
    if not logits[0].equal(logits[1]):
        subject.reject(
            "in training mode the module's logits are not those of evaluation mode; they differ by "
            f"{float((logits[0] - logits[1]).abs().amax()):.3g}, statistics of batch norm left aside",
            "the network that is trained, certified and exported is one function",
            "take branches on self.training, dropout, noise and Python randomness out of forward",
        )


def can_be_bounded(subject: Subject) -> None:
    """ctkd's engine computes what the module computes, in training mode as in evaluation mode."""
    for shape in _shapes(subject):
        module = _build(subject, shape).double()
        for i in range(3):  # so that running statistics are not those of a fresh layer
            module(_images(shape, i + 1, torch.float64))
        graph, x = _graph(subject, module, shape), _images(shape, 0, torch.float64)
        with torch.no_grad():
            evaluated = module.eval()(x), graph.bind()(x)
            trained = module.train()(x), graph.clean_pass(x).logits
        for name, (a, b) in (("evaluation", evaluated), ("training", trained)):
            if not bool(torch.isclose(a, b, rtol=1e-6, atol=1e-8).all()):
                subject.reject(
                    f"in {name} mode the module's logits for images of shape {shape} are not those of its bounded "
                    f"network; they differ by {float((a - b).abs().amax()):.3g}",
                    "bounds speak about the network that the module is, with the statistics of a batch or running ones",
                    "leave batch norm to nn.BatchNorm1d and nn.BatchNorm2d, and keep no state between calls",
                )


def every_parameter_is_trained(subject: Subject) -> None:
    """Every parameter has a gradient, and the state dict can be stored in a checkpoint."""
    shape = _shapes(subject)[0]
    module = _build(subject, shape)
    cross_entropy(module(_images(shape)), torch.arange(BATCH)).backward()  # type: ignore[no-untyped-call]
    unused = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        subject.reject(
            f"parameter {unused[0]} takes no part in the logits",
            "every parameter of a model is trained",
            "leave the layer out, or use it in forward",
        )
    with sandbox() as folder:
        try:
            write_tensors(folder / "state.safetensors", module.state_dict())
            module.load_state_dict(read_tensors(folder / "state.safetensors")[0])
        except (RuntimeError, ValueError) as error:
            subject.reject(
                f"its state dict cannot be stored and loaded: {' '.join(str(error).split())[:200]}",
                "checkpoints are safetensors files: tensors that share no memory",
                "give each layer its own parameters; tied weights are not supported",
            )


def ends_in_a_linear_layer(subject: Subject) -> None:
    """It ends in a Linear layer, whose input is the features that distillation compares."""
    shape = _shapes(subject)[0]
    graph = _graph(subject, _build(subject, shape), shape)
    if graph.bind().head is None:
        raise NotApplicable("it does not: objectives that read features will refuse it, and intervals are looser")


def can_be_exported(subject: Subject) -> None:
    """The folded network can be written as ONNX for external verifiers."""
    shape = _shapes(subject)[0]
    module = _build(subject, shape)
    _graph(subject, module, shape)
    try:
        to_onnx(finalise(module, shape))
    except BadInput as problem:
        raise NotApplicable(f"it cannot be exported, with these reasons: {problem}") from None


CHECKS = (
    *COMMON,
    builds_classifiers,
    is_reproducible,
    is_initialised_by_the_seed_of_a_run,
    does_the_same_in_both_modes,
    can_be_bounded,
    every_parameter_is_trained,
    ends_in_a_linear_layer,
    can_be_exported,
    leaves_global_state_alone(exercise, "arithmetic", "process"),
)
