"""Which tokens a row keeps (law section 3): bound, gather, weigh and cut, in the cheapest order that is exact.

Reads of the row, after the one of `maximum`: with top_k alone or first, up to `shape.list`, only the chunks that hold a
candidate; without top_p, one; with top_p alone, two. What does not fit into the list takes more: rounds,
each of which cuts the ranks in question into `PIVOTS` + 1 parts, until it does.
"""

import triton
import triton.language as tl

from . import bound, cut, gather, weigh
from .law import LAST_RANK, at_or_above, ceil_product, logit_of
from .work import ORDER_JOINT, ORDER_MIN_P_FIRST, masses_in, scratch_of, selection_in, total_in

# Ranks above every logit's: nothing ranks at or above it.
NOTHING: tl.constexpr = tl.constexpr(-0x7F800001)


@triton.jit
def valid_filters(temperature, top_p, min_p, shape):
    """Law section 1; with probabilities the temperature plays no part. A NaN fails every comparison."""
    valid = (top_p >= 0.0) & (top_p <= 1.0) & (min_p >= 0.0) & (min_p <= 1.0)
    return valid & ((temperature >= 0.0) | shape.probabilities)


@triton.jit
def plan_of(temperature, top_k, top_p, sizes, shape):
    """Whether a row is greedy, has top_k, has top_p, and whether what top_k keeps is to be found by way of the list."""
    greedy = (temperature == 0.0) & (not shape.probabilities)
    has_top_k = (greedy == 0) & (top_k > 0) & (top_k < sizes.vocab)
    # Only so many tokens can be bounded by as many peaks.
    by_list = has_top_k & (top_k <= shape.list) & ((top_k <= sizes.chunks) | (sizes.vocab <= shape.list))
    return greedy, has_top_k, (greedy == 0) & (top_p < 1.0), by_list


@triton.jit
def of_list(row, weighing, scratch, peak, first_rank, top_k, top_p, has_top_p, least, order, sizes, shape):
    """What a row with a small top_k keeps: rank, index and kept weight of each candidate, the cut, and the list's size.

    Where the list is too large for its room, nothing but its size is of use.
    """
    everything = tl.full((), 0, tl.int64)
    joint = has_top_p & (order == ORDER_JOINT)
    if joint:
        weigh.sweep(
            row, weighing, scratch, 0, sizes.chunks, LAST_RANK, sizes.vocab, NOTHING, 0, everything, everything, shape
        )
        tl.debug_barrier()
        everything = mass_of_chunks(scratch, sizes, shape)
        tl.debug_barrier()
    gather.reaching(row, peak, bound.of_top_k(peak, top_k, first_rank), scratch, sizes, shape)
    tl.debug_barrier()
    size = gather.size_of_list(scratch, shape)
    rank, index = gather.candidates(scratch, shape)
    candidate = rank <= LAST_RANK
    weight = tl.where(candidate, weigh.weights(logit_of(rank), weighing, shape), 0)
    last_rank, last_index = cut.last_kept(rank, index, candidate.to(tl.int32), top_k, sizes.vocab)
    if has_top_p:
        base = joint | at_or_above(rank, index, last_rank, last_index)
        base = base & ((order != ORDER_MIN_P_FIRST) | (weight >= least))
        base_weight = tl.where(base, weight, 0)
        target = cut.mass_bound(top_p, tl.where(joint, everything, tl.sum(base_weight, axis=0)))
        p_rank, p_index = cut.last_kept(rank, index, base_weight, target, sizes.vocab)
        last_rank, last_index = cut.higher(last_rank, last_index, p_rank, p_index)
    kept = at_or_above(rank, index, last_rank, last_index)
    return index, tl.where(kept & (weight >= least), weight, 0), last_rank, last_index, size


@triton.jit
def mass_of_chunks(scratch, sizes, shape):
    """The sum of the chunks' sums."""
    place = tl.arange(0, shape.chunks)
    return tl.sum(tl.load(masses_in(scratch, shape) + place, mask=place < sizes.chunks, other=0), axis=0)


@triton.jit
def of_row(row, weighing, scratch, peak, first_rank, top_k, top_p, has_top_k, has_top_p, least, order, sizes, shape):
    """The cut of a row by reading it again: rank and index of the last token that top_k and top_p keep.

    Two steps of one loop, so that its code is there once: top_k by count, then top_p by weight of its base, what ranks
    at or above (base_rank, base_index). In each, the last token kept has a rank in (low, high]; what ranks at or above
    `low` measures `before`, less than the target, and what ranks at or above `high` measures `reached`, enough; at most
    `members` tokens lie between. Leaves the weight that each chunk keeps in the scratch memory: `summed` says whether
    that is so already.
    """
    last_rank = tl.full((), weigh.last_rank_of(shape), tl.int32)
    last_index = sizes.vocab - 1
    base_rank = last_rank
    base_index = last_index
    # The kernels that ran before have prepared what a row without top_k needs.
    prepared = (has_top_k == 0) & (not shape.resident)
    summed = prepared & (has_top_p == 0)
    for step in range(2):
        counting = step == 0
        if (counting & has_top_k) | ((step == 1) & has_top_p):
            # By mass, what weighs nothing is no member: none is needed to reach the target, and there may be many.
            least_of_base = tl.where((step == 1) & (order == ORDER_MIN_P_FIRST), tl.maximum(least, 1), step)
            low = (first_rank - 1).to(tl.int64)
            high = base_rank.to(tl.int64)
            before = tl.full((), 0, tl.int64)
            reached = before
            target = before
            members = before + shape.list + 1
            rounds = tl.full((), 0, tl.int32)
            while (rounds == 0) | ((members > shape.list) & (high - low > 1)):
                pivots = bound.even_pivots(low, high)
                if prepared & (rounds == 0):
                    pivots = cut.load_pivots(scratch, shape)
                else:
                    if (step == 1) & (rounds == 0):
                        pivots = bound.guessed_pivots(row, peak, weighing, top_p, shape)
                    tl.debug_barrier()  # what the round before added up is read
                    cut.clear(scratch, shape)
                    tl.debug_barrier()
                    cut.narrow(
                        row,
                        weighing,
                        scratch,
                        pivots,
                        0,
                        sizes.chunks,
                        counting,
                        base_rank,
                        base_index,
                        least_of_base,
                        False,
                        shape,
                    )
                    tl.debug_barrier()
                total = tl.load(total_in(scratch, shape))
                target = tl.where(counting, top_k, cut.mass_bound(top_p, total))
                reached = tl.where(rounds == 0, total, reached)
                low, high, before, reached = cut.between_pivots(
                    scratch, pivots, low, high, before, reached, target, shape
                )
                members = cut.most_members(reached - before, high, counting, weighing, shape)
                rounds += 1

            only_one = (has_top_k == 0) | (has_top_p == 0)
            rank = high.to(tl.int32)
            index = tl.where(rank == base_rank, base_index, sizes.vocab - 1)
            if members <= shape.list:
                if (prepared & (rounds == 1)) == 0:
                    gather.clear(scratch, shape)
                    tl.debug_barrier()
                    weigh.sweep(
                        row,
                        weighing,
                        scratch,
                        0,
                        sizes.chunks,
                        low.to(tl.int32),
                        sizes.vocab,
                        rank,
                        index,
                        least,
                        least_of_base,
                        shape,
                    )
                    tl.debug_barrier()
                rank, index = of_candidates(weighing, scratch, target - before, counting, least, sizes, shape)
                summed = summed | only_one
            else:
                # More tokens of one rank than the list has room for; they weigh the same.
                one = tl.where(counting, 1, tl.maximum(weigh.weights(logit_of(rank), weighing, shape), 1))
                index = cut.nth_tie(row, scratch, rank, (target - before + one - 1) // one, sizes, shape)
            last_rank, last_index = cut.higher(last_rank, last_index, rank, index)
            if order != ORDER_JOINT:
                base_rank = last_rank
                base_index = last_index
    if summed == 0:
        tl.debug_barrier()
        zero = tl.full((), 0, tl.int64)
        weigh.sweep(row, weighing, scratch, 0, sizes.chunks, last_rank, last_index, NOTHING, 0, least, zero, shape)
    tl.debug_barrier()
    return last_rank, last_index


@triton.jit
def of_candidates(weighing, scratch, target, counting, least, sizes, shape):
    """The cut among the candidates of `weigh.sweep`, whose kept weights are added to their chunks' sums."""
    rank, index = gather.candidates(scratch, shape)
    candidate = rank <= LAST_RANK
    weight = tl.where(candidate, weigh.weights(logit_of(rank), weighing, shape), 0)
    measure = tl.where(counting, candidate.to(tl.int64), weight)
    last_rank, last_index = cut.last_kept(rank, index, measure, target, sizes.vocab)
    kept = candidate & (at_or_above(rank, index, last_rank, last_index)) & (weight >= least)
    tl.atomic_add(masses_in(scratch, shape) + index // shape.chunk, weight, mask=kept, sem="relaxed")
    return last_rank, last_index


@triton.jit
def least_weight(min_p, weighing, shape):
    """Law section 3: what min_p keeps weighs at least ceil(min_p * the largest weight)."""
    return ceil_product(min_p, weigh.largest(weighing, shape))


# --- what a row keeps, for the kernels after `row_kernel`


@triton.jit
def store(scratch, last_rank, last_index, least, z, first_rank, shape):
    place = selection_in(scratch, shape)
    tl.store(place, tl.full((), 1, tl.int64))
    tl.store(place + 1, last_rank.to(tl.int64))
    tl.store(place + 2, last_index.to(tl.int64))
    tl.store(place + 3, least)
    tl.store(place + 4, z)
    tl.store(place + 5, first_rank.to(tl.int64))


@triton.jit
def stored(scratch, row, shape):
    """Whether the row is valid, rank and index of the last token kept, least weight, Z, m."""
    place = selection_in(scratch_of(scratch, row, shape), shape)
    valid = tl.load(place) != 0
    last_rank = tl.load(place + 1, mask=valid, other=LAST_RANK).to(tl.int32)
    last_index = tl.load(place + 2, mask=valid, other=0).to(tl.int32)
    least = tl.load(place + 3, mask=valid, other=0)
    z = tl.load(place + 4, mask=valid, other=1)
    m = logit_of(tl.load(place + 5, mask=valid, other=0).to(tl.int32))
    return valid, last_rank, last_index, least, z, m


@triton.jit
def keeps(rank, index, weight, last_rank, last_index, least):
    """Which tokens a row keeps, of the numbers that are stored."""
    within = at_or_above(rank, index, last_rank, last_index)
    return within & (weight >= least)
