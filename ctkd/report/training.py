# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Training curves, from the lines of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctkd.report.plots import percent, percent_axis
from ctkd.report.svg import COLOURS, Picture, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = Sequence[Mapping[str, Any]]
VALIDATION = {
    "natural_accuracy": ("natural", "natural"),
    "adversarial_accuracy": ("adversarial", "adversarial"),
    "interval_certified_accuracy": ("certified by intervals", "certified"),
}
ROOM = 0.12
"""A phase has its name above the plot if it takes this share of the epochs."""
TERMS = 6
"""Terms of the loss that are drawn beside the total; the largest ones."""


def training_pictures(name: str, network: str, metrics: Metrics) -> list[Picture]:
    """Validation accuracy, losses, and unstable neurons over the epochs; what was not recorded is left out."""
    found = [_accuracies(name, network, metrics), _losses(name, network, metrics), _unstable(name, network, metrics)]
    return [picture for picture in found if picture is not None]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _series(metrics: Metrics, *keys: str) -> tuple[list[float], list[float]]:
    """Epochs and values under nested keys, where they are recorded."""
    epochs, values = [], []
    for row in metrics:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        epoch, number = _number(row.get("epoch")), _number(value)
        if epoch is not None and number is not None:
            epochs.append(epoch)
            values.append(number)
    return epochs, values


def _last(metrics: Metrics) -> Mapping[str, Any]:
    return metrics[-1] if metrics else {}


def _phases(axes: Axes, metrics: Metrics) -> None:
    """A line where a new phase begins; its name where there is room. All epochs have their place on the axis."""
    phases: dict[str, list[float]] = {}
    for row in metrics:
        epoch = _number(row.get("epoch"))
        if epoch is not None:
            phases.setdefault(str(row.get("phase", "")), []).append(epoch)
    axes.set_xlim(0.5, max(epoch for epochs in phases.values() for epoch in epochs) + 0.5)
    for i, (phase, epochs) in enumerate(phases.items()):
        begin = epochs[0] - 0.5
        if i > 0:
            axes.axvline(begin, color=COLOURS["faint"], linewidth=1, linestyle=":")
        if len(epochs) >= ROOM * len(metrics):
            axes.text(begin, 1.01, f" {phase}", transform=axes.get_xaxis_transform(), fontsize=8.5, va="bottom")


def _accuracies(name: str, network: str, metrics: Metrics) -> Picture | None:
    curves = {label: (_series(metrics, "validation", key), colour) for key, (label, colour) in VALIDATION.items()}
    if not any(values for (_, values), _ in curves.values()):
        return None
    final = ", ".join(f"{label} {percent(v[-1])}" for label, ((_, v), _) in curves.items() if v)
    alt = f"Validation accuracy of the {network} over {len(metrics)} epochs; at the end {final}."
    caption = f"{network}: accuracy on the validation split after each epoch, the certified one at the target eps."
    with sheet(f"{name}-{network}-accuracy", alt, caption) as drawing:
        axes = drawing.axes
        for label, ((epochs, values), colour) in curves.items():
            if values:
                axes.plot(epochs, values, color=COLOURS[colour], label=label)
        axes.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.02))
        percent_axis(axes)
        _phases(axes, metrics)
        axes.legend(loc="best")
    return drawing.picture


def _losses(name: str, network: str, metrics: Metrics) -> Picture | None:
    final = _last(metrics).get("losses")
    if not isinstance(final, Mapping) or not _series(metrics, "losses", "loss")[0]:
        return None
    terms = sorted((k for k in final if k != "loss"), key=lambda k: -abs(_number(final[k]) or 0.0))[:TERMS]
    alt = f"Training loss of the {network}; at the end " + ", ".join(
        f"{key} {value:.3g}" for key in ["loss", *terms] if (value := _number(final.get(key))) is not None
    )
    caption = f"{network}: mean of the loss and its largest terms over each epoch; the radius grows along the ramp."
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with sheet(f"{name}-{network}-loss", f"{alt}.", caption) as drawing:
        axes = drawing.axes
        for i, key in enumerate(terms):
            axes.plot(*_series(metrics, "losses", key), color=COLOURS[f"series-{i}"], label=key, linewidth=1.3)
        epochs, values = _series(metrics, "losses", "loss")
        axes.plot(epochs, values, color=COLOURS["ink"], label="total", linewidth=2.2)
        positive = [v for key in ["loss", *terms] for v in _series(metrics, "losses", key)[1]]
        if positive and min(positive) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="epoch", ylabel="training loss")
        _phases(axes, metrics)
        axes.legend(loc="best", fontsize=8)
    return drawing.picture


def _unstable(name: str, network: str, metrics: Metrics) -> Picture | None:
    validation = _last(metrics).get("validation")
    layers = validation.get("layers") if isinstance(validation, Mapping) else None
    if not isinstance(layers, Mapping):
        return None
    curves = {layer: _series(metrics, "validation", "layers", layer, "unstable") for layer in layers}
    curves = {layer: found for layer, found in curves.items() if found[0]}
    if not curves:
        return None
    final = ", ".join(f"{layer} {percent(values[-1])}" for layer, (_, values) in curves.items())
    caption = f"{network}: share of neurons that intervals at the target eps cannot decide, by activation layer."
    alt = f"Unstable neurons of the {network} by layer; at the end {final}."
    with sheet(f"{name}-{network}-unstable", alt, caption) as drawing:
        axes = drawing.axes
        for i, (layer, (epochs, values)) in enumerate(curves.items()):
            axes.plot(epochs, values, color=COLOURS[f"series-{i % 8}"], label=f"layer {layer}", linewidth=1.4)
        axes.set(xlabel="epoch", ylabel="unstable neurons")
        axes.set_ylim(bottom=0)
        percent_axis(axes)
        _phases(axes, metrics)
        axes.legend(loc="best", fontsize=8, ncols=2 if len(curves) > 4 else 1)
    return drawing.picture
