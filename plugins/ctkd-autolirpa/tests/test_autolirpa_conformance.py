# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The contract of a backend and of stages."""

from __future__ import annotations

from ctkd.testing import conformance

test_backend = conformance("propagation", "autolirpa")
test_ibp = conformance("stage", "autolirpa-ibp")
test_crown_ibp = conformance("stage", "autolirpa-crown-ibp")
test_crown = conformance("stage", "autolirpa-crown")
test_alpha_crown = conformance("stage", "autolirpa-alpha-crown", options={"iterations": 2})
