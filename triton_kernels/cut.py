"""cut: the last token, in rank order, that top_k and top_p keep (law section 3), exactly.

Of a list of candidates without reading anything: `last_kept`. Of a whole row, `narrow` reads it once and measures what
ranks at or above each of a few pivots, which leaves the ranks between two of them; `weigh.sweep` reads it once more and
lists those, if they are few; if not, there are more rounds, each of which leaves at most 1 / (PIVOTS + 1) of the ranks.
"""

import triton
import triton.language as tl

from . import load, weigh
from .crossing import crossing
from .law import LAST_RANK, at_or_above, ceil_product, logit_of
from .work import PIVOTS, masses_in, pivots_in, sums_in, total_in


@triton.jit
def mass_bound(top_p, total):
    """Law section 3: max(1, ceil(top_p * Z_B)); a token is kept while what ranks above it weighs less."""
    return tl.maximum(ceil_product(top_p, total), 1)


@triton.jit
def last_kept(rank, index, measure, target, vocab):
    """(rank, index) of the last token of the smallest prefix, in rank order, that measures `target`; else of the last.

    rank, index: tiles of candidates. measure: how much of the target each takes, 0 for what is no candidate.
    """
    first = tl.min(rank, axis=0)
    last = tl.max(tl.where(rank <= LAST_RANK, rank, first), axis=0)
    last_rank = crossing(rank, measure, target, first, last)
    above = tl.sum(tl.where(rank < last_rank, measure, 0).to(tl.int64), axis=0)
    tie = rank == last_rank
    first_tie = tl.min(tl.where(tie, index, vocab - 1), axis=0)
    last_tie = tl.max(tl.where(tie, index, 0), axis=0)
    ties = tl.where(tie, measure, 0)
    return last_rank, crossing(index, ties, target - above, first_tie, last_tie)


@triton.jit
def higher(rank, index, other_rank, other_index):
    """The one of two cuts that keeps less."""
    first = at_or_above(rank, index, other_rank, other_index)
    return tl.where(first, rank, other_rank), tl.where(first, index, other_index)


@triton.jit
def pivot_at(pivots, number: tl.constexpr):
    """One of the pivots, int32."""
    return tl.sum(tl.where(tl.arange(0, PIVOTS) == number, pivots, 0), axis=0).to(tl.int32)


@triton.jit
def add_up(sums, measure):
    """Add a block's measures to a quarter as many sums: four neighbours are one thread's, which so asks no other."""
    return sums + tl.sum(tl.reshape(measure, [sums.shape[0], 4]), axis=1)


@triton.jit
def narrow(
    row,
    weighing,
    scratch,
    pivots,
    first,
    last,
    counting,
    base_rank,
    base_index,
    least_of_base,
    whole: tl.constexpr,
    shape,
):
    """Adds what ranks at or above each pivot measures, in the chunks [first, last), to the sums in scratch memory.

    Only the base counts: what weighs `least_of_base` and, unless that is the `whole` row, ranks at or above (base_rank,
    base_index). It measures tokens if `counting`, else weights.
    """
    per_block: tl.constexpr = shape.block // shape.chunk
    pivot0, pivot1, pivot2, pivot3 = pivot_at(pivots, 0), pivot_at(pivots, 1), pivot_at(pivots, 2), pivot_at(pivots, 3)
    # Summed up by thread, and over the threads once: with a sum over all of them for each block and pivot, a token took
    # 132 instructions in place of 78 (counted for sm_90, with eight pivots).
    sums0 = tl.zeros([shape.block // 4], tl.int64)
    sums1, sums2, sums3, total = sums0, sums0, sums0, sums0
    for chunk in range(first, last, per_block):
        x, index = load.block(row, chunk, shape)
        rank = load.ranks(x, shape)
        weight = weigh.weights(x, weighing, shape)
        within = weight >= least_of_base
        if not whole:
            within = within & (at_or_above(rank, index, base_rank, base_index))
        measure = tl.where(within, tl.where(counting, 1, weight), 0)
        total = add_up(total, measure)
        sums0 = add_up(sums0, tl.where(rank <= pivot0, measure, 0))
        sums1 = add_up(sums1, tl.where(rank <= pivot1, measure, 0))
        sums2 = add_up(sums2, tl.where(rank <= pivot2, measure, 0))
        sums3 = add_up(sums3, tl.where(rank <= pivot3, measure, 0))
    words = sums_in(scratch, shape)
    tl.atomic_add(words, tl.sum(sums0, axis=0), sem="relaxed")
    tl.atomic_add(words + 1, tl.sum(sums1, axis=0), sem="relaxed")
    tl.atomic_add(words + 2, tl.sum(sums2, axis=0), sem="relaxed")
    tl.atomic_add(words + 3, tl.sum(sums3, axis=0), sem="relaxed")
    tl.atomic_add(total_in(scratch, shape), tl.sum(total, axis=0), sem="relaxed")


@triton.jit
def clear(scratch, shape):
    """Set the sums to 0, before they are added up."""
    tl.store(sums_in(scratch, shape) + tl.arange(0, PIVOTS), tl.zeros([PIVOTS], tl.int64))
    tl.store(total_in(scratch, shape), tl.full((), 0, tl.int64))


@triton.jit
def between_pivots(scratch, pivots, low, high, before, reached, target, shape):
    """The ranks (low, high] between the two pivots that the target lies between, and what is measured up to either."""
    sums = tl.load(sums_in(scratch, shape) + tl.arange(0, PIVOTS))
    short = (sums < target) & (pivots > low)
    enough = (sums >= target) & (pivots < high)
    before = tl.maximum(before, tl.max(tl.where(short, sums, 0), axis=0))
    reached = tl.minimum(reached, tl.min(tl.where(enough, sums, reached), axis=0))
    low = tl.maximum(low, tl.max(tl.where(short, pivots, low), axis=0))
    high = tl.minimum(high, tl.min(tl.where(enough, pivots, high), axis=0))
    return low, high, before, reached


@triton.jit
def most_members(measure, high, counting, weighing, shape):
    """At most so many tokens make up a measure if none of them ranks below `high`, and none weighs nothing."""
    lightest = weigh.weights(logit_of(tl.minimum(high, weigh.last_rank_of(shape)).to(tl.int32)), weighing, shape)
    return measure // tl.where(counting, 1, tl.maximum(lightest, 1))


@triton.jit
def nth_tie(row, scratch, wanted_rank, count, sizes, shape):
    """The index of token number `count` (from 1, in index order) of those of one rank, if there are so many.

    Reads the row once, and a chunk of it. Overwrites the chunks' sums.
    """
    per_block: tl.constexpr = shape.block // shape.chunk
    for chunk in range(0, sizes.chunks, per_block):
        x, _ = load.block(row, chunk, shape)
        tie = (load.ranks(x, shape) == wanted_rank).to(tl.int64)
        place = chunk + tl.arange(0, per_block)
        ties = tl.sum(tl.reshape(tie, [per_block, shape.chunk]), axis=1)
        tl.store(masses_in(scratch, shape) + place, ties, mask=place < sizes.chunks)
    tl.debug_barrier()
    place = tl.arange(0, shape.chunks)
    up_to = tl.cumsum(tl.load(masses_in(scratch, shape) + place, mask=place < sizes.chunks, other=0), axis=0)
    chunk = tl.sum((up_to < count).to(tl.int32), axis=0)
    rest = count - tl.max(tl.where(up_to < count, up_to, 0), axis=0)
    index = chunk * shape.chunk + tl.arange(0, shape.chunk)
    tie = (load.ranks(load.values(row, index, shape), shape) == wanted_rank).to(tl.int64)
    tl.debug_barrier()
    return chunk * shape.chunk + tl.sum((tl.cumsum(tie, axis=0) < rest).to(tl.int32), axis=0)


@triton.jit
def store_pivots(scratch, pivots, shape):
    tl.store(pivots_in(scratch, shape) + tl.arange(0, PIVOTS), pivots)


@triton.jit
def load_pivots(scratch, shape):
    return tl.load(pivots_in(scratch, shape) + tl.arange(0, PIVOTS))
