"""load: logits from memory to float32, anywhere in memory and in any strides.

Reads what it is asked for, once. A row that fits into a program's registers is loaded whole, and later steps find it
there (`resident`); of any other, they load the part that they are at.
"""

import triton
import triton.language as tl

from .law import INFINITY, NAN_RANK, rank_of


@triton.jit
def values_at(data, stride, vocab, index, shape):
    """The logits at a tile of indices, in their own dtype; beyond the row's end what is never kept."""
    beyond = 0.0 if shape.probabilities else -INFINITY
    return tl.load(data + index.to(tl.int64) * stride, mask=index < vocab, other=beyond)


@triton.jit
def row_at(logits, source, vocab, shape):
    """A row, as the steps pass it on: where it is, its stride and length, and its tokens if it is resident."""
    data = logits.data + source * logits.row_stride
    if shape.resident:
        return data, logits.stride, vocab, values_at(data, logits.stride, vocab, tl.arange(0, shape.block), shape)
    else:
        return data, logits.stride, vocab, 0


@triton.jit
def widen(x):
    """The exact float32 values of loaded ones."""
    if x.dtype == tl.bfloat16:
        # By the bits: Triton's interpreter converts denormals wrongly, and shifts are exact on any GPU.
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def values(row, index, shape):
    """Float32 logits at a tile of indices."""
    data, stride, vocab, _ = row
    return widen(values_at(data, stride, vocab, index, shape))


@triton.jit
def indices_of_block(chunk, shape):
    """The indices of the block that begins with a chunk."""
    return tl.arange(0, shape.block) + chunk * shape.chunk


@triton.jit
def block_as_it_is(row, chunk, shape):
    """The logits of the block that begins with a chunk, in their own dtype."""
    data, stride, vocab, resident = row
    if shape.resident:
        return resident
    else:
        return values_at(data, stride, vocab, indices_of_block(chunk, shape), shape)


@triton.jit
def block(row, chunk, shape):
    """Float32 logits and indices of the block that begins with a chunk."""
    return widen(block_as_it_is(row, chunk, shape)), indices_of_block(chunk, shape)


@triton.jit
def ranks(x, shape):
    """The ranks of loaded values; what makes a row invalid ranks above everything."""
    rank = rank_of(x)
    if shape.probabilities:
        rank = tl.where(x < 0.0, NAN_RANK, rank)
    return rank
