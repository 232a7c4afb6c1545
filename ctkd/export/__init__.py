# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Networks and properties in the files that verifiers read: ONNX, VNN-LIB 1.0 and 2.0, competition folders."""

from ctkd.export.check import compare, runner
from ctkd.export.instances import ExportReport, export_instances
from ctkd.export.onnx_writer import to_onnx, write_onnx
from ctkd.export.vnnlib import RobustnessProperty, read_vnnlib, write_vnnlib
from ctkd.export.vnnlib2 import read_vnnlib2, write_vnnlib2

__all__ = [
    "ExportReport",
    "RobustnessProperty",
    "compare",
    "export_instances",
    "read_vnnlib",
    "read_vnnlib2",
    "runner",
    "to_onnx",
    "write_onnx",
    "write_vnnlib",
    "write_vnnlib2",
]
