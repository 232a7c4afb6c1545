# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Bound propagation: traced graphs, intervals, backward linear relaxation."""

from ctkd.propagate.crown import crown_pre_activation
from ctkd.propagate.graph import CleanPass, Graph, Moments, Statistics
from ctkd.propagate.interval import Bounds, Flow, interval_lower, interval_margins, margins_of, propagate
from ctkd.propagate.layers import SUPPORTED
from ctkd.propagate.linear import (
    at_classes,
    lower_bounds,
    margin_specification,
    relax,
    relaxed_lower,
    relaxed_margins,
    specified_bounds,
)
from ctkd.propagate.network import Network, Node
from ctkd.propagate.trace import trace

__all__ = [
    "SUPPORTED",
    "Bounds",
    "CleanPass",
    "Flow",
    "Graph",
    "Moments",
    "Network",
    "Node",
    "Statistics",
    "at_classes",
    "crown_pre_activation",
    "interval_lower",
    "interval_margins",
    "lower_bounds",
    "margin_specification",
    "margins_of",
    "propagate",
    "relax",
    "relaxed_lower",
    "relaxed_margins",
    "specified_bounds",
    "trace",
]
