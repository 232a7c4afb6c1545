# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Shipped defaults, one TOML file per data set and per (data set, radius)."""
