"""draw: the token at which the kept weights, summed up in index order, exceed t (law section 4).

From a list in registers without reading anything; from a row by the sums of its chunks, and then one chunk is read
again. Several draws without replacement take each token's weight out before the next.
"""

import triton
import triton.language as tl

from . import load, weigh
from .law import random_word, target_of
from .work import masses_in

# Earlier draws that a chunk is compared with at a time.
_TAKEN: tl.constexpr = tl.constexpr(32)


@triton.jit
def of_row_or(number, rows, stride, row):
    """An int64 parameter of an output row: a number, or where `stride` is not negative the entry of a tensor."""
    given = stride >= 0
    return tl.load(rows + tl.where(given, row * stride, 0), mask=given, other=number)


@triton.jit
def word_of(randomness, seed, offset, stream, row, draw):
    """Law section 4: the random word of a draw of an output row, uint64."""
    seed = of_row_or(seed, randomness.seed_rows, randomness.seed_stride, row)
    offset = of_row_or(offset, randomness.offset_rows, randomness.offset_stride, row)
    stream = of_row_or(stream, randomness.stream_rows, randomness.stream_stride, row)
    stream += tl.where(randomness.stream_per_row != 0, row, 0)
    return random_word(seed, offset, stream, draw)


@triton.jit
def write(out, draw, token):
    tl.store(out[0] + draw * out[1], token.to(tl.int64))


@triton.jit
def nothing(out, first, samples):
    """-1 for the draws [first, samples)."""
    for draw in range(first, samples):
        write(out, tl.full((), 0, tl.int64) + draw, tl.full((), -1, tl.int64))


@triton.jit
def from_maximum(out, index, samples, replacement):
    """The draws of a greedy row: its first maximum; without replacement that once, and then nothing."""
    for draw in range(0, samples):
        token = tl.where((draw == 0) | (replacement != 0), index, -1)
        write(out, tl.full((), 0, tl.int64) + draw, token)


@triton.jit
def from_list(out, index, kept, randomness, seed, offset, stream, row, samples):
    """Draw from candidates in index order. kept: int64 tile of their weights, 0 where one is not kept."""
    place = tl.arange(0, kept.shape[0])
    for draw in range(0, samples):
        number = tl.full((), 0, tl.int64) + draw
        z = tl.sum(kept, axis=0)
        t = target_of(word_of(randomness, seed, offset, stream, row, number), z)
        drawn = tl.sum((tl.cumsum(kept, axis=0) <= t).to(tl.int32), axis=0)
        token = tl.sum(tl.where(place == drawn, index, 0), axis=0)
        write(out, number, tl.where(z > 0, token, -1))
        kept = tl.where((place == drawn) & (randomness.replacement == 0), 0, kept)


@triton.jit
def taken_before(out, index, draw):
    """Which of the tokens at a tile of indices earlier draws took."""
    taken = index < 0
    for first in range(0, draw, _TAKEN):
        earlier = first + tl.arange(0, _TAKEN)
        token = tl.load(out[0] + earlier.to(tl.int64) * out[1], mask=earlier < draw, other=-1)
        same = (index[:, None] == token[None, :]).to(tl.int32)
        taken = taken | (tl.max(same, axis=1) > 0)
    return taken


@triton.jit
def from_row(
    out, row_of_logits, weighing, scratch, last_rank, last_index, least,
    randomness, seed, offset, stream, row, sizes, samples, shape,
):  # fmt: skip
    """Draw from a row, whose chunks' kept weights are in scratch memory."""
    chunk_number = tl.arange(0, shape.chunks)
    within_chunk = tl.arange(0, shape.chunk)
    mass = tl.load(masses_in(scratch, shape) + chunk_number, mask=chunk_number < sizes.chunks, other=0)
    for draw in range(0, samples):
        number = tl.full((), 0, tl.int64) + draw
        z = tl.sum(mass, axis=0)
        t = target_of(word_of(randomness, seed, offset, stream, row, number), z)
        up_to = tl.cumsum(mass, axis=0)
        chunk = tl.sum((up_to <= t).to(tl.int32), axis=0)
        rest = t - tl.max(tl.where(up_to <= t, up_to, 0), axis=0)
        index = chunk * shape.chunk + within_chunk
        x = load.tokens(row_of_logits, index, shape)
        rank = load.ranks(x, shape)
        weight = weigh.weights(x, weighing, shape)
        kept = (rank < last_rank) | ((rank == last_rank) & (index <= last_index))
        kept = kept & (weight >= least)
        if randomness.replacement == 0:
            kept = kept & (taken_before(out, index, draw) == 0)
        weight = tl.where(kept, weight, 0)
        drawn = tl.sum((tl.cumsum(weight, axis=0) <= rest).to(tl.int32), axis=0)
        write(out, number, tl.where(z > 0, chunk * shape.chunk + drawn, -1))
        if randomness.replacement == 0:
            taken = tl.sum(tl.where(within_chunk == drawn, weight, 0), axis=0)
            mass = tl.where(chunk_number == chunk, mass - taken, mass)
            tl.debug_barrier()  # the token is read when the next is drawn
