# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The digits that come with scikit-learn: 1797 real 8x8 images of 17 grey levels (UCI, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctkd.options import Options

if TYPE_CHECKING:
    from ctkd.api import Data


class Digits:
    """A fixed random split: 1257 for training, 180 for validation, 360 for the test. Needs no files."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def load(self, data_dir: Path | None) -> Data:
        import torch
        from sklearn.datasets import load_digits

        from ctkd.api import Data, Split
        from ctkd.data.checks import hold_out

        bunch = load_digits()
        images = torch.tensor(bunch.images / 16.0, dtype=torch.float32).unsqueeze(1)
        labels = torch.tensor(bunch.target, dtype=torch.int64)
        rest, test = hold_out(len(labels), 360, "digits-test")
        train, validation = (rest[part] for part in hold_out(len(rest), 180, "digits-validation"))
        first, second, third = (Split(images[part], labels[part]) for part in (train, validation, test))
        return Data("digits", first, second, third, classes=10)
