"""gather: the candidates of a row, into the list in its scratch memory.

Reads nothing but the chunks whose peak reaches the bound, once more: with top_k 50 of 128256 tokens, about 50 chunks of
64. A candidate is one word, its rank above its index, so the words' order is the law's. The list has room for
`shape.list` of them; its size counts all, and whoever finds it larger has to go another way.
"""

import triton
import triton.language as tl

from . import load
from .law import LAST_RANK
from .work import list_in, masses_in, size_in


@triton.jit
def append(scratch, rank, index, candidate, shape):
    """Append the candidates of a tile to the list. Within a program they stay in the tiles' order."""
    count = tl.sum(candidate.to(tl.int32), axis=0)
    if count > 0:
        before = tl.atomic_add(size_in(scratch, shape), count.to(tl.int64), sem="relaxed").to(tl.int32)
        if before < shape.list:
            place = before + tl.cumsum(candidate.to(tl.int32), axis=0) - 1
            word = (rank.to(tl.int64) << 32) | index.to(tl.int64)
            tl.store(list_in(scratch, shape) + place, word, mask=candidate & (place < shape.list))


@triton.jit
def clear(scratch, shape):
    """Begin an empty list."""
    tl.store(size_in(scratch, shape), tl.full((), 0, tl.int64))


@triton.jit
def size_of_list(scratch, shape):
    """How many candidates there are, whether or not the list has room for them."""
    return tl.load(size_in(scratch, shape))


@triton.jit
def candidates(scratch, shape):
    """The list as tiles of ranks (beyond the last where there is no candidate) and indices, int32."""
    place = tl.arange(0, shape.list)
    nothing = (LAST_RANK + 1) << 32
    word = tl.load(list_in(scratch, shape) + place, mask=place < size_of_list(scratch, shape), other=nothing)
    return (word >> 32).to(tl.int32), word.to(tl.int32)


@triton.jit
def reaching(row, peak, bound, scratch, sizes, shape):
    """Lists every token that ranks at or above `bound`, in index order."""
    if shape.resident:
        x, index = load.block(row, 0, shape)
        rank = load.ranks(x, shape)
        append(scratch, rank, index, rank <= bound, shape)
    else:
        per_block: tl.constexpr = shape.block // shape.chunk
        wanted = peak <= bound
        place = tl.cumsum(wanted.to(tl.int32), axis=0) - 1
        numbers = masses_in(scratch, shape)
        tl.store(numbers + place, tl.arange(0, shape.chunks).to(tl.int64), mask=wanted)
        count = tl.sum(wanted.to(tl.int32), axis=0)
        tl.debug_barrier()
        for first in range(0, count, per_block):
            entry = first + tl.arange(0, per_block)
            chunk = tl.load(numbers + entry, mask=entry < count, other=sizes.chunks).to(tl.int32)
            index = tl.reshape(
                chunk[:, None] * shape.chunk + tl.arange(0, shape.chunk)[None, :], [per_block * shape.chunk]
            )
            rank = load.ranks(load.values(row, index, shape), shape)
            append(scratch, rank, index, rank <= bound, shape)
