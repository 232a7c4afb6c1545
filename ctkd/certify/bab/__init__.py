# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Optimised relaxations and branch and bound over rectifiers."""
