"""maximum: the first rank of every chunk of a row, from which follow m, the row's validity and top_k's bound.

One read of the row. A chunk's maximum is one word; the steps after it look at these words first, and read again only
the chunks that can hold what they look for.
"""

import triton
import triton.language as tl

from . import load
from .law import INFINITY_RANK, LAST_RANK, NAN_RANK
from .work import peaks_in


@triton.jit
def sweep(row, scratch, first, last, shape):
    """Writes the peaks of the chunks [first, last) to the row's scratch memory."""
    per_block: tl.constexpr = shape.block // shape.chunk
    for chunk in range(first, last, per_block):
        x, _ = load.block(row, chunk, shape)
        peak = tl.min(tl.reshape(load.ranks(x, shape), [per_block, shape.chunk]), axis=1)
        place = chunk + tl.arange(0, per_block)
        tl.store(peaks_in(scratch, shape) + place, peak.to(tl.int64), mask=place < last)


@triton.jit
def peaks(scratch, sizes, shape):
    """The peaks of all chunks, int32; where there is no chunk, a rank beyond the last."""
    place = tl.arange(0, shape.chunks)
    words = tl.load(peaks_in(scratch, shape) + place, mask=place < sizes.chunks, other=LAST_RANK + 1)
    return words.to(tl.int32)


@triton.jit
def valid(first_rank, shape):
    """Whether a row with this first rank is valid (law sections 1 and 5)."""
    if shape.probabilities:
        return (first_rank > INFINITY_RANK) & (first_rank < 0)
    else:
        return (first_rank > NAN_RANK) & (first_rank <= LAST_RANK)


@triton.jit
def first_maximum(row, peak, first_rank, shape):
    """The lowest index among the maxima. Reads one chunk again."""
    chunk = tl.min(tl.where(peak == first_rank, tl.arange(0, shape.chunks), shape.chunks), axis=0)
    index = chunk * shape.chunk + tl.arange(0, shape.chunk)
    rank = load.ranks(load.values(row, index, shape), shape)
    return tl.min(tl.where(rank == first_rank, index, 0x7FFFFFFF), axis=0)
