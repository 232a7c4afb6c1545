# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The Kullback-Leibler divergence, as all methods and objectives use it. Importing it does not load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def divergence_from(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(reference / T) || softmax(logits / T))`` of each sample, (batch, classes) twice -> (batch,).

    A sum over the classes: code that averages over all elements has values smaller by the number of classes. 0 log 0
    is 0. Gradients flow through both arguments, also where a probability is rounded to 0: hence logarithms throughout.
    """
    from torch.nn.functional import kl_div

    target = (reference / temperature).log_softmax(1)
    own = (logits / temperature).log_softmax(1)
    return kl_div(own, target, reduction="none", log_target=True).sum(1) * temperature**2
