# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
