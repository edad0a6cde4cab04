"""The kernels. `row_kernel` is one row, by the steps of the law: load, maximum, bound, gather, weigh, cut, draw.

A row that fits into the registers of a program it reads once, alone. Any other is read before by kernels that do
nothing else, need few registers, and so keep many loads in flight: `maximum_kernel`, for top_p `bound_kernel` (which
reads a sample) and `narrow_kernel`, then `weigh_kernel`, with several programs a row where there are too few rows to
keep a GPU busy. Each finds what the one before left in the row's scratch memory; programs never wait for each other.
`row_kernel` then reads a few chunks of the row, and the whole of it only where the list overflowed. Others go on from
what it found: `write.py` writes rows, `details.py` says more of the draws, `speculative.py` compares two rows.
"""

import triton
import triton.language as tl

from . import bound, cut, draw, gather, load, maximum, selection, weigh
from .law import LARGEST_WEIGHT, LAST_RANK
from .work import ORDER_MIN_P_FIRST, filters_of, plain, scratch_of, selection_in, source_of, total_in


@triton.jit
def part_of(part, parts, sizes, shape):
    """The chunks [first, last) that one of the programs of a row reads: whole blocks."""
    per_block: tl.constexpr = shape.block // shape.chunk
    chunks = tl.cdiv(tl.cdiv(sizes.chunks, parts), per_block) * per_block
    first = part * chunks
    return first, tl.minimum(first + chunks, sizes.chunks)


@triton.jit(do_not_specialize=["parts"])
def maximum_kernel(logits, sources, filters, sizes, scratch, parts, shape):
    """load, maximum, with `parts` programs a row. Also readies the scratch memory for the kernels after it."""
    row = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    words = scratch_of(scratch, row, shape)
    if part == 0:
        gather.clear(words, shape)
        cut.clear(words, shape)
    source, exists = source_of(sources, row, sizes)
    first, last = part_of(part, parts, sizes, shape)
    if exists:
        maximum.sweep(load.row_at(logits, source, row, sizes.vocab, shape), words, first, last, shape)


@triton.jit
def bound_kernel(logits, sources, filters, sizes, scratch, shape):
    """bound, for rows with top_p alone: the pivots of `narrow_kernel`, by one program a row."""
    row = tl.program_id(0).to(tl.int64)
    words = scratch_of(scratch, row, shape)
    temperature, top_k, top_p, min_p = filters_of(filters, row)
    source, exists = source_of(sources, row, sizes)
    _, has_top_k, has_top_p, _ = selection.plan_of(temperature, top_k, top_p, sizes, shape)
    if exists & selection.valid_filters(temperature, top_p, min_p, shape) & (has_top_k == 0) & has_top_p:
        peak = maximum.peaks(words, sizes, shape)
        first_rank = tl.min(peak, axis=0)
        if maximum.valid(first_rank, shape):
            logits_row = load.row_at(logits, source, row, sizes.vocab, shape)
            weighing = weigh.weighing_of(first_rank, temperature, sizes.vocab, shape)
            cut.store_pivots(words, bound.guessed_pivots(logits_row, peak, weighing, top_p, shape), shape)


@triton.jit(do_not_specialize=["parts"])
def narrow_kernel(logits, sources, filters, sizes, scratch, parts, shape):
    """The first round of cut, for rows with top_p alone, with `parts` programs a row."""
    row = (tl.program_id(0) // parts).to(tl.int64)
    words = scratch_of(scratch, row, shape)
    temperature, top_k, top_p, min_p = filters_of(filters, row)
    source, exists = source_of(sources, row, sizes)
    _, has_top_k, has_top_p, _ = selection.plan_of(temperature, top_k, top_p, sizes, shape)
    if exists & selection.valid_filters(temperature, top_p, min_p, shape) & (has_top_k == 0) & has_top_p:
        first_rank = tl.min(maximum.peaks(words, sizes, shape), axis=0)
        if maximum.valid(first_rank, shape):
            logits_row = load.row_at(logits, source, row, sizes.vocab, shape)
            weighing = weigh.weighing_of(first_rank, temperature, sizes.vocab, shape)
            least = selection.least_weight(min_p, weighing, shape)
            least = tl.where(plain(filters.order) == ORDER_MIN_P_FIRST, least, 0)
            first, last = part_of(tl.program_id(0) % parts, parts, sizes, shape)
            cut.narrow(
                logits_row,
                weighing,
                words,
                cut.load_pivots(words, shape),
                first,
                last,
                False,
                LAST_RANK,
                sizes.vocab,
                least,
                True,
                shape,
            )


@triton.jit(do_not_specialize=["parts"])
def weigh_kernel(logits, sources, filters, sizes, scratch, parts, shape):
    """weigh and gather, for rows without top_k, with `parts` programs a row."""
    row = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    words = scratch_of(scratch, row, shape)
    temperature, top_k, top_p, min_p = filters_of(filters, row)
    source, exists = source_of(sources, row, sizes)
    greedy, has_top_k, has_top_p, _ = selection.plan_of(temperature, top_k, top_p, sizes, shape)
    if exists & selection.valid_filters(temperature, top_p, min_p, shape) & (has_top_k == 0) & (greedy == 0):
        first_rank = tl.min(maximum.peaks(words, sizes, shape), axis=0)
        if maximum.valid(first_rank, shape):
            weighing = weigh.weighing_of(first_rank, temperature, sizes.vocab, shape)
            least = selection.least_weight(min_p, weighing, shape)
            # Without top_p everything is kept for sure, and nothing is a candidate.
            sure_rank = tl.full((), LAST_RANK, tl.int32)
            last_rank = tl.full((), selection.NOTHING, tl.int32)
            fits = tl.full((), 1, tl.int1)
            if has_top_p:
                total = tl.load(total_in(words, shape))
                zero = tl.full((), 0, tl.int64)
                low, high, before, reached = cut.between_pivots(
                    words,
                    cut.load_pivots(words, shape),
                    (first_rank - 1).to(tl.int64),
                    zero + weigh.last_rank_of(shape),
                    zero,
                    total,
                    cut.mass_bound(top_p, total),
                    shape,
                )
                sure_rank = low.to(tl.int32)
                last_rank = high.to(tl.int32)
                fits = cut.most_members(reached - before, high, False, weighing, shape) <= shape.list
            if fits:
                first, last = part_of(part, parts, sizes, shape)
                least_of_base = tl.where(plain(filters.order) == ORDER_MIN_P_FIRST, tl.maximum(least, 1), 1)
                weigh.sweep(
                    load.row_at(logits, source, row, sizes.vocab, shape),
                    weighing,
                    words,
                    first,
                    last,
                    sure_rank,
                    sizes.vocab,
                    last_rank,
                    sizes.vocab,
                    least,
                    least_of_base,
                    shape,
                )


@triton.jit
def row_kernel(
    logits,
    sources,
    filters,
    sizes,
    scratch,
    randomness,
    out,
    history,
    shape,
    draws: tl.constexpr,
    described: tl.constexpr,
):
    """One row. If it `draws`, its tokens go to `out`, and if there is a history, the first of them to that; if it is
    `described`, what it keeps goes to the scratch memory, for the kernels after it.
    """
    row = tl.program_id(0).to(tl.int64)
    words = scratch_of(scratch, row, shape)
    target = out.data + row * plain(out.row_stride), plain(out.stride), row, history
    samples = plain(sizes.samples)
    order = plain(filters.order)
    temperature, top_k, top_p, min_p = filters_of(filters, row)
    source, exists = source_of(sources, row, sizes)
    if (exists & selection.valid_filters(temperature, top_p, min_p, shape)) == 0:
        invalid(target, words, sizes, shape, draws, described)
        return

    logits_row = load.row_at(logits, source, row, sizes.vocab, shape)
    if shape.resident:
        gather.clear(words, shape)
        maximum.sweep(logits_row, words, 0, sizes.chunks, shape)
        tl.debug_barrier()
    peak = maximum.peaks(words, sizes, shape)
    first_rank = tl.min(peak, axis=0)
    if maximum.valid(first_rank, shape) == 0:
        invalid(target, words, sizes, shape, draws, described)
        return

    greedy, has_top_k, has_top_p, by_list = selection.plan_of(temperature, top_k, top_p, sizes, shape)
    if greedy:
        index = maximum.first_maximum(logits_row, peak, first_rank, shape)
        if draws:
            draw.from_maximum(target, index, samples, plain(randomness.replacement))
        if described:
            one = tl.full((), LARGEST_WEIGHT, tl.int64)
            selection.store(words, first_rank, index, one * 0, one, first_rank, shape)
        return

    weighing = weigh.weighing_of(first_rank, temperature, sizes.vocab, shape)
    least = selection.least_weight(min_p, weighing, shape)
    if by_list:
        index, kept, last_rank, last_index, size = selection.of_list(
            logits_row, weighing, words, peak, first_rank, top_k, top_p, has_top_p, least, order, sizes, shape
        )
        if size <= shape.list:
            if draws:
                draw.from_list(target, index, kept, randomness, row, samples)
            if described:
                selection.store(words, last_rank, last_index, least, tl.sum(kept, axis=0), first_rank, shape)
        by_list = size <= shape.list
    if by_list == 0:
        last_rank, last_index = selection.of_row(
            logits_row,
            weighing,
            words,
            peak,
            first_rank,
            top_k,
            top_p,
            has_top_k,
            has_top_p,
            least,
            order,
            sizes,
            shape,
        )
        if draws:
            draw.from_row(
                target,
                logits_row,
                weighing,
                words,
                last_rank,
                last_index,
                least,
                randomness,
                row,
                sizes,
                samples,
                shape,
            )
        if described:
            z = selection.mass_of_chunks(words, sizes, shape)
            selection.store(words, last_rank, last_index, least, z, first_rank, shape)


@triton.jit
def invalid(target, scratch, sizes, shape, draws: tl.constexpr, described: tl.constexpr):
    """What an invalid row gives."""
    if draws:
        draw.write_nothing(target, 0, plain(sizes.samples))
    if described:
        tl.store(selection_in(scratch, shape), tl.full((), 0, tl.int64))
