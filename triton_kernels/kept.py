"""The kept sets of rows as one list, of rows whose cut is known (law section 7). Reads each row once."""

import triton
import triton.language as tl

from . import load
from .law import LAST_RANK, at_or_above, rank_of
from .work import place_in, plain, source_of


@triton.jit
def kept_tokens_kernel(logits, sources, sizes, numbers, offsets, offsets_stride, out, total, shape):
    """Writes a row's kept tokens, in index order, to its part of the list."""
    per_block: tl.constexpr = shape.block // shape.chunk
    row = tl.program_id(0).to(tl.int64)
    source, exists = source_of(sources, row, sizes)
    valid = exists & (tl.load(place_in(numbers, row, 0)) == 0)
    last_rank = rank_of(tl.load(place_in(numbers, row, 2)).to(tl.int32).to(tl.float32, bitcast=True))
    last_index = tl.load(place_in(numbers, row, 3)).to(tl.int32) - 1
    stride = plain(offsets_stride)
    place = tl.load(offsets + row * stride)
    end = tl.minimum(tl.load(offsets + (row + 1) * stride), plain(total))
    if valid:
        logits_row = load.row_at(logits, source, row, sizes.vocab, shape)
        for chunk in range(0, sizes.chunks, per_block):
            x, index = load.block(logits_row, chunk, shape)
            rank = rank_of(x)
            kept = at_or_above(rank, index, last_rank, last_index) & (rank <= LAST_RANK)
            before = tl.cumsum(kept.to(tl.int32), axis=0)
            at = place + before - 1
            tl.store(out + at, index.to(tl.int64), mask=kept & (at >= 0) & (at < end))
            place += tl.sum(kept.to(tl.int32), axis=0)
