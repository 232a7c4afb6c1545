# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The conformance kit: whether a plugin keeps the contract of ``ctkd.api`` and ``ctkd.hookspecs``.

A plugin's whole conformance test, one test for each check::

    from ctkd.testing import conformance

    test_conformance = conformance("bound", "my-ibp", options={"alpha": 0.3})

Without pytest, ``checks`` gives the same checks as callables and ``run_checks`` runs them all. A check that fails
raises ``ConformanceError``, which says what was found, what the contract asks and what to do.

Checks drive the plugin as core does, on tiny networks and batches. What they find is wrong; what they do not find may
still be: soundness is sampled, not proved.
"""

from ctkd.testing.instance import save_tiny_network, tiny_specification
from ctkd.testing.kit import Check, Result, checks, conformance, run_checks
from ctkd.testing.subject import ConformanceError, NotApplicable

__all__ = [
    "Check",
    "ConformanceError",
    "NotApplicable",
    "Result",
    "checks",
    "conformance",
    "run_checks",
    "save_tiny_network",
    "tiny_specification",
]
