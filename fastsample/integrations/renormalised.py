"""Filtered probabilities that sum to 1 again, by integers, so that they are the same bits on every device."""

import math

import torch
from torch import Tensor

from fastsample import reference


@torch.compiler.disable(reason="compilers contract a multiplication and an addition, which the law rounds apart")
def renormalised(probs: Tensor, kept: Tensor) -> Tensor:
    """The kept probabilities of each row, divided by their sum.

    The sum is Z, the kept weights w_i = floor(p_i * s) of law section 5, whose s is a power of two: what is rounded
    off is below 2^-39 of the largest p for each token, up to 2^22 tokens. So no order of summation plays a part.

    Args:
        probs: [rows, vocab], float32, float16 or bfloat16, at least 0 and finite.
        kept: bool [rows, vocab].

    Returns:
        float32 [rows, vocab]: fl(p_i * s / Z), computed in float64, where kept, else 0; all NaN in a row of which
        nothing is kept, or that is invalid (law section 5).

    Source: docs/law.md, section 5.
    """
    result = torch.empty(probs.shape, dtype=torch.float32, device=probs.device)
    if probs.numel() == 0:
        return result
    for part in reference.blocks(*probs.shape):
        value = reference.widen(probs[part])
        smallest, largest = value.aminmax(dim=1)  # NaN where the row holds one
        valid = (smallest >= 0) & (largest > 0) & (largest < math.inf) & kept[part].any(dim=1)
        value = torch.where(valid[:, None], value, 1.0)
        weight = reference.weigh_probabilities(value)
        # The largest p is a multiple of 1 / s, so this division has no remainder.
        s = weight.amax(dim=1, keepdim=True).double() / value.amax(dim=1, keepdim=True)
        z = torch.where(kept[part], weight, 0).sum(dim=1, keepdim=True)
        share = reference.narrow(reference.fl(value * s / z.double()))
        result[part] = torch.where(valid[:, None], torch.where(kept[part], share, 0.0), math.nan)
    return result
