# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What is timed: one file a contender, each in a process of its own. What peers need stays in their files."""
