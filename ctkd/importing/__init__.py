# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""ONNX classifiers of anyone's as bound networks."""

from ctkd.importing.read import Imported, import_model

__all__ = ["Imported", "import_model"]
