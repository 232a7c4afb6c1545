# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""One HTML page about recorded results. Nothing here computes a reported figure: facts are read, drawn and written."""
