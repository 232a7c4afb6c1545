# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Speed of ctkd beside its peers. Run from the repository's root: `python -m benchmarks --help`."""
