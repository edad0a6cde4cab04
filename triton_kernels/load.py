"""load: logits from memory to float32, anywhere in memory and in any strides, as requests have edited them.

Reads what it is asked for, once. A row that fits into a program's registers is loaded whole, and later steps find it
there (`resident`); of any other, they load the part that they are at. Of a call with edits each load looks up the bits
of its tokens, a 32nd of them, and the few values that they name; of one without nothing of this is compiled.
"""

import triton
import triton.language as tl

from .law import INFINITY, NAN_RANK, bits_below, rank_of
from .work import plain


@triton.jit
def values_at(data, stride, vocab, index, shape):
    """The logits at a tile of indices, in their own dtype; beyond the row's end what is never kept."""
    beyond = 0.0 if shape.probabilities else -INFINITY
    return tl.load(data + index.to(tl.int64) * stride, mask=index < vocab, other=beyond)


@triton.jit
def row_at(logits, source, number, vocab, shape):
    """A row, as the steps pass it on: where it is, its stride and length, its edits, its tokens if it is resident.

    source: the row of logits. number: the output row, which edits are indexed by.
    """
    data = logits.data + source * logits.row_stride
    edits = edits_of(logits.edits, number, shape)
    if shape.resident:
        index = tl.arange(0, shape.block)
        x = values_at(data, logits.stride, vocab, index, shape)
        if shape.edited:
            x = edited_block(widen(x), 0, vocab, edits, data)
        return data, logits.stride, vocab, edits, x
    else:
        return data, logits.stride, vocab, edits, 0


@triton.jit
def edits_of(edits, number, shape):
    """The edits of an output row: where its words and values are, and how many words there are."""
    if shape.edited:
        words = plain(edits.words)
        return (
            edits.allowed + number * plain(edits.allowed_row_stride),
            plain(edits.allowed_stride),
            edits.bits + number * words,
            edits.before + number * words,
            edits.new_logits + number * plain(edits.capacity),
            words,
        )
    else:
        return 0


@triton.jit
def words_at(edits, index, vocab):
    """Of the words that a tile of tokens is in: which tokens are allowed, which edited, and how many of them before."""
    allowed, stride, bits, before, _, words = edits
    word = index >> 5
    inside = index < vocab
    allowed_word = tl.load(allowed + word.to(tl.int64) * stride, mask=inside & (stride >= 0), other=-1)
    edited_word = tl.load(bits + word, mask=inside & (words > 0), other=0)
    return allowed_word, edited_word, tl.load(before + word, mask=edited_word != 0, other=0)


@triton.jit
def replaced(x, index, allowed_word, edited_word, before, edits):
    """Law section 0: what the words of a tile of tokens make of their logits."""
    bit = index & 31
    x = tl.where(((allowed_word >> bit) & 1) != 0, x, -INFINITY)
    is_edited = ((edited_word >> bit) & 1) != 0
    new_logits = edits[4]
    place = before + bits_below(edited_word, bit)
    return tl.where(is_edited, tl.load(new_logits + place, mask=is_edited, other=0.0), x)


@triton.jit
def edited(x, index, vocab, edits):
    """Law section 0: float32 logits at a tile of any indices as the row's edits leave them."""
    allowed_word, edited_word, before = words_at(edits, index, vocab)
    return replaced(x, index, allowed_word, edited_word, before, edits)


@triton.jit
def spread(words, together: tl.constexpr):
    """Each word for as many tokens."""
    tile = tl.broadcast_to(words[:, None], [words.shape[0], together])
    return tl.reshape(tile, [words.shape[0] * together])


@triton.jit
def edited_block(x, first, vocab, edits, data):
    """`edited` of the block of a row, `data`, that begins with a token.

    A thread loads 16 bytes at once, whose tokens' words it looks up once: `maximum_kernel` then has 368 instructions,
    looking them up token by token 429, and 193 without edits (counted for sm_90 and float32).
    """
    together: tl.constexpr = 128 // data.dtype.element_ty.primitive_bitwidth
    index = first + tl.arange(0, x.shape[0])
    group = first + tl.arange(0, x.shape[0] // together) * together
    allowed_word, edited_word, before = words_at(edits, group, vocab)
    return replaced(
        x, index, spread(allowed_word, together), spread(edited_word, together), spread(before, together), edits
    )


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
    data, stride, vocab, edits, _ = row
    x = widen(values_at(data, stride, vocab, index, shape))
    if shape.edited:
        x = edited(x, index, vocab, edits)
    return x


@triton.jit
def indices_of_block(chunk, shape):
    """The indices of the block that begins with a chunk."""
    return tl.arange(0, shape.block) + chunk * shape.chunk


@triton.jit
def block_as_it_is(row, chunk, shape):
    """The logits of the block that begins with a chunk, in their own dtype; for calls without edits."""
    data, stride, vocab, _, resident = row
    if shape.resident:
        return resident
    else:
        return values_at(data, stride, vocab, indices_of_block(chunk, shape), shape)


@triton.jit
def block(row, chunk, shape):
    """Float32 logits and indices of the block that begins with a chunk."""
    data, stride, vocab, edits, resident = row
    index = indices_of_block(chunk, shape)
    if shape.resident:
        return widen(resident), index
    else:
        x = widen(values_at(data, stride, vocab, index, shape))
        if shape.edited:
            x = edited_block(x, chunk * shape.chunk, vocab, edits, data)
        return x, index


@triton.jit
def ranks(x, shape):
    """The ranks of loaded values; what makes a row invalid ranks above everything."""
    rank = rank_of(x)
    if shape.probabilities:
        rank = tl.where(x < 0.0, NAN_RANK, rank)
    return rank
