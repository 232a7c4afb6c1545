# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""``ctkd verify``: asks external verifiers, believes none of them, and keeps what was found."""
