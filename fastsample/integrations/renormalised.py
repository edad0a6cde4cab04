"""Filtered probabilities that sum to 1 again, by integers, so that they are the same bits on every device.

    s = 2^(b - 1 - e)            law section 5, of the whole row
    Z = sum of floor(p_i * s)    over what is kept
    r_i = fl(p_i * s / Z)        where kept, else 0

On a CPU a long row is worked through on its own, in few passes, and only what may be kept is sorted and divided. How
many tokens that is a GPU would have to be waited for, so there whole batches go through operations of fixed shapes.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from fastsample import reference
from fastsample.arguments import Filters
from fastsample.graph_breaks import outside_of_graphs

_INFINITY_BITS = 0x7F800000
# Of shorter rows a batch takes less time than its rows one by one, each of which costs the calls of many operations.
_LONG_ROW = 2048
# How often the tokens that top_p may keep are narrowed down before they are sorted: what is kept is the same after any
# number of rounds, each of which reads what the one before left.
_ROUNDS = 3


@outside_of_graphs("compilers contract a multiplication and an addition, which the law rounds apart")
def renormalised(probs: Tensor, kept: Tensor) -> Tensor:
    """The kept probabilities of each row, divided by their sum.

    Args:
        probs: [rows, vocab], float32, float16 or bfloat16, at least 0 and finite.
        kept: bool [rows, vocab].

    Returns:
        float32 [rows, vocab]: r_i; all NaN in a row of which nothing is kept, or that is invalid (law section 5).

    Source: docs/law.md, section 5.
    """
    if _one_by_one(probs):
        return _row_by_row(probs, lambda row, number: kept[number].nonzero().view(-1))
    return _in_batches(probs, kept)


@outside_of_graphs("compilers contract a multiplication and an addition, which the law rounds apart")
def renormalised_nucleus(probs: Tensor, filters: Filters) -> Tensor:
    """The probabilities that top_p keeps of each row, divided by their sum.

    Args:
        probs: as for `renormalised`.
        filters: of which none but top_p filters.

    Returns:
        As `renormalised`; all NaN as well in a row whose top_p is NaN or outside [0, 1].

    Source: docs/law.md, sections 3 and 5.
    """
    if _one_by_one(probs):
        top_p = reference.row_filters(filters, probs.shape[0], probs).top_p.tolist()
        return _row_by_row(probs, lambda row, number: row.nucleus(top_p[number]))
    return _in_batches(probs, reference.kept_set(probs, filters, probabilities=True))


def _one_by_one(probs: Tensor) -> bool:
    return probs.is_cpu and probs.shape[1] >= _LONG_ROW


class _Row:
    """A valid row of probabilities on a CPU.

    Attributes:
        probs: float32 [vocab].
        bits: int32 [vocab], as integers in the order of the probabilities.
        s: the power of two of law section 5.
    """

    def __init__(self, probs: Tensor, bits: Tensor, largest: int) -> None:
        self.probs, self.bits = probs, bits
        self._e = (largest >> 23) - 127 if largest >= 1 << 23 else largest.bit_length() - 150
        b = min(40, 62 - (len(probs) - 1).bit_length())
        self.s = 2.0 ** (b - 1 - self._e)

    def nucleus(self, top_p: float) -> Tensor:
        """The tokens that top_p keeps, int64 [kept], in any order; none where it is NaN or outside [0, 1]."""
        if not 0 <= top_p <= 1:
            return torch.empty(0, dtype=torch.int64)
        if top_p == 1:
            return torch.arange(len(self.probs))
        # A denormal, which a processor may read as 0, weighs nothing beside a peak that is far from them.
        value = self.probs.double() if self._e > -80 else reference.widen(self.probs)
        token, weight = torch.arange(len(self.probs)), value.mul_(self.s).long()
        mass = int(weight.sum())
        bound = max(1, math.ceil(Fraction(top_p) * mass))
        for _ in range(_ROUNDS):
            # All of this weight or less weigh at most mass - bound together, so those above it reach the bound.
            light = (mass - bound) // len(weight)
            heavy = (weight > light).nonzero().view(-1)
            token, weight = token[heavy], weight[heavy]
            mass = int(weight.sum())
        ranked = self.bits[token].sort(descending=True, stable=True).indices
        up_to_here = weight[ranked].cumsum(0)
        # The first always; each other one while those before it weigh less than the bound.
        return token[ranked[: 1 + int((up_to_here[:-1] < bound).sum())]]


def _row_by_row(probs: Tensor, kept: Callable[[_Row, int], Tensor]) -> Tensor:
    """The result for rows on a CPU. kept: the kept tokens of a valid row, by the row and its number."""
    result = torch.zeros(probs.shape, dtype=torch.float32)
    for part in reference.blocks(*probs.shape):
        found = [_kept_of(probs[number], number, kept) for number in range(part.start, part.stop)]
        count = torch.tensor([len(tokens) for tokens, _ in found])
        token = torch.cat([tokens for tokens, _ in found])
        row = torch.arange(len(found)).repeat_interleave(count)
        s = torch.tensor([s for _, s in found], dtype=torch.float64)
        scaled = reference.widen(probs[part][row, token]).mul_(s[row])
        z = torch.zeros(len(found), dtype=torch.int64).index_add_(0, row, scaled.long())
        result[part][row, token] = _share(scaled, z[row])
        result[part][count == 0] = math.nan
    return result


def _kept_of(probs: Tensor, number: int, kept: Callable[[_Row, int], Tensor]) -> tuple[Tensor, float]:
    """The tokens that are kept of row `number`, none of an invalid one, and its s."""
    values = probs.detach().float()
    bits = values.view(torch.int32)
    smallest, largest = (int(extreme) for extreme in bits.aminmax())
    if smallest < 0:  # a number below 0, or -0.0, which is not
        bits = reference.ordered_key(values)
        smallest, largest = (int(extreme) for extreme in bits.aminmax())
    if smallest < 0 or not 0 < largest < _INFINITY_BITS:
        return torch.empty(0, dtype=torch.int64), 1.0
    row = _Row(values, bits, largest)
    return kept(row, number), row.s


def _in_batches(probs: Tensor, kept: Tensor) -> Tensor:
    """The result for rows on any device, without waiting for it."""
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
        share = torch.where(kept[part], _share(value * s, z), 0.0)
        result[part] = torch.where(valid[:, None], share, math.nan)
    return result


def _share(scaled: Tensor, z: Tensor) -> Tensor:
    """r_i of p_i * s, float64; of more than 2^53 z is rounded, the quotient then twice, to float64 and to float32."""
    return reference.narrow(reference.fl(scaled / z.double()))
