# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is checked of each kind of plugin, one file each: ``CHECKS`` is a tuple of functions of a ``Subject``."""
