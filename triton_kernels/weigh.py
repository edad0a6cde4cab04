"""weigh: the integer weights of law sections 1 and 5.

`sweep` reads the row once: it sums up, chunk by chunk, what is kept for sure, and gathers the tokens of which that is
not known yet. A weight is computed where it is needed and never written to memory.
"""

import triton
import triton.language as tl

from . import gather, load
from .law import (
    LARGEST_WEIGHT,
    LAST_RANK,
    at_or_above,
    logit_of,
    scale_of,
    shift_of_probabilities,
    weight_of_logit,
    weight_of_probability,
)
from .work import masses_in


@triton.jit
def weighing_of(first_rank, temperature, vocab, shape):
    """What a row's weights depend on beside the token: m, c and (for probabilities) the shift."""
    m = logit_of(first_rank)
    if shape.probabilities:
        # b = min(40, 62 - ceil(log2 V)): ceil(log2 V) is how many bits V - 1 has.
        last = tl.full((), 0, tl.int32) + (vocab - 1)
        bits = last * 0
        for power in tl.static_range(31):
            bits += (last >> power > 0).to(tl.int32)
        return m, m, shift_of_probabilities(m, tl.minimum(40, 62 - bits))
    else:
        return m, scale_of(temperature), 0


@triton.jit
def weights(x, weighing, shape):
    """w_i of loaded values, int64."""
    m, c, shift = weighing
    if shape.probabilities:
        return weight_of_probability(x, shift)
    else:
        return weight_of_logit(x, m, c)


@triton.jit
def last_rank_of(shape):
    """The last rank that a token can have whose weight counts: of a probability, that of 0."""
    if shape.probabilities:
        return 0
    else:
        return LAST_RANK


@triton.jit
def largest(weighing, shape):
    """The largest weight of the row, to which min_p is relative."""
    m, _, shift = weighing
    if shape.probabilities:
        return weight_of_probability(m, shift)
    else:
        return tl.full((), LARGEST_WEIGHT, tl.int64)


@triton.jit
def sweep(
    row, weighing, scratch, first, last, sure_rank, sure_index, last_rank, last_index, least, least_of_base, shape
):
    """Weighs the chunks [first, last): sums what is kept for sure, and lists what may be kept.

    Kept for sure is what ranks at or above (sure_rank, sure_index) and weighs `least`; its sum over each chunk goes to
    the scratch memory. What ranks below, down to (last_rank, last_index), and weighs `least_of_base` goes to the list.
    """
    per_block: tl.constexpr = shape.block // shape.chunk
    for chunk in range(first, last, per_block):
        x, index = load.block(row, chunk, shape)
        rank = load.ranks(x, shape)
        weight = weights(x, weighing, shape)
        sure = at_or_above(rank, index, sure_rank, sure_index)
        kept = tl.where(sure & (weight >= least), weight, 0)
        mass = tl.sum(tl.reshape(kept, [per_block, shape.chunk]), axis=1)
        place = chunk + tl.arange(0, per_block)
        tl.store(masses_in(scratch, shape) + place, mass, mask=place < last)
        candidate = at_or_above(rank, index, last_rank, last_index)
        candidate = candidate & (sure == 0) & (weight >= least_of_base)
        gather.append(scratch, rank, index, candidate, shape)
