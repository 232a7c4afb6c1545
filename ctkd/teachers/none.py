# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""No teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctkd.options import Options

if TYPE_CHECKING:
    from ctkd.api import TeacherContext


class NoTeacher:
    def __init__(self, options: Options) -> None:
        self.options = options

    def obtain(self, context: TeacherContext) -> None:
        return None
