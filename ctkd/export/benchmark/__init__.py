# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A whole competition benchmark: network, image pool, generator script, and what the script writes for one seed."""

from ctkd.export.benchmark.mix import BUDGET, OUTCOMES, parse_mix
from ctkd.export.benchmark.readme import Text
from ctkd.export.benchmark.repository import BenchmarkReport, Candidate, write_benchmark

__all__ = ["BUDGET", "OUTCOMES", "BenchmarkReport", "Candidate", "Text", "parse_mix", "write_benchmark"]
