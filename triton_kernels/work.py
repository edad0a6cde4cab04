"""What a kernel is given, by name: a call's tensors and numbers, the shape of the work, and scratch memory.

A kernel takes these tuples whole, so an argument list is written once, here. Fields hold tensors (pointers, inside the
kernel), numbers, or in `Shape` constants that the kernel is compiled for.

Triton compiles a kernel anew when an integer becomes 1 or a multiple of 16, or stops being one: seconds, in the middle
of serving (and `do_not_specialize` does not reach into tuples). Logits' strides and the vocabulary are meant to be
known so, for 16-byte loads; every other integer goes through `coded`, which is never either. What is still compiled
for: dtypes, `Shape` (so top_k at most 256, or larger), and for each tensor whether it begins at a multiple of 16 bytes.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


def coded(number: int) -> int:
    """An integer as kernels take it who must not be compiled for it: 2 more than a multiple of 4."""
    return 4 * number + 2


@triton.jit
def plain(number):
    """The integer that was coded."""
    return number >> 2


class Edits(NamedTuple):
    """What the requests of a call change in their logits (law section 0), by output row."""

    allowed: Any
    allowed_row_stride: Any  # coded
    allowed_stride: Any  # coded; -1 where there is no bitmask
    bits: Any
    before: Any
    new_logits: Any  # `values` is a name that Triton's tuples have themselves
    words: Any  # of a row's bits, coded; 0 where nothing is edited
    capacity: Any  # of a row's new_logits, coded


class Logits(NamedTuple):
    """A matrix of logits or probabilities, anywhere in memory, or one that is written."""

    data: Any
    row_stride: Any  # in elements
    stride: Any
    edits: Edits | None = None  # given where Shape.edited says so


class PerRow(NamedTuple):
    """A parameter of each output row: a number, or where `stride` is not negative the entries of a tensor."""

    number: Any  # a float, or coded
    rows: Any
    stride: Any  # coded; 0 for a 0-d tensor


class Filters(NamedTuple):
    """Temperature and filters (law section 3)."""

    temperature: PerRow
    top_k: PerRow
    top_p: PerRow
    min_p: PerRow
    order: Any  # coded: 0 top_k_first, 1 min_p_first, 2 joint


class Sizes(NamedTuple):
    """What there is of what."""

    logits_rows: Any  # coded
    vocab: Any
    chunks: Any  # of a row, see Shape.chunk
    samples: Any  # draws of a row, coded


class Sources(NamedTuple):
    """Which row of logits an output row is drawn from: itself, or where `stride` is not negative indices[row]."""

    indices: Any
    stride: Any  # coded


class Word(NamedTuple):
    """A 64-bit parameter of each output row: a number, or where `stride` is not negative the entries of a tensor."""

    low: Any  # bits 0 to 21 of the number, coded, as all three: then each is an int32, whatever the number
    middle: Any  # bits 22 to 43
    high: Any  # bits 44 to 63
    rows: Any
    stride: Any  # coded


class Randomness(NamedTuple):
    """Where the random words come from (law section 4)."""

    seed: Word
    offset: Word
    stream: Word
    stream_per_row: Any  # 0 or 1, coded, as the next
    replacement: Any


class Tokens(NamedTuple):
    """A matrix of token ids, or of one number for each, read or written."""

    data: Any
    row_stride: Any  # coded
    stride: Any  # coded


class Vector(NamedTuple):
    """A tensor with one dimension."""

    data: Any
    stride: Any  # coded; -1 where there is no such tensor


class History(NamedTuple):
    """Where a row's first token is recorded (law section 7). A stride of -1 says that there is no such tensor."""

    tokens: Tokens
    columns: Any  # of tokens, coded
    lengths: Vector
    counts: Tokens


class Histories(NamedTuple):
    """Lists of tokens by output row, of which some of the first columns count."""

    tokens: Tokens
    columns: Any  # of tokens, coded
    lengths: Vector


class Adjustments(NamedTuple):
    """What changes logits (law section 0). A stride of -1 says that there is no such tensor, as a count of 0 does."""

    repetition_penalty: PerRow
    presence_penalty: PerRow
    frequency_penalty: PerRow
    prompt: Histories
    output: Histories
    prompt_mask: Tokens
    output_counts: Tokens
    bias: Vector  # of tokens
    bias_count: Any  # coded, as the other counts
    bias_offsets: Vector
    bias_values: Vector
    bad_words: Vector  # their tokens
    bad_word_tokens: Any  # how many of them
    bad_word_offsets: Vector
    bad_word_count: Any
    bad_word_rows: Vector
    bad_words_in_prompt: Any  # 0 or 1, coded
    min_tokens: Word
    stops: Vector  # tokens
    stop_count: Any
    stop_offsets: Vector
    allowed: Tokens


class Found(NamedTuple):
    """Where `find_edits` writes: its results, and what it notes at the places of the edits."""

    bits: Any
    before: Any
    new_logits: Any
    entries: Any  # the memory of new_logits, as integers
    status: Any
    notes: Any  # of each row the token of each edit, then what is said of each
    words: Any  # of a row's bits, coded
    capacity: Any  # of a row's new_logits, coded


class Details(NamedTuple):
    """What is written of a row's draws (law section 7). A stride of -1 says that nobody asks for it."""

    logprobs: Tokens
    raw_logprobs: Tokens
    ranks: Tokens
    top_tokens: Tokens
    top_logprobs: Tokens
    top: Any  # how many of them, coded
    numbers: Tokens
    top_of_processed: Any  # 0 or 1, coded


class Shape(NamedTuple):
    """What a kernel is compiled for; `policy.py` chooses it, and no result depends on it."""

    chunk: Any  # tokens that share one maximum and one sum of weights
    chunks: Any  # room for a row's chunks, a power of two
    block: Any  # tokens that a program has in hand at a time
    list: Any  # room for the candidates of a row
    resident: Any  # whether the row is loaded once, and kept in registers
    probabilities: Any  # whether the rows hold probabilities (law section 5)
    edited: Any  # whether requests change the logits (law section 0)


class Side(NamedTuple):
    """One of two matrices whose rows are compared, each with its own selection in its scratch memory."""

    logits: Logits
    sources: Sources
    temperature: PerRow
    sizes: Sizes
    scratch: Any
    shape: Shape


# Ranks at which one read of a row measures what ranks above. Four: their sums stay in registers, and three parts of the
# width that `bound.guessed_pivots` gives them fit into a list of 4096 for N(0, 1) and 262144 tokens.
PIVOTS: tl.constexpr = tl.constexpr(4)

ORDER_MIN_P_FIRST: tl.constexpr = tl.constexpr(1)
ORDER_JOINT: tl.constexpr = tl.constexpr(2)


@triton.jit
def number_of(parameter, row):
    """A float parameter of an output row."""
    stride = plain(parameter.stride)
    given = stride >= 0
    return tl.load(parameter.rows + tl.where(given, row * stride, 0), mask=given, other=parameter.number)


@triton.jit
def integer_of(parameter, row):
    """An integer parameter of an output row, int64."""
    stride = plain(parameter.stride)
    given = stride >= 0
    number = plain(parameter.number).to(tl.int64)
    return tl.load(parameter.rows + tl.where(given, row * stride, 0), mask=given, other=number)


@triton.jit
def word_of(parameter, row):
    """A 64-bit parameter of an output row, int64."""
    stride = plain(parameter.stride)
    given = stride >= 0
    number = plain(parameter.low).to(tl.int64) | (plain(parameter.middle).to(tl.int64) << 22)
    number = number | (plain(parameter.high).to(tl.int64) << 44)
    return tl.load(parameter.rows + tl.where(given, row * stride, 0), mask=given, other=number)


@triton.jit
def place_in(tokens, row, column):
    """Where a matrix has the number of a row and column."""
    return tokens.data + row * plain(tokens.row_stride) + column * plain(tokens.stride)


@triton.jit
def is_given(tokens):
    """Whether there is such a matrix, or vector."""
    return plain(tokens.stride) >= 0


@triton.jit
def filters_of(filters, row):
    """Temperature, top_k, top_p and min_p of an output row."""
    return (
        number_of(filters.temperature, row),
        integer_of(filters.top_k, row),
        number_of(filters.top_p, row),
        number_of(filters.min_p, row),
    )


@triton.jit
def source_of(sources, row, sizes):
    """The row of logits that an output row draws from, and whether there is such a row."""
    stride = plain(sources.stride)
    given = stride >= 0
    source = tl.load(sources.indices + tl.where(given, row * stride, 0), mask=given, other=row)
    exists = (source >= 0) & (source < plain(sizes.logits_rows))
    return tl.where(exists, source, 0), exists


# --- scratch memory: int64 words, one stretch a row, of which the steps tell each other what they found


def scratch_words(shape: Shape) -> int:
    """How many words of scratch memory a row needs."""
    return int(2 * shape.chunks.value + shape.list.value + 2 * PIVOTS.value + 8)


@triton.jit
def scratch_of(scratch, row, shape):
    """Where a row's stretch begins."""
    words: tl.constexpr = 2 * shape.chunks + shape.list + 2 * PIVOTS + 8
    return scratch + row * words


@triton.jit
def peaks_in(scratch, shape):
    """The first rank of each chunk."""
    return scratch


@triton.jit
def masses_in(scratch, shape):
    """The weight that each chunk keeps; before that is known, the numbers of the chunks that hold candidates."""
    return scratch + shape.chunks


@triton.jit
def list_in(scratch, shape):
    """The candidates: rank in the high half of the word, index in the low one."""
    return scratch + 2 * shape.chunks


@triton.jit
def pivots_in(scratch, shape):
    return scratch + (2 * shape.chunks + shape.list)


@triton.jit
def sums_in(scratch, shape):
    """What ranks at or above each pivot weighs, then what everything weighs, then how many candidates there are."""
    return scratch + (2 * shape.chunks + shape.list + PIVOTS)


@triton.jit
def total_in(scratch, shape):
    return sums_in(scratch, shape) + PIVOTS


@triton.jit
def size_in(scratch, shape):
    return sums_in(scratch, shape) + (PIVOTS + 1)


@triton.jit
def selection_in(scratch, shape):
    """For the kernels that write rows: status, rank and index of the last token kept, least weight, Z, first rank."""
    return sums_in(scratch, shape) + (PIVOTS + 2)
