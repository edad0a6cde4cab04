"""draw: the token at which the kept weights, summed up in index order, exceed t (law section 4).

From a list in registers without reading anything; from a row by the sums of its chunks, and then one chunk is read
again. Several draws without replacement take each token's weight out before the next.
"""

import triton
import triton.language as tl

from . import load, weigh
from .law import at_or_above, random_word, target_of
from .work import is_given, masses_in, place_in, plain, word_of


@triton.jit
def random_of(randomness, row):
    """Law section 4: seed, offset and stream of an output row, int64."""
    stream = word_of(randomness.stream, row) + plain(randomness.stream_per_row) * row
    return word_of(randomness.seed, row), word_of(randomness.offset, row), stream


@triton.jit
def write(out, draw, token):
    """Write a token of a row, and record the first. out: where they go, their stride, the row, its history or None."""
    tl.store(out[0] + draw * out[1], token.to(tl.int64))
    if out[3] is not None:
        record(out[3], out[2], token.to(tl.int64), draw == 0)


@triton.jit
def record(history, row, token, first):
    """Law section 7: put the first token drawn of a row into its history; -1 changes nothing."""
    # The row's length may be its offset as well, which every warp has read by then.
    tl.debug_barrier()
    # Atomics, since one thread makes them and all have what was there: a load could see another's store.
    drawn = first & (token >= 0)
    one = tl.full((), 1, tl.int64)
    has_counts = drawn & is_given(history.counts)
    tl.atomic_add(place_in(history.counts, row, token), one.to(tl.int32), mask=has_counts, sem="relaxed")
    has_lengths = drawn & is_given(history.lengths)
    place = history.lengths.data + row * plain(history.lengths.stride)
    length = tl.atomic_add(place, one, mask=has_lengths, sem="relaxed")
    has_room = has_lengths & is_given(history.tokens) & (length >= 0) & (length < plain(history.columns))
    tl.store(place_in(history.tokens, row, length), token, mask=has_room)


@triton.jit
def write_nothing(out, first, samples):
    """-1 for the draws [first, samples)."""
    for draw in range(first, samples):
        write(out, tl.full((), 0, tl.int64) + draw, tl.full((), -1, tl.int64))


@triton.jit
def from_maximum(out, index, samples, replacement):
    """The draws of a greedy row: its first maximum; without replacement that once, and then nothing."""
    for draw in range(samples):
        token = tl.where((draw == 0) | (replacement != 0), index, -1)
        write(out, tl.full((), 0, tl.int64) + draw, token)


@triton.jit
def from_list(out, index, kept, randomness, row, samples):
    """Draw from candidates in index order. kept: int64 tile of their weights, 0 where one is not kept."""
    place = tl.arange(0, kept.shape[0])
    seed, offset, stream = random_of(randomness, row)
    replacement = plain(randomness.replacement)
    for draw in range(samples):
        number = tl.full((), 0, tl.int64) + draw
        z = tl.sum(kept, axis=0)
        t = target_of(random_word(seed, offset, stream, number), z)
        drawn = tl.sum((tl.cumsum(kept, axis=0) <= t).to(tl.int32), axis=0)
        token = tl.sum(tl.where(place == drawn, index, 0), axis=0)
        write(out, number, tl.where(z > 0, token, -1))
        kept = tl.where((place == drawn) & (replacement == 0), 0, kept)


@triton.jit
def taken_before(out, index, draw, shape):
    """Which of the tokens at a chunk's indices earlier draws took."""
    # Every token of the chunk beside so many earlier draws: a tile of 32768 at most.
    at_a_time: tl.constexpr = 32 if shape.chunk <= 1024 else 1
    taken = index < 0
    for first in range(0, draw, at_a_time):
        earlier = first + tl.arange(0, at_a_time)
        token = tl.load(out[0] + earlier.to(tl.int64) * out[1], mask=earlier < draw, other=-1)
        same = (index[:, None] == token[None, :]).to(tl.int32)
        taken = taken | (tl.max(same, axis=1) > 0)
    return taken


@triton.jit
def from_row(
    out, row_of_logits, weighing, scratch, last_rank, last_index, least, randomness, row, sizes, samples, shape
):
    """Draw from a row, whose chunks' kept weights are in scratch memory."""
    seed, offset, stream = random_of(randomness, row)
    replacement = plain(randomness.replacement)
    chunk_number = tl.arange(0, shape.chunks)
    within_chunk = tl.arange(0, shape.chunk)
    mass = tl.load(masses_in(scratch, shape) + chunk_number, mask=chunk_number < sizes.chunks, other=0)
    for draw in range(samples):
        number = tl.full((), 0, tl.int64) + draw
        z = tl.sum(mass, axis=0)
        t = target_of(random_word(seed, offset, stream, number), z)
        up_to = tl.cumsum(mass, axis=0)
        chunk = tl.sum((up_to <= t).to(tl.int32), axis=0)
        rest = t - tl.max(tl.where(up_to <= t, up_to, 0), axis=0)
        index = chunk * shape.chunk + within_chunk
        x = load.values(row_of_logits, index, shape)
        rank = load.ranks(x, shape)
        weight = weigh.weights(x, weighing, shape)
        kept = at_or_above(rank, index, last_rank, last_index)
        kept = kept & (weight >= least)
        if replacement == 0:
            kept = kept & (taken_before(out, index, draw, shape) == 0)
        weight = tl.where(kept, weight, 0)
        drawn = tl.sum((tl.cumsum(weight, axis=0) <= rest).to(tl.int32), axis=0)
        write(out, number, tl.where(z > 0, chunk * shape.chunk + drawn, -1))
        if replacement == 0:
            taken = tl.sum(tl.where(within_chunk == drawn, weight, 0), axis=0)
            mass = tl.where(chunk_number == chunk, mass - taken, mass)
            tl.debug_barrier()  # the token is read when the next is drawn
