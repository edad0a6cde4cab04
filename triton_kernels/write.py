"""What the operators write that return rows: filtered logits, probabilities, log-probabilities (law sections 3 and 5).

Each reads what `kernels.row_kernel` left of a row's selection, then the row once (log-probabilities: only the tokens
asked for), with several programs a row, and writes the result. NaN is spelled out in each: Triton checks at every
launch that a kernel's globals are what they were, by ==.
"""

import triton
import triton.language as tl

from . import load, selection, weigh
from .kernels import part_of
from .law import (
    INFINITY,
    LN2,
    exponent,
    log1p_of_rest,
    probability,
    scale_of,
    share_of,
)
from .work import number_of, plain


@triton.jit(do_not_specialize=["parts"])
def filter_logits_kernel(logits, temperature, sizes, scratch, parts, out, shape):
    """Kept logits as they are, -inf elsewhere; NaN throughout an invalid row."""
    row = (tl.program_id(0) // parts).to(tl.int64)
    valid, last_rank, last_index, least, _, m = selection.stored(scratch, row, shape)
    c = scale_of(number_of(temperature, row))
    first, last = part_of(tl.program_id(0) % parts, parts, sizes, shape)
    logits_row = load.row_at(logits, row, row, sizes.vocab, shape)
    for chunk in range(first, last, shape.block // shape.chunk):
        as_it_is = load.block_as_it_is(logits_row, chunk, shape)
        x, index = load.widen(as_it_is), load.indices_of_block(chunk, shape)
        weight = weigh.weights(x, (m, c, 0), shape)
        kept = selection.keeps(load.ranks(x, shape), index, weight, last_rank, last_index, least)
        left_out = (tl.zeros_like(x) + tl.where(valid, -INFINITY, float("nan"))).to(as_it_is.dtype)
        result = tl.where(kept & valid, as_it_is, left_out)
        tl.store(out.data + row * out.row_stride + index, result, mask=index < sizes.vocab)


@triton.jit(do_not_specialize=["parts"])
def filtered_probs_kernel(logits, temperature, sizes, scratch, parts, out, shape):
    """Probabilities of kept tokens, 0 elsewhere; NaN throughout an invalid row."""
    row = (tl.program_id(0) // parts).to(tl.int64)
    valid, last_rank, last_index, least, z, m = selection.stored(scratch, row, shape)
    c = scale_of(number_of(temperature, row))
    share = share_of(z)
    first, last = part_of(tl.program_id(0) % parts, parts, sizes, shape)
    logits_row = load.row_at(logits, row, row, sizes.vocab, shape)
    for chunk in range(first, last, shape.block // shape.chunk):
        x, index = load.block(logits_row, chunk, shape)
        weight = weigh.weights(x, (m, c, 0), shape)
        kept = selection.keeps(load.ranks(x, shape), index, weight, last_rank, last_index, least)
        result = tl.where(valid, tl.where(kept, probability(x, m, c, share), 0.0), float("nan"))
        tl.store(out.data + row * out.row_stride + index, result, mask=index < sizes.vocab)


@triton.jit(do_not_specialize=["count"])
def log_probs_kernel(logits, temperature, sizes, scratch, wanted, count, out, shape):
    """Log-probabilities of given tokens: -inf for one not kept, NaN for one that is none and in an invalid row."""
    blocks = tl.cdiv(count, shape.chunk)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    number = (tl.program_id(0) % blocks) * shape.chunk + tl.arange(0, shape.chunk)
    valid, last_rank, last_index, least, z, m = selection.stored(scratch, row, shape)
    c = scale_of(number_of(temperature, row))
    place = wanted.data + row * plain(wanted.row_stride) + number.to(tl.int64) * plain(wanted.stride)
    token = tl.load(place, mask=number < count, other=-1)
    known = (token >= 0) & (token < sizes.vocab)
    index = tl.where(known, token, 0).to(tl.int32)
    data = logits.data + row * logits.row_stride
    x = load.widen(load.values_at(data, logits.stride, sizes.vocab, index, shape))
    weight = weigh.weights(x, (m, c, 0), shape)
    kept = selection.keeps(load.ranks(x, shape), index, weight, last_rank, last_index, least)
    value = -(-exponent(x, m, c) * LN2 + log1p_of_rest(z))
    result = tl.where(known & valid, tl.where(kept, value, -INFINITY), float("nan"))
    place = out.data + row * plain(out.row_stride) + number.to(tl.int64) * plain(out.stride)
    tl.store(place, result, mask=number < count)
