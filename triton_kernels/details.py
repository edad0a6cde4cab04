"""What is said of a row's draws (law section 7): log-probabilities, ranks, the top of the row, numbers.

Goes on from what `kernels.row_kernel` kept of a row and, of its raw logits, from the peaks of `kernels.maximum_kernel`:
the same where nothing is edited, else one more read. `sums_kernel` reads the row once where sums over it are asked for
(raw and processed at once), and for the rank of a draw the blocks that have something above it, with several programs a
row. `details_kernel` then reads the tokens drawn, and a chunk for each of the top tokens.
"""

import triton
import triton.language as tl

from . import cut, load, maximum, selection
from .kernels import part_of
from .law import (
    INFINITY,
    LARGEST_WEIGHT,
    LAST_RANK,
    LN2,
    LOG2E,
    at_or_above,
    exponent,
    log1p_of_rest,
    logit_of,
    rank_of,
    scale_of,
    weight_of_logit,
)
from .work import is_given, number_of, peaks_in, place_in, plain, scratch_of, source_of

# Words of a row's sums: raw Z, size of K, E, Z over everything, the last token kept; then a count for each draw.
SUMS: tl.constexpr = tl.constexpr(5)
# Draws that a program has in hand at a time.
_DRAWS: tl.constexpr = tl.constexpr(16)
_LOWEST_RANK: tl.constexpr = tl.constexpr(-0x80000000)


@triton.jit
def energy(x, m, c, weight):
    """Law section 7: the terms of E."""
    depth = tl.where(weight > 0, -exponent(x, m, c), 0.0)  # at most 40, which is below 2^26 in units of 2^-20
    return (weight * (depth * 1048576.0).to(tl.int32).to(tl.int64)) >> 20


@triton.jit
def log_probability(x, m, c, z):
    """Law section 5."""
    return -(-exponent(x, m, c) * LN2 + log1p_of_rest(z))


@triton.jit
def raw_values(data, stride, vocab, index, shape):
    """Float32 logits at a tile of indices, whatever requests have changed in them."""
    return load.widen(load.values_at(data, stride, vocab, index, shape))


@triton.jit
def raw_row(sizes, raw_scratch, row, valid, shape):
    """Peaks and first rank of a row's raw logits, and whether they and the row are valid."""
    words = scratch_of(raw_scratch, row, shape)
    peak = maximum.peaks(words, sizes, shape)
    first_rank = tl.min(peak, axis=0)
    return words, peak, first_rank, valid & maximum.valid(first_rank, shape)


@triton.jit
def add_sums(data, stride, sizes, edits, kept_set, c, raw_m, of_raw, of_kept, sums, first, last, shape):
    """Adds up what the chunks [first, last) have of each sum, in one read."""
    per_block: tl.constexpr = shape.block // shape.chunk
    last_rank, last_index, least, m = kept_set
    raw_z = tl.zeros([shape.block // 4], tl.int64)
    size, terms, everything, last_token = raw_z, raw_z, raw_z, raw_z
    for chunk in range(first, last, per_block):
        index = load.indices_of_block(chunk, shape)
        x = raw_values(data, stride, sizes.vocab, index, shape)
        if of_raw:
            raw_z = cut.add_up(raw_z, weight_of_logit(x, raw_m, LOG2E))
        if of_kept:
            if shape.edited:
                x = load.edited_block(x, chunk * shape.chunk, sizes.vocab, edits, data)
            weight = weight_of_logit(x, m, c)
            rank = rank_of(x)
            kept = selection.keeps(rank, index, weight, last_rank, last_index, least)
            everything = cut.add_up(everything, weight)
            size = cut.add_up(size, kept.to(tl.int64))
            terms = cut.add_up(terms, energy(x, m, c, tl.where(kept, weight, 0)))
            # Ranks from 0 up, so that the last token kept has the largest word, and none of them is negative.
            token = ((rank.to(tl.int64) - _LOWEST_RANK) << 31) | index.to(tl.int64)
            token = tl.reshape(tl.where(kept, token, 0), [shape.block // 4, 4])
            last_token = tl.maximum(last_token, tl.max(token, axis=1))
    if of_raw:
        tl.atomic_add(sums, tl.sum(raw_z, axis=0), sem="relaxed")
    if of_kept:
        tl.atomic_add(sums + 1, tl.sum(size, axis=0), sem="relaxed")
        tl.atomic_add(sums + 2, tl.sum(terms, axis=0), sem="relaxed")
        tl.atomic_add(sums + 3, tl.sum(everything, axis=0), sem="relaxed")
        tl.atomic_max(sums + 4, tl.max(last_token, axis=0), sem="relaxed")


@triton.jit
def count_before(data, stride, sizes, raw_words, token, first, last, shape):
    """How many tokens of the chunks [first, last) come before one; reads the blocks whose peaks say that some may."""
    per_block: tl.constexpr = shape.block // shape.chunk
    token_rank = rank_of(raw_values(data, stride, sizes.vocab, token, shape))
    count = tl.zeros([shape.block // 4], tl.int64)
    for chunk in range(first, last, per_block):
        place = chunk + tl.arange(0, per_block)
        peak = tl.load(peaks_in(raw_words, shape) + place, mask=place < last, other=LAST_RANK + 1)
        if tl.min(peak, axis=0) <= token_rank:
            index = load.indices_of_block(chunk, shape)
            rank = rank_of(raw_values(data, stride, sizes.vocab, index, shape))
            before = (rank < token_rank) | ((rank == token_rank) & (index < token))
            count = cut.add_up(count, before.to(tl.int64))
    return tl.sum(count, axis=0)


@triton.jit(do_not_specialize=["parts"])
def sums_kernel(logits, sources, temperature, sizes, scratch, raw_scratch, sums, tokens, details, parts, shape):
    """What takes all of a row, with `parts` programs a row: sums over it, and how many tokens come before each draw."""
    row = (tl.program_id(0) // parts).to(tl.int64)
    first, last = part_of(tl.program_id(0) % parts, parts, sizes, shape)
    samples = plain(sizes.samples)
    sums += row * (SUMS + samples)
    source, _ = source_of(sources, row, sizes)
    data = logits.data + source * logits.row_stride
    valid, last_rank, last_index, least, _, m = selection.stored(scratch, row, shape)
    raw_words, _, raw_first_rank, raw_valid = raw_row(sizes, raw_scratch, row, valid, shape)
    top_of_raw = is_given(details.top_tokens) & (plain(details.top_of_processed) == 0)
    of_raw = raw_valid & (is_given(details.raw_logprobs) | top_of_raw)
    of_kept = valid & is_given(details.numbers)
    if of_raw | of_kept:
        add_sums(
            data,
            logits.stride,
            sizes,
            load.edits_of(logits.edits, row, shape),
            (last_rank, last_index, least, m),
            scale_of(number_of(temperature, row)),
            logit_of(raw_first_rank),
            of_raw,
            of_kept,
            sums,
            first,
            last,
            shape,
        )
    if raw_valid & is_given(details.ranks):
        for draw in range(samples):
            token = tl.load(place_in(tokens, row, draw)).to(tl.int32)
            if token >= 0:
                count = count_before(data, logits.stride, sizes, raw_words, token, first, last, shape)
                tl.atomic_add(sums + SUMS + draw, count, sem="relaxed")


@triton.jit
def write_number(numbers, row, place: tl.constexpr, valid, number):
    """Writes one of `numbers`, if anybody asks for them; of an invalid row they are 0."""
    tl.store(place_in(numbers, row, place), tl.where(valid, number, 0).to(tl.int64), mask=is_given(numbers))


@triton.jit
def write_numbers(numbers, row, valid, sums, m, z, greedy):
    last_token = tl.load(sums + 4)
    last_logit = logit_of(((last_token >> 31) + _LOWEST_RANK).to(tl.int32))
    tl.store(place_in(numbers, row, 0), 1 - valid.to(tl.int64), mask=is_given(numbers))
    write_number(numbers, row, 1, valid, m.to(tl.int32, bitcast=True))
    write_number(numbers, row, 2, valid, last_logit.to(tl.int32, bitcast=True))
    write_number(numbers, row, 3, valid, (last_token & 0x7FFFFFFF) + 1)
    write_number(numbers, row, 4, valid, z)
    write_number(numbers, row, 5, valid, tl.load(sums + 1))
    write_number(numbers, row, 6, valid, tl.load(sums + 2))
    write_number(numbers, row, 7, valid, tl.where(greedy, LARGEST_WEIGHT, tl.load(sums + 3)))


@triton.jit
def write_top(details, row, data, stride, sizes, edits, peak, distribution, of_processed, shape):
    """The top of a row, token by token: the first of the chunk with the first peak, which then has another."""
    valid, last_rank, last_index, least, m, c, z = distribution
    chunk_number = tl.arange(0, shape.chunks)
    rank_before = tl.full((), _LOWEST_RANK, tl.int32)
    token_before = rank_before
    for place in range(plain(details.top)):
        rank = tl.min(peak, axis=0)
        chunk = tl.min(tl.where(peak == rank, chunk_number, shape.chunks), axis=0)
        index = chunk * shape.chunk + tl.arange(0, shape.chunk)
        x = raw_values(data, stride, sizes.vocab, index, shape)
        if shape.edited:
            x = tl.where(of_processed, load.edited(x, index, sizes.vocab, edits), x)
        in_chunk = rank_of(x)
        left = at_or_above(in_chunk, index, rank_before, token_before) == 0
        token = tl.min(tl.where(left & (in_chunk == rank), index, 0x7FFFFFFF), axis=0)
        rest = tl.min(tl.where(left & (index != token), in_chunk, LAST_RANK + 1), axis=0)
        peak = tl.where(chunk_number == chunk, rest, peak)
        rank_before = rank
        token_before = token
        logit = logit_of(rank)
        kept = selection.keeps(rank, token, weight_of_logit(logit, m, c), last_rank, last_index, least)
        there = valid & kept & (rank <= LAST_RANK)
        value = tl.where(there, log_probability(logit, m, c, z), -INFINITY)
        value = tl.where(valid, value, float("nan"))
        tl.store(place_in(details.top_tokens, row, place), tl.where(there, token, -1).to(tl.int64))
        tl.store(place_in(details.top_logprobs, row, place), value)


@triton.jit
def details_kernel(logits, sources, temperature, sizes, scratch, raw_scratch, sums, tokens, details, shape):
    """What is said of a row's draws."""
    row = tl.program_id(0).to(tl.int64)
    samples = plain(sizes.samples)
    sums += row * (SUMS + samples)
    source, _ = source_of(sources, row, sizes)
    data = logits.data + source * logits.row_stride
    edits = load.edits_of(logits.edits, row, shape)
    valid, last_rank, last_index, least, z, m = selection.stored(scratch, row, shape)
    number_t = number_of(temperature, row)
    c = scale_of(number_t)
    _, peak, raw_first_rank, raw_valid = raw_row(sizes, raw_scratch, row, valid, shape)
    raw_m = logit_of(raw_first_rank)
    raw_z = tl.load(sums)
    if is_given(details.numbers):
        write_numbers(details.numbers, row, valid, sums, m, z, number_t == 0.0)
    for first in range(0, samples, _DRAWS):
        draw = first + tl.arange(0, _DRAWS)
        there = draw < samples
        token = tl.load(place_in(tokens, row, draw), mask=there, other=-1).to(tl.int32)
        drawn = token >= 0
        index = tl.where(drawn, token, 0)
        y = raw_values(data, logits.stride, sizes.vocab, index, shape)
        raw_value = tl.where(y > -INFINITY, log_probability(y, raw_m, LOG2E, raw_z), -INFINITY)
        raw_value = tl.where(drawn & raw_valid, raw_value, float("nan"))
        tl.store(place_in(details.raw_logprobs, row, draw), raw_value, mask=there & is_given(details.raw_logprobs))
        count = tl.load(sums + SUMS + draw, mask=there, other=0)
        rank = tl.where(drawn & raw_valid, count + 1, 0)
        tl.store(place_in(details.ranks, row, draw), rank, mask=there & is_given(details.ranks))
        x = y
        if shape.edited:
            x = load.edited(y, index, sizes.vocab, edits)
        kept = selection.keeps(rank_of(x), index, weight_of_logit(x, m, c), last_rank, last_index, least)
        value = tl.where(kept, log_probability(x, m, c, z), -INFINITY)
        value = tl.where(drawn & valid, value, float("nan"))
        tl.store(place_in(details.logprobs, row, draw), value, mask=there & is_given(details.logprobs))
    if is_given(details.top_tokens):
        of_processed = plain(details.top_of_processed) != 0
        if of_processed:
            peak = maximum.peaks(scratch_of(scratch, row, shape), sizes, shape)
        distribution = (
            tl.where(of_processed, valid, raw_valid),
            tl.where(of_processed, last_rank, LAST_RANK),
            tl.where(of_processed, last_index, 0x7FFFFFFF),
            tl.where(of_processed, least, 0),
            tl.where(of_processed, m, raw_m),
            tl.where(of_processed, c, LOG2E),
            tl.where(of_processed, z, raw_z),
        )
        write_top(details, row, data, logits.stride, sizes, edits, peak, distribution, of_processed, shape)
